"""Evaluate, compare and promote heads."""
