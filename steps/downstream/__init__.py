"""Steps that use a filtered corpus."""
