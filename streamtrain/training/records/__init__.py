"""Epochs as records: history, scores.json, metrics.jsonl."""
