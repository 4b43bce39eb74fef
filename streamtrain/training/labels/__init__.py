"""Labels of the training data."""
