"""The ways of writing a dataset that faults are tried on, and what each finds."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import zarr
from PIL import Image

import streamtrain as st
from scripts.faults.stand_ins import Machine, on
from scripts.faults.syscall_faults import Failing, Watched, WithoutExchange
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.hierarchies import over_disk
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.writing.journal import Mode, read_journal
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

N_ROWS: Final = 840
N_MORE: Final = 300
STAGES: Final = ("create", "stream", "overwrite", "overwrite in two renames", "append", "resume", "images", "over disk")

Tree = dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One way of writing a dataset: from a file (of a ``.npy`` the labels lie beside it), over what a template holds.

    ``exchanges`` says whether the system can exchange two names, ``resumes`` whether the disturbed run resumes another;
    ``machine`` is another one than this.
    """

    name: str
    mode: Mode
    source: Path
    template: Path
    exchanges: bool = True
    resumes: bool = False
    machine: Machine | None = None
    is_read: bool = False  # by others, until it is resumed
    memory: int = 10**9
    block_bytes: int = 512
    shard_bytes: int = 1000

    def act(self, folder: Path, system: Watched | None = None, *, resume: bool = False) -> None:
        """Write the dataset in a directory that `begin` made."""
        request = IngestRequest(
            memory=self.memory, block_bytes=self.block_bytes, shard_bytes=self.shard_bytes, codec="lz4", n_workers=2,
            progress=False, options=SourceOptions(),
        )  # fmt: skip
        files = Files(system=system if system is None or self.exchanges else WithoutExchange(system))
        labels = self.source.with_name("labels.npy") if self.source.suffix == ".npy" else None
        options = SourceOptions(memory=self.memory, n_workers=2, scratch=folder)
        with self._on_machine(folder, system, resume=resume), _rows_written_by(system):
            run_ingest(
                open_source(self.source, labels=labels, options=options),
                folder / "d.zarr",
                request,
                files=files,
                mode=self.mode,
                resume=resume or self.resumes,
            )

    @contextmanager
    def _on_machine(self, folder: Path, system: Watched | None, *, resume: bool) -> Iterator[None]:
        if self.machine is None:
            yield
            return
        if system is not None:
            self.machine.between = system.step
        self.machine.release(folder)
        if self.is_read and not resume:
            self.machine.read_by_others(folder)
        with on(self.machine):
            yield

    def begin(self, folder: Path) -> Path:
        """A new directory with what is there before."""
        shutil.copytree(self.template, folder)
        if self.machine is not None:
            self.machine.begin(folder)
        return folder


@contextmanager
def _rows_written_by(system: Watched | None) -> Iterator[None]:
    """Let rows that go over disk go through the same calls."""
    usual: Syscalls = vars(over_disk)["SYSTEM"]
    setattr(over_disk, "SYSTEM", system or usual)  # noqa: B010 - a name that it only imports
    try:
        yield
    finally:
        setattr(over_disk, "SYSTEM", usual)  # noqa: B010 - so too


def tree_of(path: Path) -> Tree:
    """Every file below a directory, with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def make_stages(folder: Path) -> dict[str, Stage]:
    """Describe the stages; `make_templates` writes what they find."""
    first, (more, other) = folder / "first.npy", (folder / f"{name}.npz" for name in ("more", "other"))
    empty, full, half = folder / "empty", folder / "full", folder / "half"
    stages = (
        Stage(name="create", mode="create", source=first, template=empty),
        Stage(name="stream", mode="create", source=folder / "first.npz", template=empty),
        Stage(name="overwrite", mode="overwrite", source=other, template=full),
        Stage(name="overwrite in two renames", mode="overwrite", source=other, template=full, exchanges=False),
        Stage(name="append", mode="append", source=more, template=full),
        Stage(name="resume", mode="create", source=first, template=half, resumes=True),
        Stage(
            name="images", mode="create", source=folder / "images", template=empty, block_bytes=2000, shard_bytes=4000
        ),
        Stage(
            name="over disk", mode="create", source=folder / "array", template=empty, memory=30 * 10**6,
            block_bytes=10**5, shard_bytes=10**6,
        ),
    )  # fmt: skip
    return {stage.name: stage for stage in stages}


def _make_images(folder: Path, n_images: int) -> None:
    chance = np.random.default_rng(1)
    for i in range(n_images):
        path = folder / "ab"[i % 2] / f"{i:03}.{('jpg', 'png')[i % 3 == 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (12 + i % 5, 14, 3), np.uint8)).save(path)


def make_templates(folder: Path, create: Stage, *, part: int = 1) -> str:
    """Write the sources, a dataset, and an interrupted one; of all that only one part of so many."""
    chance = np.random.default_rng(0)
    for name, n_rows in (("first", N_ROWS // part), ("more", N_MORE // part), ("other", N_ROWS // part)):
        rows = {"x": chance.integers(0, 50, (n_rows, 24), np.uint8), "y": chance.integers(0, 9, n_rows)}
        np.savez_compressed(folder / name, x=rows["x"], y=rows["y"])
        if name == "first":
            np.save(folder / name, rows["x"])
            np.save(folder / "labels", rows["y"])
    _make_images(folder / "images", 60 // part)
    # One row of chunks takes more than a quarter of that stage's memory.
    values = chance.integers(0, 50, (700, 50, 60)).astype(np.float32)
    zarr.create_array(folder / "array", data=values, chunks=(650, 7, 11), compressors=None)
    create.template.mkdir()
    create.act(create.begin(folder / "full"))
    with suppress(st.ResourceError):
        create.act(create.begin(folder / "half"), Failing(30 + 230 // part, errno.ENOSPC))
    found = read_journal(folder / "half" / "d.zarr")
    assert found is not None
    assert len(found[1]) > 5 // part, "the interrupted ingest has done something"
    return ""
