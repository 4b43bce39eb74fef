"""Explain a machine or a run: `doctor`, `profile`, headspace, and the report of a run."""
