"""Output for people who watch: progress bars, and HTML for notebooks."""
