"""Publish data sets and heads on the Hugging Face Hub."""
