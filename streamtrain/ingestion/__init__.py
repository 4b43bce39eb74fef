"""Ingestion: raw data becomes a committed dataset in one pass, within a memory budget, all or nothing.

Sources that can read any range are written one shard a task, side by side; the others are read once, in order, by the
calling thread, while earlier rows are encoded and written. Either way the rows are cut into the same parts and counted
in the same order, so the result is the same to the last byte for any number of workers and any budget.
"""
