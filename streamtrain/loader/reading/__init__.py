"""Blocks read by threads into the slots of a pool, and gathered into batches."""
