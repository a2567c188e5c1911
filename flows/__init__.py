"""Prefect flows, their configuration and the command line."""
