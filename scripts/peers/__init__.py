"""The peers of bench_peers.py: one small worker a library, run by the Python of that library's own environment."""
