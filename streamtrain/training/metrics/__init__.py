"""Metrics of a training by its task, from counts and sums that merge; the summaries of epochs."""
