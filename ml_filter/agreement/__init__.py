"""From votes to scores."""
