"""The dataset on disk: a plain, sharded Zarr v3 group with a manifest and a checksum for every block.

`open_dataset` gives a `Dataset`; `DatasetWriter` makes one. This room alone imports zarr, and only when it writes
metadata or reads through it.
"""
