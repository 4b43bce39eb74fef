"""Loaders of images that images.py measures, in the same kind of workers: one a library."""
