"""Splits written by a process that is killed: all or none open, and resuming gives the bytes of one that was not."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import streamtrain as st
from scripts.faults.stages import tree_of
from scripts.faults.syscall_faults import Failing, Killing, Watched
from scripts.faults.writing import in_child
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import RowFilter, Source, SourceOptions, TableOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.splits.ingest_splits import ingest_splits
from streamtrain.store.split_root import SplitRule
from streamtrain.store.writing.journal import Mode
from streamtrain.system.files import Files

N_POINTS: Final = 7
BY_ROW: Final = SplitRule(shares=(("val", 0.2), ("test", 0.2)))
BY_GROUP: Final = SplitRule(shares=(("val", 0.3),), by="g")


OF_TABLES: Final = SourceOptions(label_column="y", table=TableOptions(categorical=("city",), na="fill=mean"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One way of writing splits."""

    name: str
    mode: Mode
    source: str
    rule: SplitRule
    begins_with: str | None = None  # the source of the splits that are there before

    def run(self, folder: Path, system: Watched | None = None, *, resume: bool = False) -> None:
        """Write them in a folder."""
        self._ingest(folder, self.source, self.mode, system, resume=resume)

    def prepare(self, folder: Path) -> None:
        """Make what is there before."""
        folder.mkdir()
        if self.begins_with:
            self._ingest(folder, self.begins_with, "create")

    def _ingest(
        self, folder: Path, source: str, mode: Mode, system: Watched | None = None, *, resume: bool = False
    ) -> None:
        request = IngestRequest(
            memory=10**8, block_bytes=512, shard_bytes=2000, codec="lz4", n_workers=2, progress=False,
            options=SourceOptions(),
        )  # fmt: skip
        options = OF_TABLES if source.endswith("csv") else SourceOptions()

        def learning_from(rows: RowFilter | None) -> Source:
            return open_source(folder.parent / source, options=replace(options, learn_from=rows))

        ingest_splits(
            learning_from(None), folder / "d.zarr", replace(request, options=options), self.rule,
            files=Files(system=system), mode=mode, resume=resume, learns_anew=learning_from,
        )  # fmt: skip


ACTS: Final = (
    Act(name="create", mode="create", source="one.npz", rule=BY_ROW),
    Act(name="by group", mode="create", source="one.npz", rule=BY_GROUP),
    Act(name="read in any order", mode="create", source="x.npy", rule=BY_ROW),
    Act(name="categories", mode="create", source="t.csv", rule=BY_ROW),
    Act(name="categories by group", mode="create", source="t.csv", rule=BY_GROUP),
    Act(name="overwrite", mode="overwrite", source="two.npz", rule=BY_ROW, begins_with="one.npz"),
    Act(name="append", mode="append", source="two.npz", rule=BY_ROW, begins_with="one.npz"),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files to ingest."""
    folder = tmp_path_factory.mktemp("sources")
    chance = np.random.default_rng(0)
    for name, n_rows in (("one", 900), ("two", 400)):
        rows: dict[str, Any] = {"x": chance.integers(0, 50, (n_rows, 12), np.uint8)}
        np.savez_compressed(folder / name, **rows, y=chance.integers(0, 3, n_rows), g=np.arange(n_rows) % 200)
    city = np.array(["Rome", "Oslo", "", "Lima"])[chance.integers(0, 4, 900)]
    lines = [f"{n},{name},{n % 7 or ''},{n % 200},{n % 3}" for n, name in enumerate(city.tolist())]
    (folder / "t.csv").write_text("\n".join(["a,city,b,g,y", *lines, ""]))
    np.save(folder / "x.npy", chance.integers(0, 50, (900, 12), np.uint8))
    return folder


def _again(act: Act, sources: Path, place: str) -> Path:
    folder = sources / place
    shutil.rmtree(folder, ignore_errors=True)
    act.prepare(folder)
    return folder


def _undisturbed(act: Act, sources: Path) -> tuple[dict[str, bytes] | None, dict[str, bytes], int]:
    folder = _again(act, sources, "reference")
    old = tree_of(folder / "d.zarr") if act.begins_with else None
    watched = Watched()
    act.run(folder, watched)
    assert [entry.name for entry in folder.iterdir()] == ["d.zarr"]
    return old, tree_of(folder / "d.zarr"), watched.n_calls


def _check(act: Act, sources: Path, folder: Path, found: tuple[dict[str, bytes] | None, dict[str, bytes], int]) -> None:
    old, new, _ = found
    try:
        st.open(folder / "d.zarr", split="val")
    except st.DatasetError:
        assert old is None
    else:
        # The journal of what is tidied up after stays a moment.
        there = {key: data for key, data in tree_of(folder / "d.zarr").items() if not key.endswith("/journal")}
        assert there in (old, new)
    act.run(folder, resume=True)
    assert tree_of(folder / "d.zarr") == new
    assert [entry.name for entry in folder.iterdir()] == ["d.zarr"]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_a_killed_ingest_is_resumed_to_the_same_bytes(act: Act, sources: Path) -> None:
    found = _undisturbed(act, sources)
    chance = np.random.default_rng(1)
    for at in sorted(chance.choice(np.arange(1, found[2]), N_POINTS, replace=False).tolist()):
        folder = _again(act, sources, "killed")
        in_child(_killed(act, folder, at, is_torn=bool(at % 2)))
        _check(act, sources, folder, found)


def _killed(act: Act, folder: Path, at: int, *, is_torn: bool) -> Callable[[], str]:
    def run() -> str:
        act.run(folder, Killing(at, is_torn=is_torn))
        return ""

    return run


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_an_ingest_on_a_full_disk_is_resumed_to_the_same_bytes(act: Act, sources: Path) -> None:
    found = _undisturbed(act, sources)
    chance = np.random.default_rng(2)
    for at in sorted(chance.choice(np.arange(1, found[2]), N_POINTS, replace=False).tolist()):
        folder = _again(act, sources, "full")
        with suppress(st.ResourceError):  # tidying up after is not its work
            act.run(folder, Failing(at, errno.ENOSPC))
        _check(act, sources, folder, found)


def test_a_disk_that_is_full_while_files_are_begun_leaves_none_open(sources: Path) -> None:
    act = ACTS[0]
    for at in range(16, 32):
        with suppress(st.ResourceError):
            act.run(_again(act, sources, "begun"), Failing(at, errno.ENOSPC))
