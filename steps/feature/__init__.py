"""Steps of the feature pipelines."""
