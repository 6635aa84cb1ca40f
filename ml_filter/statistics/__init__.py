"""Agreement figures, intervals and decision metrics."""
