"""streamtrain/system."""
