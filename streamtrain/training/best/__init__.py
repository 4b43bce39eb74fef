"""The best epoch of a run: what says so, how it is kept, and how it is found again."""
