"""Datasets on disk: plain, sharded Zarr v3 groups with a manifest and a checksum for every block.

`streamtrain.store.dataset.open_dataset` opens one; `streamtrain.store.writing.writer.DatasetWriter` makes one. Only
this package imports zarr.
"""
