"""Steps of the inference pipelines."""
