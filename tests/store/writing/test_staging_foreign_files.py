"""A user's own files in a dataset's folder: an append keeps them, and nothing ever removes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from forked_python import run_forked
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain.cli.main import main
from streamtrain.errors import UsageError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.store.verify import verify
from streamtrain.store.writing.staging import successor
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

X = np.arange(800, dtype="f4").reshape(400, 2)
SIZES: dict[str, Any] = {"block": "400B", "shard": "800B", "codec": "none", "progress": False}


def make(path: Path) -> Path:
    streamtrain.ingest({"x": X, "y": np.arange(400) % 3}, path, **SIZES)
    return path


def more() -> dict[str, Any]:
    return {"x": X[:50], "y": np.arange(50) % 3}


def write(path: Path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path) -> None:
    path.symlink_to("x/zarr.json")


def nothing_beside(path: Path) -> bool:
    return not [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


NOTES: dict[str, Callable[[Path], None]] = {
    "a note": lambda path: write(path / "README.txt"),
    "a hidden file": lambda path: write(path / ".notes"),
    "a note among a field's files": lambda path: write(path / "x/notes.md"),
    "a folder": lambda path: write(path / "runs/1/checkpoints/a.txt"),
    "a link": lambda path: link(path / "latest"),
    "a link that leads nowhere": lambda path: (path / "broken").symlink_to("/nowhere/at/all"),
    "an array of the user's own": lambda path: write(path / "mask/zarr.json") or write(path / "mask/c/0"),
    "a script among ours": lambda path: write(path / "_streamtrain/look.py"),
}


def found(path: Path) -> dict[str, str]:
    """All that is in a folder: links by where they lead, files by what is in them."""
    return {
        str(entry.relative_to(path)): str(entry.readlink()) if entry.is_symlink() else entry.read_bytes().hex()
        for entry in path.rglob("*")
        if entry.is_symlink() or entry.is_file()
    }


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("source", ["seekable", "in order"])
def test_an_append_keeps_what_is_not_ours(tmp_path: Path, note: str, source: str) -> None:
    path = make(tmp_path / "d.zarr")
    before = found(path)
    NOTES[note](path)
    own = {name: text for name, text in found(path).items() if name not in before}
    assert own
    for n_times in (1, 2):
        given = more() if source == "seekable" else iter([more()])
        dataset = streamtrain.ingest(given, path, append=True, progress=False)
        assert len(dataset) == 400 + 50 * n_times
        assert own.items() <= found(path).items()
        assert nothing_beside(path)
    assert verify(path, full=True).manifest.id == dataset.id
    assert main(["repair", str(path), "--remove"]) == 0
    assert own.items() <= found(path).items()


@pytest.mark.parametrize("note", NOTES)
def test_an_overwrite_is_refused_and_removes_nothing(tmp_path: Path, note: str) -> None:
    path = make(tmp_path / "d.zarr")
    NOTES[note](path)
    before = found(path)
    with pytest.raises(UsageError, match="files that no ingest wrote, and is not removed") as caught:
        streamtrain.ingest(more(), path, overwrite=True)
    assert caught.value.exit_code == 2
    assert found(path) == before


def test_an_array_that_zarr_put_beside_the_fields(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    group = zarr.open_group(str(path), mode="r+")
    group.create_array("extra", shape=(400,), chunks=(100,), dtype="f4")[:] = 7
    streamtrain.ingest(more(), path, append=True, progress=False)
    assert zarr.open_group(str(path), mode="r")["extra"][:].tolist() == [7] * 400  # type: ignore[index,union-attr]
    with pytest.raises(UsageError, match="extra"):
        streamtrain.ingest(more(), path, overwrite=True)


@pytest.mark.parametrize("place", ["x/c/7/note.txt", "_streamtrain/crc32c/c/0/0/note.txt"])
def test_what_stands_in_the_way_is_refused_at_once(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "d.zarr")
    parent = (path / place).parent
    if parent.is_file():
        parent.unlink()
    write(path / place)
    before = found(tmp_path)
    with pytest.raises((UsageError, OSError), match=r"which stand in the way: |crc32c"):
        streamtrain.ingest(more(), path, append=True)
    assert found(tmp_path) == before


class Dropping(Syscalls):
    """Somebody writes a note while the dataset is being replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exchange(self, one: Path, other: Path) -> None:
        write(self.path / "late.txt")
        super().exchange(one, other)


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_note_that_comes_in_the_last_moment(tmp_path: Path, mode: Any) -> None:
    path = make(tmp_path / "d.zarr")
    request = IngestRequest(
        memory=2**28,
        block_bytes=400,
        shard_bytes=800,
        codec="none",
        n_workers=1,
        progress=False,
        options=SourceOptions(),
    )
    run_ingest(open_source(more()), path, request, files=Files(system=Dropping(path)), mode=mode)
    assert (path / "late.txt").read_text() == "mine"
    assert len(streamtrain.open(path)) == (450 if mode == "append" else 50)
    assert nothing_beside(path)


def test_two_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    old = path.with_name(".d.zarr.old")
    make(old)
    write(old / "README.txt", "old")
    write(old / "only.txt", "old")
    write(path / "README.txt", "new")
    assert main(["repair", str(path), "--remove"]) == 2
    assert [(path / "README.txt").read_text(), (old / "README.txt").read_text()] == ["new", "old"]
    assert (path / "only.txt").read_text() == "old"


def test_what_an_earlier_version_left_in_the_replaced_folder_comes_back(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    write(make(path.with_name(".d.zarr.old")) / "README.txt")
    streamtrain.ingest(more(), path, append=True, progress=False)
    assert (path / "README.txt").read_text() == "mine"
    assert nothing_beside(path)


def test_a_folder_of_that_name_which_is_no_dataset_is_not_emptied(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    write(successor(path) / "letters.txt")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere/a.txt")
    with pytest.raises(UsageError, match=r"letters\.txt"):
        streamtrain.ingest(more(), path, append=True)
    assert (successor(path) / "letters.txt").exists()
    (successor(path) / "letters.txt").unlink()
    successor(path).rmdir()
    successor(path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a folder that an ingest made"):
        streamtrain.ingest(more(), path, append=True)
    assert (tmp_path / "elsewhere/a.txt").exists()


DYING = """
import os, sys
import numpy as np
from pathlib import Path
import streamtrain
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

ROWS = {"x": np.arange(100, dtype="f4").reshape(50, 2), "y": np.arange(50) % 3}
REQUEST = IngestRequest(memory=2**28, block_bytes=400, shard_bytes=64000, codec="none", n_workers=1, progress=False,
                        options=SourceOptions())
NOTES = ["README.txt", "x/note.txt", "runs/1/a.txt"]
n_left = 0


def dying(call):
    def made(self, *arguments):
        global n_left
        n_left -= 1
        if n_left < 0:
            os._exit(9)
        return call(self, *arguments)
    return made


class Dying(Syscalls):
    exchange, rename, unlink, mkdir, rmdir = map(
        dying, (Syscalls.exchange, Syscalls.rename, Syscalls.unlink, Syscalls.mkdir, Syscalls.rmdir)
    )


def killed(path, n_calls):
    global n_left
    n_left = n_calls
    child = os.fork()
    if not child:
        run_ingest(open_source(ROWS), path, REQUEST, files=Files(system=Dying()), mode="append")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


n_done, path = 0, Path(sys.argv[1], "0.zarr")
while True:
    streamtrain.ingest(ROWS, path, block="400B", codec="none", progress=False)
    for name in NOTES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    if not killed(path, n_done):
        break
    dataset = streamtrain.ingest(ROWS, path, append=True, progress=False)
    assert len(dataset) in (100, 150), (n_done, len(dataset))
    assert all((path / name).read_text() == "mine" for name in NOTES), n_done
    n_done, path = n_done + 3, path.with_name(f"{n_done + 3}.zarr")
print(n_done)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script ends processes of its own at a chosen call")
def test_killed_at_any_step_of_the_replacement_the_note_is_there_in_the_end(tmp_path: Path) -> None:
    done = run_forked(["-c", DYING, str(tmp_path)], timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
    assert nothing_beside(tmp_path / "0.zarr")


def test_an_interrupted_ingest_beside_a_note_is_resumed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    path = tmp_path / "d.zarr"

    class Full(Syscalls):
        n_left = 12

        def open(self, path: Path) -> int:
            self.n_left -= 1
            if self.n_left < 0:
                raise OSError(28, "No space left on device")
            return super().open(path)

    request = IngestRequest(
        memory=2**28,
        block_bytes=400,
        shard_bytes=800,
        codec="none",
        n_workers=1,
        progress=False,
        options=SourceOptions(),
    )
    with pytest.raises(OSError, match="space"):
        run_ingest(open_source(str(tmp_path / "x.npy")), path, request, files=Files(system=Full()))
    write(path / "README.txt")
    write(path / "x/.DS_Store")
    options = {"resume": True, "n_workers": 1, **SIZES}
    assert len(streamtrain.ingest(str(tmp_path / "x.npy"), path, **options)) == 400
    assert (path / "README.txt").read_text() == (path / "x/.DS_Store").read_text() == "mine"


NAME = st.text(st.sampled_from("ab.xyc07_"), min_size=1, max_size=5).filter(lambda name: set(name) - {"."})


@settings(max_examples=25)
@given(keys=st.lists(st.lists(NAME, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4, unique=True))
def test_whatever_is_put_there_is_kept_or_the_append_is_refused(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    path = make(tmp_path_factory.mktemp("d") / "d.zarr")
    before = found(path)
    for key in keys:
        try:
            write(path / key)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    own = {name: text for name, text in found(path).items() if name not in before}
    try:
        streamtrain.ingest(more(), path, append=True, progress=False)
    except UsageError:
        assert found(path) == before | own
    else:
        assert {name for name in own if name not in found(path)} == set()
