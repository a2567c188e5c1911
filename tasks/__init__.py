"""Prefect tasks: the stages of the core, lifted."""
