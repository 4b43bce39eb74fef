"""streamtrain/optim."""
