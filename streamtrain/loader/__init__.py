"""streamtrain/loader."""
