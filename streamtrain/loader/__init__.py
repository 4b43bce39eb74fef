"""The loader: blocks read, checked and gathered into shuffled batches within a byte budget, onto any device."""
