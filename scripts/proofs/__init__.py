"""Proofs of what the README promises."""
