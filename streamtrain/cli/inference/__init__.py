"""Commands that use the model of a run: evaluate, predict, export."""
