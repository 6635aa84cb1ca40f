"""ZenML steps: read artifacts, call one domain function, log metadata."""
