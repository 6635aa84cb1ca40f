"""Choose what to keep."""
