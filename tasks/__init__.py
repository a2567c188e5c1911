"""Thin Prefect tasks, named after the core module that they lift."""
