"""Data for the demo, the benchmarks and the proofs."""
