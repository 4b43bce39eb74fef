"""The journal of an ingest: what was flushed is read back, and whatever else a crash leaves is not taken for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from streamtrain.errors import DatasetError, ResourceError
from streamtrain.store.layout import Field, Layout
from streamtrain.store.shard import StoredFile
from streamtrain.store.writing.journal import (
    JOURNAL,
    Journal,
    JournalHeader,
    begin_journal,
    continue_journal,
    read_journal,
)
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

X = Field(name="x", dtype=np.dtype("float32"), shape=(2, 3))
HEADER = JournalHeader(
    mode="append",
    base="abc",
    version="1",
    layout=Layout(fields=(X,), n_samples=100, block_rows=5, shard_blocks=2, codec="lz4"),
    classes=("a", "b"),
    sources=({"format": "npy", "path": "x\udcff.npy", "bytes": 3},),
    options={"block": None, "shard": 5},
)


def _stored(number: int) -> tuple[StoredFile, ...]:
    return (StoredFile(n_bytes=number, crc32c=number * 7),)


def _made(folder: Path, n_entries: int, system: Syscalls | None = None) -> None:
    (folder / "_streamtrain").mkdir(exist_ok=True)
    begin_journal(folder, HEADER, Files())
    journal = Journal(folder / JOURNAL, Files(system=system))
    try:
        for number in range(n_entries):
            journal.add(number, _stored(number))
    finally:
        journal.close()


def test_it_is_read_back(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None
    _made(tmp_path, 3)
    found = read_journal(tmp_path)
    assert found == (HEADER, {number: _stored(number) for number in range(3)})


def test_going_on_drops_what_does_not_hold_and_keeps_the_rest(tmp_path: Path) -> None:
    _made(tmp_path, 3)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b"0123 torn")
    journal = continue_journal(tmp_path, HEADER, {1: _stored(1)}, Files())
    journal.add(7, _stored(7))
    journal.close()
    assert journal.n_shards == 2
    assert read_journal(tmp_path) == (HEADER, {1: _stored(1), 7: _stored(7)})


@given(cut=some.integers(0, 400), flip=some.integers(0, 7), n_kept=some.integers(1, 400))
def test_no_damage_makes_an_entry(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, n_kept: int) -> None:
    folder = tmp_path_factory.mktemp("j")
    _made(folder, 4)
    data = bytearray((folder / JOURNAL).read_bytes())
    data[-1 - cut % len(data)] ^= 1 << flip
    (folder / JOURNAL).write_bytes(data[: max(1, len(data) - n_kept % 120)])
    true = {number: _stored(number) for number in range(4)}
    try:
        found = read_journal(folder)
    except DatasetError:
        return
    assert found is not None
    header, shards = found
    assert header == HEADER
    assert shards.items() <= true.items()


class Full(Syscalls):
    """Takes a few bytes of each write, and at some point none."""

    def __init__(self, n_writes: int) -> None:
        self.n_left = n_writes

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, memoryview(buffers[0])[:9])


def test_after_a_failed_entry_it_takes_no_more(tmp_path: Path) -> None:
    (tmp_path / "_streamtrain").mkdir()
    begin_journal(tmp_path, HEADER, Files())
    journal = Journal(tmp_path / JOURNAL, Files(system=Full(8)))
    journal.add(0, _stored(0))
    with pytest.raises(ResourceError, match="free some space"):
        journal.add(1, _stored(1))
    with pytest.raises(ResourceError, match="an earlier entry could not be written"):
        journal.add(2, _stored(2))
    assert journal.n_shards == 1
    found = read_journal(tmp_path)
    assert found is not None
    assert found[1] == {0: _stored(0)}
