"""Evaluate, compare and promote heads; compare annotators."""
