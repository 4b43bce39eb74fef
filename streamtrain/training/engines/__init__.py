"""Other people's trainers: what they need of a loader beside its batches."""
