"""Models and losses: from a batch to a loss."""
