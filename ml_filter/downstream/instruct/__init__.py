"""Instruction data from documents: write, check, evolve, clean, rate, compare and publish instructions with answers."""
