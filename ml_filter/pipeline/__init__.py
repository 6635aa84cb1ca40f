"""Configuration of whole pipelines, and what they will cost."""
