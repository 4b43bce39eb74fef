"""The list of peers: what each needs, and the kind of promise it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["out of core", "memmap", "in memory"]
"""``out of core``: a library that reads from disk as it goes. ``memmap`` is listed apart: it is as fast as the page
cache is large. ``in memory`` holds all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the table.

    Parameters
    ----------
    name : str
        As people call it.
    kind : {"out of core", "memmap", "in memory"}
        What it is compared as.
    module : str
        Its worker; entries of one module share environment and stored rows.
    way : str
        Which of the worker's ways to use the library.
    packages : tuple of str
        What its environment needs beside torch; none means streamtrain's own environment.
    """

    name: str
    kind: Kind
    module: str
    way: str = ""
    packages: tuple[str, ...] = ()


ENTRIES: Final = (
    Entry(name="in-RAM loop", kind="in memory", module="arrays", way="loop in memory"),
    Entry(name="in-RAM TensorDataset", kind="in memory", module="arrays", way="TensorDataset"),
    Entry(name="memmap, batched", kind="memmap", module="arrays", way="memmap, batched"),
    Entry(name="memmap, DataLoader", kind="memmap", module="arrays", way="memmap, DataLoader"),
    Entry(name="zarr, DataLoader", kind="out of core", module="zarr_array"),
    Entry(name="LitData", kind="out of core", module="litdata", packages=("litdata",)),
    Entry(name="MosaicML Streaming", kind="out of core", module="mosaicml", packages=("mosaicml-streaming",)),
    Entry(name="WebDataset", kind="out of core", module="webdataset", packages=("webdataset",)),
    Entry(name="Grain", kind="out of core", module="grain", packages=("grain",)),
    Entry(name="HF datasets, map", kind="out of core", module="datasets", way="map", packages=("datasets",)),
    Entry(name="HF datasets, stream", kind="out of core", module="datasets", way="stream", packages=("datasets",)),
    Entry(name="scDataset over zarr", kind="out of core", module="scdataset", packages=("scDataset", "zarr")),
    Entry(name="LanceDB", kind="out of core", module="lance", packages=("pylance", "lancedb")),
)

BARS: Final[dict[str, dict[int | None, float]]] = {
    "out of core": {None: 25.0},
    "in memory": {3072: 3.5, 512: 3.5, 64: 4.0},
}
"""Least ratio of streamtrain to the best of a kind, by bytes of a row; None stands for every row size."""


def bar(kind: str, row_bytes: int) -> float | None:
    """The ratio to reach, where one is set."""
    bars = BARS.get(kind, {})
    return bars.get(row_bytes, bars.get(None))
