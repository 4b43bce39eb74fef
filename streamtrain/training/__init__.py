"""streamtrain/training."""
