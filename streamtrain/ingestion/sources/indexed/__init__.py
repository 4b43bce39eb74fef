"""Datasets as sources: those of streamtrain, and what torch reads by index or by batches."""
