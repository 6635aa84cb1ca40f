"""HTML and plots, pure functions of results."""
