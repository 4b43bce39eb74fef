"""Benchmarks: a figure beside its limit, from the same run."""
