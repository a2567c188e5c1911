"""Scorers: one small class each; what a score says, its sign, scale and unit are in its text."""
