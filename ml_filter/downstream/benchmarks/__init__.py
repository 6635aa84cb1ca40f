"""Benchmarks by lm-eval on models of transformers: its own tasks, and multiple choice from tables."""
