"""Proofs of what the guide promises."""
