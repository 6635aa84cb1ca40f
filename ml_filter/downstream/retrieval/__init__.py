"""Retrieval over a corpus: an index of its passages, search, and answers with citations."""
