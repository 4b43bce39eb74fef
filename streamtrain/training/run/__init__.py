"""A run in its folder: what it is, its checkpoints, and how it is saved and resumed."""
