"""An ingest on a cluster: whole-shard tasks on dask.distributed."""
