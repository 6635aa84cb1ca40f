"""Score documents over HTTP."""
