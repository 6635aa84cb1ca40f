"""One page about the whole loop: what was kept, whether it helps, what was made of it, what it cost."""
