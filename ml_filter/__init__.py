"""ml_filter: the quality filter for pretraining corpora.

Rooms: `documents` (read, sample, write), `annotation` (LLM scores), `agreement` (aggregate votes),
`heads` (train and evaluate encoder heads), `scoring` (score a corpus), `selection` (keep the best),
`reports` (HTML and plots). Nothing here imports ZenML; the pipelines wrap these functions.
"""

__version__ = "0.1.0"
