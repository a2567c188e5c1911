"""Stages put together: a run's configuration, its chain, its registry."""
