"""Data sets for others: labelled, split, with a data card, on the Hub."""
