"""Benchmarks, proofs, fault injection, examples and test data; `README.md` lists them."""
