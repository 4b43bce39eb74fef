"""Examples: programs of one page that make their own data and print what came of it."""
