"""Processes of one machine that compute one result together, each on a device of its own."""
