"""Tables of columns: CSV, TSV and Parquet."""
