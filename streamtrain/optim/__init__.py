"""Optimization, from a loss to an update: gradients, optimizers, schedules and the three update rules."""
