"""Samples of a dataset, read as they are asked for."""
