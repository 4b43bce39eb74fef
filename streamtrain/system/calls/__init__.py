"""Calls of the public functions: their arguments' names, and the errors they raise."""
