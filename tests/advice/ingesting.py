"""Worlds of ingest: its destination, its budget, appending and resuming."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.errors import ResourceError, UsageError
from streamtrain.ingestion.sources.base import Source
from streamtrain.store.layout import Field
from streamtrain.system.syscalls import Syscalls
from tests.advice.world import World, X, Y, world

_APPEND = "ingestion/append.py:"
_REQUEST = "ingestion/request.py:"
_RESUME = "ingestion/resume.py:"
_INGEST = "ingestion/ingest.py:"
_WRITE = "ingestion/write_dataset.py:"
SMALL = {"block": "64B", "shard": "64B", "codec": "none"}


def ingest(source: Any, name: str = "d.zarr", **options: Any) -> st.Dataset:
    return st.ingest(source, name, progress=False, **options)


def cut_short(w: World, source: Any, name: str = "d.zarr", *, n_files: int = 9, **options: Any) -> None:
    """Ingest onto a disk that takes so many files and is full then."""
    left, before = [n_files], Syscalls.open

    def open_some(self: Syscalls, path: Path) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return before(self, path)

    with w.monkeypatch.context() as patch:
        patch.setattr(Syscalls, "open", open_some)
        with pytest.raises(ResourceError) as caught:
            ingest(source, name, **SMALL, **options)
    w.note(caught.value)


@world(f"{_APPEND}_check_fields: convert the source, or ingest it as a dataset of its own")
def other_dtypes_behind(w: World) -> None:
    w.dataset()
    more = {"x": X.astype("f8"), "y": Y}
    w.refused(ingest, more, append=True)
    ingest({**more, "x": X}, append=True)
    ingest(more, "own.zarr")


@world(f"{_APPEND}_codes: correct the labels, or ingest all sources again")
def other_classes_behind(w: World) -> None:
    Path("a.csv").write_text("a,y\n1,cat\n2,dog\n"), Path("b.csv").write_text("a,y\n1,bird\n")
    w.works("ingest a.csv d.zarr --label-column y")
    w.refuses("ingest b.csv d.zarr --label-column y --append")
    w.works("ingest a.csv b.csv d.zarr --label-column y --overwrite")
    Path("b.csv").write_text("a,y\n1,dog\n")
    w.works("ingest b.csv d.zarr --label-column y --append")


@world(
    f"{_WRITE}_check_finite: remove those rows, fill them in, or keep them as they are: nan='keep'",
    f"{_WRITE}_check_finite: remove those rows, or fill them in",
)
def values_that_are_not_finite(w: World) -> None:
    x = X.copy()
    x[3, 1] = np.nan
    w.refused(ingest, {"x": x, "y": Y})
    kept = np.isfinite(x).all(axis=1)
    ingest({"x": x[kept], "y": Y[kept]}, "removed.zarr")
    ingest({"x": np.nan_to_num(x), "y": Y}, "filled.zarr")
    ingest({"x": x, "y": Y}, "kept.zarr", nan="keep")
    w.refused(ingest, {"x": X, "y": np.where(Y, np.nan, 0.0)})


@world(f"{_INGEST}parse_mode: choose one of them")
def overwrite_and_append(w: World) -> None:
    w.dataset()
    w.refused(ingest, {"x": X, "y": Y}, overwrite=True, append=True)
    ingest({"x": X, "y": Y}, overwrite=True)
    ingest({"x": X, "y": Y}, append=True)


class Short(Source):
    """A plug-in's source that promises more rows than it gives, or others."""

    seekable = False
    provenance = ({"format": "short"},)
    fields = (Field(name="x", dtype=np.dtype("f4"), shape=(4,)),)

    def __init__(self, n_samples: int, rows: Any) -> None:
        self.n_samples = n_samples
        self._rows = rows

    def where(self, row: int) -> str:
        return f"row {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[dict[str, Any]]:
        yield {"x": self._rows}


@world(
    f"{_WRITE}checked_statistics: check the source",
    "ingestion/row_stream.py:check_rows: correct the source's reader",
    f"{_REQUEST}plan_ingest: give at least one row",
)
def sources_that_break_their_promise(w: World) -> None:
    w.refused(ingest, Short(70, X))
    w.refused(ingest, Short(60, X.astype("f8")))
    w.refused(ingest, Short(None, X[:0]))
    w.refused(ingest, Short(0, X[:0]))
    ingest(Short(60, X))


@world(f"{_REQUEST}solve_ingest: memory={{}}{{}}{{}}")
def too_little_memory(w: World) -> None:
    np.save("x.npy", np.zeros((40_000, 256), "f4"))
    w.typed("ingest x.npy d.zarr --memory 100KB")
    w.refuses("ingest x.npy e.zarr --memory 30MB --block 8MB")
    w.works("ingest x.npy e.zarr --memory 30MB --block 64KiB")


@world(
    f"{_REQUEST}source_options: dtype='float32' and shape=(28, 28), say",
    f"{_REQUEST}_parse_fields: fields={{'x': 'images', 'y': 'labels'}}, say",
    f"{_REQUEST}_parse_fields: leave it out, for every field under its own name",
    f"{_REQUEST}parse_classes: classes=10, or classes=['cat', 'dog'], say",
)
def options_of_the_wrong_kind(w: World) -> None:
    np.zeros((2, 28, 28), "f4").tofile("x.bin")
    w.followed(ingest, "x.bin", dtype="flaot", shape=(28, 28))
    w.refused(ingest, {"images": X, "labels": Y}, "e.zarr", fields="images")
    w.refused(ingest, {"images": X, "labels": Y}, "e.zarr", fields={})
    ingest({"images": X, "labels": Y}, "e.zarr", fields={"x": "images", "y": "labels"})
    ingest({"images": X, "labels": Y}, "f.zarr")
    w.refused(ingest, {"x": X, "y": Y}, "g.zarr", classes=0)
    ingest({"x": X, "y": Y}, "g.zarr", classes=10)
    Path("t.csv").write_text("a,y\n1,cat\n2,dog\n")
    w.works("ingest t.csv h.zarr --label-column y --classes cat,dog")


@world(
    f"{_REQUEST}check_disk_space: a larger shard, or another disk",
    f"{_REQUEST}check_disk_space: free some space, choose a codec that compresses, or another disk",
)
def a_disk_without_room(w: World) -> None:
    with w.monkeypatch.context() as patch:
        patch.setattr(Syscalls, "free", lambda self, folder: (10**9, 3))
        w.refused(ingest, {"x": X}, **SMALL)
        ingest({"x": X}, "large.zarr", codec="none", block="64B", shard="1MB")
        patch.setattr(Syscalls, "free", lambda self, folder: (100, 4))
        w.refused(ingest, {"x": X}, codec="none")
        ingest({"x": X}, codec="lz4")


@world(
    f"{_RESUME}check_destination: choose another path",
    f"{_RESUME}check_destination: ingest without append= first",
    f"{_RESUME}check_destination: overwrite=True or append=True, or choose another path",
)
def destinations_that_are_taken(w: World) -> None:
    np.save("x.npy", X)
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("mine")
    w.refuses("ingest x.npy notes")
    w.works("ingest x.npy other.zarr")
    w.typed("ingest x.npy d.zarr --append")
    w.typed("ingest x.npy d.zarr")
    w.works("ingest x.npy third.zarr")


@world(f"{_RESUME}check_outside: give a destination elsewhere")
def a_source_inside_its_destination(w: World) -> None:
    w.dataset()
    np.save("d.zarr/x.npy", X)
    w.refuses("ingest d.zarr/x.npy d.zarr --append")
    w.works("ingest d.zarr/x.npy e.zarr")


@world(
    f"{_RESUME}check_rereadable: leave resume= out; or write the rows to files first, and ingest those",
    f"{_RESUME}check_finished_ingest: leave resume= out, with overwrite=True; or choose another path",
)
def resuming_what_cannot_be_read_again(w: World) -> None:
    rows = {"x": X, "y": Y}
    w.refused(ingest, iter([rows]), resume=True)
    ingest(iter([rows]))
    np.save("x.npy", X), np.save("y.npy", Y)
    w.works("ingest x.npy files.zarr --labels y.npy --resume")
    w.refused(ingest, rows, resume=True)
    ingest(rows, overwrite=True)
    ingest(rows, "elsewhere.zarr")


@world(
    f"{_RESUME}_then_resume: {{}}, then the same ingest with resume=True: {{}}",
    "system/refusals.py:_explained: free some space",
    "store/writing/staging.py:incomplete: the same ingest with resume=True, or streamtrain.repair({})",
)
def an_ingest_cut_short(w: World) -> None:
    np.save("x.npy", X)
    cut_short(w, "x.npy")
    w.refused(st.open, "d.zarr")
    ingest("x.npy", resume=True, **SMALL)
    st.open("d.zarr")
    cut_short(w, "x.npy", "e.zarr")
    w.refused(ingest, "x.npy", "e.zarr", **SMALL)
    st.repair("e.zarr", remove=True)
    ingest("x.npy", "e.zarr", **SMALL)


@world(
    f"{_RESUME}_refuse_found: give what it was begun with; or ingest from the start with overwrite=True",
    f"{_RESUME}find_interrupted: give what it was begun with; or leave resume out, to begin again",
)
def resuming_another_ingest(w: World) -> None:
    np.save("x.npy", X)
    cut_short(w, "x.npy")
    w.refused(ingest, "x.npy", resume=True, **SMALL | {"block": "128B"})
    shutil.copytree("d.zarr", "e.zarr")
    ingest("x.npy", resume=True, **SMALL)
    ingest("x.npy", "e.zarr", overwrite=True, **SMALL | {"block": "128B"})
    np.save("more.npy", X)
    cut_short(w, "more.npy", append=True)
    w.refused(ingest, "more.npy", overwrite=True, resume=True, **SMALL)
    ingest("more.npy", overwrite=True, **SMALL)


@world(
    f"{_RESUME}missing_journal_error: streamtrain.repair({{}}), and ingest again",
    "store/writing/journal.py:_damaged: streamtrain.repair({}), and ingest again",
)
def journals_that_are_gone_or_damaged(w: World) -> None:
    np.save("x.npy", X)
    for harm in (Path.unlink, lambda path: path.write_bytes(b"{}\n" + path.read_bytes())):
        cut_short(w, "x.npy")
        harm(Path("d.zarr/_streamtrain/journal"))
        w.refused(ingest, "x.npy", resume=True, **SMALL)
        st.repair("d.zarr", remove=True)
        ingest("x.npy", **SMALL)
        shutil.rmtree("d.zarr")


@world("ingestion/write_shards.py:check_kept: give the same source; or ingest with overwrite, from the start")
def resuming_from_other_arrays(w: World) -> None:
    cut_short(w, {"x": X})
    w.refused(ingest, {"x": X + 1}, resume=True, **SMALL)
    shutil.copytree("d.zarr", "e.zarr")
    ingest({"x": X}, resume=True, **SMALL)
    ingest({"x": X + 1}, "e.zarr", overwrite=True, **SMALL)


@world(
    "system/files.py:local_path: give the path itself, /{}",
    "system/files.py:_download: {}; download it first: {}",
)
def urls(w: World) -> None:
    np.save("x.npy", X)
    place = Path("x.npy").resolve()
    fix = w.refuses(f"ingest file://{place} d.zarr")
    assert fix == f"give the path itself, {place}"
    w.works(f"ingest {place} d.zarr")
    w.refuses("ingest hf://bucket/x.npy e.zarr")
    fix = w.refuses("ingest s3://bucket/x.npy e.zarr")
    assert fix.endswith("; download it first: aws s3 cp s3://bucket/x.npy x.npy")
    w.works("ingest x.npy e.zarr")


@world("system/units.py:parse_bytes: {}, say", "system/units.py:_parse: {}, say")
def sizes_that_are_none(w: World) -> None:
    np.save("x.npy", X)
    w.typed("ingest x.npy d.zarr --memory 0MB")
    w.typed("ingest x.npy e.zarr --block many")


@world("system/files.py:Files.ensure_dir: choose another path")
def a_file_where_a_folder_is_needed(w: World) -> None:
    np.save("x.npy", X)
    Path("file").write_text("")
    w.refuses("ingest x.npy file/d.zarr")
    w.works("ingest x.npy folder/d.zarr")


@world("store/codec.py:check_encodable: codec='none', or a smaller block=")
def blocks_too_large_to_compress(w: World) -> None:
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, "u1"), (1, 2**31), (0, 0))
    w.refused(ingest, {"x": wide}, codec="lz4", block="4GB", memory="100GB")
    with pytest.raises((UsageError, ResourceError, st.errors.BudgetError)):  # the block is not too large any more
        ingest({"x": wide}, codec="none", block="4GB", memory="1MB")


@world("store/layout.py:Field.__post_init__: rename the field")
def a_field_without_a_usable_name(w: World) -> None:
    w.refused(Field, name="a b", dtype=np.dtype("f4"), shape=())
    Field(name="a_b", dtype=np.dtype("f4"), shape=())


@world("ingestion/sources/input_files.py:check_file: write the data to a file first")
def a_pipe(w: World) -> None:
    os.mkfifo("x.npy")
    w.refuses("ingest x.npy d.zarr")
    Path("x.npy").unlink()
    np.save("x.npy", X)
    w.works("ingest x.npy d.zarr")
