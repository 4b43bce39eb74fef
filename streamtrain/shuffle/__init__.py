"""streamtrain/shuffle."""
