"""A run's model read back, its predictions on any data, and the files that hold them."""
