"""Annotation: an LLM scores, labels or translates documents, directly or through batch files, and every answer is kept.

plan.py says what has to be asked; asking.py (or batch/) gets the answers into the ledger; run.py writes them as rows
and checks the output. annotate.py, label.py and translate/ are the tasks; estimate.py predicts their cost.
annotator.py and the modules below it (endpoints, concurrency, client, budget, windows, parsing) make a single call.
responses.py and failures.py say what a response means: an answer, a failed document, a retry, or the end of the run.
"""
