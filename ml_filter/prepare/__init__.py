"""Prepare documents: sample, deduplicate, decontaminate, split."""
