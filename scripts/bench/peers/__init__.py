"""The loaders that other_loaders.py measures: one worker a library, run by the Python of its own environment."""
