"""The dataset on disk: a plain, sharded Zarr v3 group with a manifest and a checksum for every block.

`open_dataset` gives a `Dataset`; `DatasetWriter` makes one. This room alone imports zarr, and only when it writes
metadata or reads through it.
"""

from streamtrain.store.dataset import Dataset
from streamtrain.store.manifest import Manifest
from streamtrain.store.opening import open_dataset

__all__ = ["Dataset", "Manifest", "open_dataset"]
