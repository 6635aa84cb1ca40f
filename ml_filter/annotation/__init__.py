"""LLM annotation: prompts, judge client, parsing, ledger, embedded judge."""
