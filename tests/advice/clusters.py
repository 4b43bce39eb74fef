"""Worlds of ingests on a cluster: what workers cannot read, and what one machine alone does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np

from streamtrain.ingestion.sources.base import Source
from streamtrain.store.layout import Field
from tests.advice.ingesting import SMALL, ingest
from tests.advice.world import World, X, Y, world

_PORTABLE = "ingestion/cluster/portable.py:"
_ON_ONE = "ingest on one machine: leave scheduler= out"
_FILES = "give a file, or a dask array that reads files"


class Locked(Source):
    """Rows behind a lock, which stays where it is."""

    fields = (Field(name="x", dtype=np.dtype("float32"), shape=X.shape[1:]),)
    n_samples, provenance, seekable = len(X), ({"format": "locked"},), True

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def where(self, row: int) -> str:
        return f"row {row}"

    def read(self, start: int, stop: int) -> Any:
        return {"x": X[start:stop].astype("f4")}


@world(
    f"{_PORTABLE}check_scheduler: scheduler={{}}, or scheduler='tcp://host:8786', say",
    f"{_PORTABLE}one_machine: {_ON_ONE}",
    f"{_PORTABLE}portable: {_ON_ONE}",
    f"{_PORTABLE}_portable: {_ON_ONE}",
    f"{_PORTABLE}portable: {_FILES}",
    f"{_PORTABLE}_portable: {_FILES}",
    f"{_PORTABLE}_place: {_FILES}",
)
def what_workers_cannot_read(w: World) -> None:
    there: dict[str, Any] = {"scheduler": "processes", "n_workers": 1}
    np.save("x.npy", np.tile(X, (9, 1)))
    Path("t.csv").write_text("a,b\n" + "1,2\n" * 9)
    w.refused(ingest, "x.npy", scheduler="here")
    w.refused(ingest, "x.npy", split={"val": 0.5}, **there)
    w.refused(ingest, "t.csv", **there)
    w.refused(ingest, Locked(), **there)
    ingest("x.npy", "split.zarr", split={"val": 0.5})
    ingest("t.csv", "t.zarr")
    ingest(Locked(), "locked.zarr")
    w.refused(ingest, {"x": X, "y": Y}, **there)
    w.refused(ingest, iter([{"x": X}]), **there)
    w.refused(ingest, {"x": da.from_array(np.zeros(2**22), chunks=2**20)}, **there)
    ingest("x.npy", **SMALL, **there)
