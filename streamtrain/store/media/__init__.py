"""Samples that are the bytes of image files: packed into blocks, decoded, measured."""
