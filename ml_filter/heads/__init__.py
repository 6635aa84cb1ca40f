"""Encoders and the regression heads on them."""
