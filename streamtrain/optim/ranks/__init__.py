"""The ranks of a training: what they exchange, and how each knows whether another is still at work."""
