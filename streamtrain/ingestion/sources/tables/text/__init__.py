"""Delimited text: its encoding, its delimiter, its header."""
