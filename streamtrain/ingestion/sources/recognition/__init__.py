"""Files by their content: the kind of a file, and what reads it where nothing here does."""
