"""The efficacy benchmark: every scorer and every fair baseline, as a table."""
