"""Prepare documents: sample, deduplicate, decontaminate, split, cut into chunks."""
