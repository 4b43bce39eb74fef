"""Training: epochs over a loader, with metrics, early stopping, checkpoints and resume."""
