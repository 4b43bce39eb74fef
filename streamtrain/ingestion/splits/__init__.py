"""Splits: rows divided into train, val and the like, each a dataset of its own."""
