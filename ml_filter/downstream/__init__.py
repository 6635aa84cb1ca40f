"""What a filtered corpus is used for: proof that the filter helps, instruction data, fine-tuning, retrieval."""
