"""Ingest under faults: any sequence of acts, some on a disk that becomes full, against a model."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import streamtrain
from streamtrain.errors import DatasetError, ResourceError, UsageError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.verify import find_leftovers, remove_leftovers
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

WHOLE = 10**6
"""As many calls succeed as there are: what is refused here is refused for what is there, whatever the disk does."""


class Failing(Syscalls):
    """Fails from a call on; the ones that only take away still work, as on a full disk."""

    def __init__(self, n_calls: int) -> None:
        self.n_left = n_calls

    def _count(self) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path: Path) -> int:
        self._count()
        return super().open(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def fsync(self, fd: int) -> None:
        self._count()
        super().fsync(fd)


class Acts(RuleBasedStateMachine):
    """Ingest, append, overwrite, resume and repair in any order, some on a disk that becomes full."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "data" / "d.zarr"
        self.rows: npt.NDArray[Any] | None = None
        self.pending: tuple[str, npt.NDArray[Any]] | None = None
        self.n_files = 0

    @initialize()
    def begin(self) -> None:
        (self.folder / "data").mkdir()

    def _act(self, mode: str, rows: npt.NDArray[Any], n_calls: int, *, resume: bool = False) -> None:
        """Do it, and note what must be there then."""
        request = IngestRequest(
            memory=10**8, block_bytes=256, shard_bytes=512, codec="none", n_workers=1, progress=False,
            options=SourceOptions(),
        )  # fmt: skip
        source = open_source({"x": rows})
        files = Files(system=Failing(n_calls))
        joined = mode == "append" and self.rows is not None
        new = np.concatenate([self.rows, rows]) if joined else rows  # type: ignore[list-item]
        try:
            run_ingest(source, self.path, request, files=files, mode=mode, resume=resume)  # type: ignore[arg-type]
        except ResourceError:
            if self._holds(new):
                # The disk failed after the two were swapped: the new dataset is there whole.
                self.rows, self.pending = new, None
                remove_leftovers(self.path, Files())
                return
            left = {item.path.name for item in find_leftovers(self.path)}
            self.pending = (mode, rows) if left & {"d.zarr", ".d.zarr.new"} else None
        else:
            self.rows, self.pending = new, None

    def _holds(self, rows: npt.NDArray[Any]) -> bool:
        try:
            return np.array_equal(streamtrain.open(self.path)[:]["x"], rows)
        except DatasetError:
            return False

    @rule(n_rows=some.integers(1, 90), n_calls=some.integers(0, 200), mode=some.sampled_from(["overwrite", "append"]))
    def write(self, n_rows: int, n_calls: int, mode: str) -> None:
        rows = np.random.default_rng(n_rows).integers(0, 99, (n_rows, 4))
        if self.rows is None and self.pending and mode == "append":
            with pytest.raises(DatasetError, match="incomplete"):
                self._act(mode, rows, WHOLE)
        elif self.rows is None and mode == "append":
            with pytest.raises(DatasetError, match="no such dataset"):
                self._act(mode, rows, WHOLE)
        else:
            self._act(mode, rows, n_calls)

    @rule(n_rows=some.integers(1, 90), n_calls=some.integers(0, 200))
    def create(self, n_rows: int, n_calls: int) -> None:
        rows = np.random.default_rng(n_rows).integers(0, 99, (n_rows, 4))
        if self.rows is not None:
            with pytest.raises(UsageError, match="exists there already"):
                self._act("create", rows, WHOLE)
        elif self.pending is not None:
            with pytest.raises(DatasetError, match="incomplete"):
                self._act("create", rows, WHOLE)
        else:
            self._act("create", rows, n_calls)

    @precondition(lambda self: self.pending is not None)
    @rule(n_calls=some.integers(0, 200))
    def resume(self, n_calls: int) -> None:
        assert self.pending is not None
        mode, rows = self.pending
        self._act(mode, rows, n_calls, resume=True)

    @precondition(lambda self: self.pending is not None)
    @rule()
    def resume_something_else(self) -> None:
        assert self.pending is not None
        mode, rows = self.pending
        both = np.concatenate([rows, rows])
        if any((self.folder / "data").rglob("journal")):
            with pytest.raises(DatasetError, match="differently"):
                self._act(mode, both, WHOLE, resume=True)
        else:
            # It was interrupted before anything of it was noted: this begins it anew.
            self._act(mode, both, WHOLE, resume=True)

    @rule()
    def repair(self) -> None:
        remove_leftovers(self.path, Files())
        self.pending = None
        assert not find_leftovers(self.path)

    @invariant()
    def what_opens_is_the_model(self) -> None:
        if self.rows is None:
            with pytest.raises(DatasetError):
                streamtrain.open(self.path)
        else:
            np.testing.assert_array_equal(streamtrain.open(self.path)[:]["x"], self.rows)
        names = {entry.name for entry in (self.folder / "data").iterdir()}
        expected = {"d.zarr"} if self.rows is not None or self.pending else set()
        assert names - {".d.zarr.new"} <= expected
        assert self.pending or names <= {"d.zarr"}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


class TestActs(Acts.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=12, stateful_step_count=12, deadline=None, derandomize=True)
