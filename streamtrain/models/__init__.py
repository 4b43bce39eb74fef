"""streamtrain/models."""
