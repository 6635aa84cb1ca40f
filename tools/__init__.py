"""Bodies of the poe tasks."""
