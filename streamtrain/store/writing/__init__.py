"""streamtrain/store/writing."""
