"""The meaning of a dataset's numbers: names of columns and classes, and whether two datasets mean the same."""
