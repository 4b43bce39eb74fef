"""Files that predictions are written to, each whole or not at all."""
