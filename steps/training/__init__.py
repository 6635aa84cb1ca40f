"""Steps of the training pipelines."""
