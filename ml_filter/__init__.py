"""ml_filter: the quality filter for pretraining corpora.

Sample documents, let an LLM annotate them, train a head on the scores, score the whole corpus with it and keep the
best. docs/architecture.md lists the packages. Nothing here imports ZenML; the pipelines wrap these functions.
"""

__version__ = "0.1.0"
