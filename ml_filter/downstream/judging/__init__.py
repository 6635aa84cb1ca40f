"""Evaluate a tuned model against its base: answers compared and rated by an LLM, held-out loss, ROUGE, lm-eval."""
