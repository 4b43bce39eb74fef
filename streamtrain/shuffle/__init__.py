"""The order of an epoch: a pure function of dataset, seed, epoch and shuffle parameters. NumPy only, no I/O."""
