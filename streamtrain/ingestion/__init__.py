"""streamtrain/ingestion."""
