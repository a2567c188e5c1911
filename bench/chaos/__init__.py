"""Faults of every kind, done to runs on toys, and what became of them."""
