"""streamtrain/ingestion/sources/tables."""
