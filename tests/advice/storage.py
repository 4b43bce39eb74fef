"""Worlds of a dataset on disk: opened, damaged, restored, repaired and locked."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import streamtrain as st
from streamtrain.store.verify import verify
from streamtrain.store.writing import lock
from streamtrain.store.writing.lock import writer_lock
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls
from tests.advice.world import World, X, Y, world

_RESTORE = "restore it from a copy, or ingest again"


def harmed(w: World, harm: Callable[[Path], object]) -> None:
    """Harm a dataset: it is refused or found damaged, and right again where it is restored, or ingested again."""
    w.dataset("whole.zarr", block="64B", shard="512B", codec="lz4")
    shutil.copytree("whole.zarr", "d.zarr")
    harm(Path("d.zarr"))
    try:
        damage = verify("d.zarr", full=True).damage
    except st.DatasetError as error:
        w.note(error)
        damage = (error,)
    assert damage
    shutil.rmtree("d.zarr")
    shutil.copytree("whole.zarr", "d.zarr")
    assert verify("d.zarr").damage == ()
    st.ingest({"x": X, "y": Y}, "d.zarr", overwrite=True, progress=False)
    assert verify("d.zarr").damage == ()


def shard(folder: Path) -> Path:
    return sorted(path for path in (folder / "x" / "c").rglob("*") if path.is_file())[0]


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@world(f"store/shard.py:check_length: {_RESTORE}")
def a_shard_that_is_gone_or_short(w: World) -> None:
    harmed(w, lambda folder: shard(folder).unlink())
    shutil.rmtree("whole.zarr"), shutil.rmtree("d.zarr")
    harmed(w, lambda folder: shard(folder).write_bytes(b"short"))


@world(f"store/shard.py:damaged_block: {_RESTORE}")
def a_flipped_bit(w: World) -> None:
    harmed(w, lambda folder: flipped(shard(folder), 3))


@world(f"store/shard.py:parse_index: {_RESTORE}")
def a_flipped_bit_of_an_index(w: World) -> None:
    harmed(w, lambda folder: flipped(shard(folder), -6))


@world(f"store/shard.py:read_bounded: {_RESTORE}")
def a_root_that_is_too_large(w: World) -> None:
    harmed(w, lambda folder: (folder / "zarr.json").write_bytes(b" " * 10**8))


@world(f"store/shard.py:read_stored: {_RESTORE}")
def a_changed_checksum_table(w: World) -> None:
    table = "_streamtrain/crc32c/c/0/0"
    harmed(w, lambda folder: flipped(folder / table, 5))


@world(f"store/manifest.py:load_json: {_RESTORE}")
def a_root_that_is_no_json(w: World) -> None:
    harmed(w, lambda folder: (folder / "zarr.json").write_text("{"))


@world(f"store/root.py:read_root: {_RESTORE}")
def a_root_with_more_in_it(w: World) -> None:
    harmed(w, lambda folder: edited(folder / "zarr.json", more=1))


@world(f"store/dataset.py:_read_manifest: {_RESTORE}")
def another_manifest(w: World) -> None:
    harmed(w, lambda folder: edited(folder / "_streamtrain/manifest.json", more=1))


@world(f"store/manifest.py:_links: {_RESTORE}")
def a_link_for_a_folder(w: World) -> None:
    def harm(folder: Path) -> None:
        (folder / "x").rename(w.folder / "elsewhere")
        (folder / "x").symlink_to(w.folder / "elsewhere")

    harmed(w, harm)


@world(f"store/verify.py:_whole_damage: {_RESTORE}")
def shards_without_a_table_to_hold_them_to(w: World) -> None:
    def harm(folder: Path) -> None:
        flipped(folder / "_streamtrain/crc32c/c/0/0", 5)
        flipped(shard(folder), 3)

    harmed(w, harm)


_NO_LINKS = "put the file itself there (DVC: cache.type copy; git-annex: unlock), or restore it from a copy"


@world(f"store/shard.py:check_length: {_NO_LINKS}", f"store/shard.py:read_bounded: {_NO_LINKS}")
def links_for_stored_files(w: World) -> None:
    w.dataset()
    for file in (shard(Path("d.zarr")), Path("d.zarr/zarr.json")):
        Path("cache").mkdir(exist_ok=True)
        kept = file.rename(Path("cache") / file.name).resolve()
        file.symlink_to(kept)
        assert w.run("verify d.zarr") == 4
        with pytest.raises(st.DatasetError) as caught:
            st.open("d.zarr")[0:60]
        w.note(caught.value)
        file.unlink()
        shutil.copy(kept, file)
        w.works("verify d.zarr")


@world(
    "store/writing/staging.py:real_path: name a folder in it",
    "store/writing/staging.py:check_names: a shorter name",
    "system/refusals.py:_explained: a shorter path",
    "system/refusals.py:read_failure: a shorter path",
)
def names_that_leave_no_room(w: World) -> None:
    for name in ("/", "n" * 252, "n" * 240, "n/" * 2500):
        w.refused(st.ingest, {"x": X}, name, progress=False)
    st.ingest({"x": X}, w.folder / "d.zarr", progress=False)
    st.ingest({"x": X}, "n" * 230, progress=False)


@world(
    "system/files.py:_check_path: os.fsdecode(path)",
    'system/files.py:_check_path: a text or a Path, "d.zarr" say',
    "system/files.py:_check_path: check it",
    "system/files.py:temporary_beside: the path of a file",
)
def paths_that_are_none(w: World) -> None:
    w.dataset()
    for path in (b"d.zarr", 5, "d\0.zarr", "d\udfff\ud800.zarr"):
        w.refused(st.open, path)
    for right in (os.fsdecode(b"d.zarr"), "d.zarr", Path("d.zarr")):
        st.open(right)
    w.refused(Files().begin, Path("/"))
    Files().begin(Path("file")).abandon()


@world("store/writing/staging.py:_check_renames: copy it to a volume first, and give that path")
def a_dataset_of_an_image(w: World) -> None:
    w.dataset("image/d.zarr")
    before = Syscalls.rename

    def rename(self: Syscalls, old: Path, new: Path) -> None:
        if old.parent.name == "image":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        before(self, old, new)

    w.monkeypatch.setattr(Syscalls, "rename", rename)
    w.refused(w.dataset, "image/d.zarr", overwrite=True)
    shutil.copytree("image/d.zarr", "volume/d.zarr")
    w.dataset("volume/d.zarr", overwrite=True)
    w.dataset("volume/d.zarr", append=True)


@world("system/refusals.py:_open_files_explained: raise the limit: ulimit -n {}")
def too_many_open_files(w: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    w.dataset()
    before = Syscalls.open_file

    def open_file(self: Syscalls, path: Path, flags: int) -> int:
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < soft:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return before(self, path, flags)

    w.monkeypatch.setattr(Syscalls, "open_file", open_file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        fix = w.refused(st.open, "d.zarr")
        assert int(fix.rpartition(" ")[2]) > soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    st.open("d.zarr")


_FILE_SIZE = "system/refusals.py:_file_size_explained: "


@world(
    f"{_FILE_SIZE}raise the limit: ulimit -f $(ulimit -H -f)",
    f"{_FILE_SIZE}raise the limit where it is set (such as limits.conf)",
)
def limits_on_the_size_of_files(w: World) -> None:
    of_process = resource.RLIMIT_FSIZE
    soft, hard = resource.getrlimit(of_process)
    resource.setrlimit(of_process, (100, hard))
    try:
        fix = w.refused(w.dataset)
        with w.monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda limit: (100, 100))
            w.refused(w.dataset)
    finally:
        resource.setrlimit(of_process, (soft, hard))
    w.dataset()
    shell = f"ulimit -S -f 1; {fix.removeprefix('raise the limit: ')}; ulimit -S -f; ulimit -H -f"
    raised, allowed = subprocess.run(["sh", "-c", shell], check=True, capture_output=True, text=True).stdout.split()
    assert raised == allowed


@world(f"{_FILE_SIZE}choose another disk")
def a_disk_of_small_files(w: World) -> None:
    with w.monkeypatch.context() as patch:

        def writev(self: Syscalls, fd: int, buffers: object) -> int:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

        patch.setattr(Syscalls, "writev", writev)
        w.refused(w.dataset)
    w.dataset("other/d.zarr")


@world("store/verify.py:_foreign: remove it")
def a_file_that_nobody_wrote(w: World) -> None:
    w.dataset()
    Path("d.zarr/x/c/999").mkdir(parents=True)
    stray = Path("d.zarr/x/c/999/0")
    stray.write_text("mine")
    assert w.run("verify d.zarr") == 4
    stray.unlink()
    w.works("verify d.zarr")


@world(
    "store/root.py:read_root: give the directory ingest wrote",
    "store/root.py:_of_others: ingest its arrays into a dataset",
    "store/root.py:read_root: upgrade streamtrain (pip install -U streamtrain)",
    "store/root.py:_meant: did you mean {}?",
    "store/root.py:_meant: did you mean the raw file {}? Ingest it first, and open the result",
    "store/root.py:_meant: check the path",
    "store/root.py:check_folder: ingest it first, and open the result",
)
def paths_that_are_no_dataset(w: World) -> None:
    w.dataset("flights.zarr")
    Path("runs").mkdir(), Path("x.csv").write_text("a\n1\n")
    w.refuses("info runs")
    Path("plain").mkdir(), Path("plain/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    w.refuses("info plain")
    shutil.copytree("flights.zarr", "newer.zarr")
    root = json.loads(Path("newer.zarr/zarr.json").read_text())
    root["attributes"]["streamtrain"]["format"] = 99
    Path("newer.zarr/zarr.json").write_text(json.dumps(root))
    w.refuses("info newer.zarr")  # nothing newer is there to be installed
    assert "flights.zarr" in w.refuses("info fligths.zarr")
    w.refuses("info qqqq/zzzz")
    assert "'x.csv'" in w.refuses("info x")
    w.refused(st.open, "x.csv")
    w.refuses("info x.csv")
    w.works("ingest x.csv x.zarr")
    w.works("info x.zarr")
    w.works("info flights.zarr")


@world("store/reads/drawn.py:row_of: the last one is {}")
def a_sample_past_the_end(w: World) -> None:
    dataset = w.dataset()
    dataset[int(w.refused(dataset.__getitem__, 60).rpartition(" ")[2])]


@world("store/writing/lock.py:_of_dead_writer: wait for it to end, or end it")
def two_writers(w: World) -> None:
    w.monkeypatch.setattr(lock, "_POLLS", 1)
    with writer_lock(w.folder / "d.zarr", Files()):
        w.refused(w.dataset)
    w.dataset()


@world("store/writing/staging.py:_refuse: move them away, or choose another path")
def notes_inside_a_dataset(w: World) -> None:
    rows = {"x": X, "y": Y}
    Path("d.zarr/_streamtrain").mkdir(parents=True)
    Path("d.zarr/_streamtrain/notes.txt").write_text("mine")
    w.refused(st.ingest, rows, "d.zarr", overwrite=True, progress=False)
    Path("d.zarr/_streamtrain/notes.txt").rename("notes.txt")
    st.ingest(rows, "d.zarr", overwrite=True, progress=False)
    st.ingest(rows, "e.zarr", progress=False)
