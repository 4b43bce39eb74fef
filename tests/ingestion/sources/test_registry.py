"""From whatever the user gives to a source: names, folders, contents, plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import without_privileges

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions
from streamtrain.ingestion.sources.input_files import changed
from streamtrain.ingestion.sources.recognition import formats
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.store.layout import Field


def save(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        np.save(folder / name, np.full((2, 3), number))


def test_paths_as_text_or_path_or_list(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    save(tmp_path, "a.npy", "b.npy")
    assert open_source(str(tmp_path / "a.npy")).n_samples == 2
    whole = open_source([tmp_path / "b.npy", str(tmp_path / "a.npy")])
    assert read_all(whole)["x"][:, 0].tolist() == [1, 1, 0, 0]
    assert open_source((tmp_path / "a.npy",)).n_samples == 2


def test_a_folder_is_its_files_by_name(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    save(tmp_path, "b.npy", "a.npy")
    for hidden in (".DS_Store", "_SUCCESS"):
        (tmp_path / hidden).write_text("")
    assert read_all(open_source(tmp_path))["x"][:, 0].tolist() == [1, 1, 0, 0]


def test_a_source_is_one_already() -> None:
    source = open_source(np.zeros(3))
    assert open_source(source) is source
    assert isinstance(source, Source)


def test_a_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    save(tmp_path, "train.npy")
    with pytest.raises(
        InputError, match=r"trian\.npy: no such file or folder.*did you mean '.*train\.npy'\?"
    ) as caught:
        open_source(tmp_path / "trian.npy")
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match="check the path"):
        open_source(tmp_path / "nowhere" / "x.npy")


@pytest.mark.parametrize(
    ("path", "message"),
    [("a\0b.npy", "a zero byte"), ("x" * 300 + ".npy", "cannot be looked up"), ("", "several|folder|no ")],
)
def test_impossible_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, UsageError), match=message):
        open_source(path)


def test_empty_things(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files in the folder"):
        open_source(tmp_path)
    for name in ("x.npy", "x.csv", "x.parquet", "x.bin", "x.idx.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=r"the file is empty \(0 bytes\)"):
            open_source(tmp_path / name)


def test_a_folder_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(InputError, match="the folder holds folders: cats"):
        open_source(tmp_path)


def test_several_kinds(tmp_path: Path) -> None:
    save(tmp_path, "a.npy")
    (tmp_path / "b.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"several kinds.*a\.npy is npy; .*b\.csv is CSV"):
        open_source(tmp_path)


@pytest.mark.parametrize("make", [lambda path, _: path, lambda path, link: (link.symlink_to(path), link)[1]])
def test_the_same_file_twice(tmp_path: Path, make: Callable[[Path, Path], Path]) -> None:
    save(tmp_path, "a.npy")
    again = make(tmp_path / "a.npy", tmp_path / "b.npy")
    with pytest.raises(InputError, match="the same file"):
        open_source([tmp_path / "a.npy", again])
    with pytest.raises(InputError, match="the same file"):
        open_source(tmp_path / "a.npy", labels=again)


def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UsageError, match="pipe or device") as caught:
        open_source(tmp_path / "x.npy")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="standard input"):
        open_source("-")


def test_an_unreadable_file(tmp_path: Path) -> None:
    save(tmp_path, "x.npy")
    (tmp_path / "x.npy").chmod(0)
    with without_privileges(), pytest.raises(InputError, match=r"x\.npy: the file is not readable: Permission denied"):
        open_source(tmp_path / "x.npy")


def test_an_unknown_suffix_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "x.jpeg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    with pytest.raises(InputError, match=r"files named \*\.jpeg.*looks like a JPEG image. Known: \.npy \.npz \.bin"):
        open_source(tmp_path / "x.jpeg")
    (tmp_path / "data").write_bytes(b"123")
    with pytest.raises(InputError, match="no suffix"):
        open_source(tmp_path / "data")


CONTENTS = [
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
    (b"PK\x03\x04" + bytes(50), "a zip archive"),
    (b"PAR1" + bytes(50), "Parquet"),
    (b"\x80\x04\x95" + bytes(50), "a Python pickle"),
    (b"\x1f\x8b\x08" + bytes(50), "gzip data"),
    (b"SQLite format 3\0" + bytes(50), "a SQLite database"),
]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "x.parquet", "x-idx3-ubyte"])
@pytest.mark.parametrize(("head", "kind"), CONTENTS)
def test_a_content_other_than_the_name_says(tmp_path: Path, name: str, head: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(head)
    own = {"x.npz": "a zip archive", "x.parquet": "Parquet", "x-idx3-ubyte": "gzip data"}.get(name)
    message = "damaged" if kind == own else f"the name says .*, the content is {kind}"
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path / name)
    assert caught.value.exit_code == 3


def test_text_that_starts_like_a_format_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("PAR1,PAR2\n1,2\n")
    assert open_source(tmp_path / "x.csv").n_samples == 1


def test_raw_bytes_may_start_like_anything(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"GIF8")
    options = SourceOptions(dtype=np.dtype("u1"), shape=())
    assert open_source(tmp_path / "x.bin", options=options).n_samples == 4


def test_raw_labels_cannot_be_described(tmp_path: Path) -> None:
    (tmp_path / "y.bin").write_bytes(bytes(3))
    with pytest.raises(UsageError, match="labels cannot be raw binary"):
        open_source(np.zeros(3), labels=tmp_path / "y.bin")


class Plugin:
    """An installed entry point, as importlib.metadata gives it."""

    name = "ones"

    @staticmethod
    def load() -> Any:
        return lambda path, options: open_source(np.ones((len(path.read_bytes()), 2)))


def install(monkeypatch: pytest.MonkeyPatch, plugin: type[Plugin]) -> None:
    def entry_points(group: str, name: str | None = None) -> list[type[Plugin]]:
        assert group == "streamtrain.sources"
        return [plugin] if name in (None, "ones") else []

    monkeypatch.setattr(formats, "entry_points", entry_points)


def test_entry_points_read_suffixes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Plugin)
    (tmp_path / "x.ones").write_bytes(bytes(5))
    assert open_source(tmp_path / "x.ones").n_samples == 5
    (tmp_path / "x.twos").write_bytes(bytes(5))
    with pytest.raises(InputError, match=r"Known: .*\.ones"):
        open_source(tmp_path / "x.twos")


class OfBefore:
    """A source that has the methods and nothing else, which was enough before `Source` was a base class."""

    fields = (Field(name="x", dtype=np.dtype("f4"), shape=()),)
    n_samples, classes, provenance = 3, None, ()

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        yield self.read(0, 3)

    def read(self, start: int, stop: int) -> Rows:
        return {"x": np.arange(start, stop, dtype="f4")}

    def where(self, row: int) -> str:
        return f"row {row}"


class Undecided(OfBefore, Source):
    """A subclass of before, which did not say whether it is seekable."""


class Unreadable(Source):
    fields, provenance, seekable, n_samples = OfBefore.fields, (), True, None

    def where(self, row: int) -> str:
        return f"row {row}"


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        (OfBefore, "OfBefore lacks the base class Source"),
        (Undecided, "Undecided lacks seekable"),
        (Unreadable, "Unreadable lacks n_samples, read"),
    ],
)
def test_a_plug_in_of_before_is_told_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any], lacks: str
) -> None:
    class Old(Plugin):
        load = staticmethod(lambda: lambda path, options: kind())

    message = (
        f"{lacks}.*subclasses streamtrain.ingestion.sources.base.Source and sets seekable.*Fix: correct the plug-in"
    )
    with pytest.raises(UsageError, match=message):
        open_source(kind())
    install(monkeypatch, Old)
    (tmp_path / "x.ones").write_bytes(bytes(5))
    with pytest.raises(UsageError, match=f"x.ones: {message}"):
        open_source(tmp_path / "x.ones")


@pytest.mark.parametrize(
    ("name", "attribute"), [("SeekableSource", "seekable = True"), ("ChunkedSource", "chunk_bytes")]
)
def test_a_plug_in_that_imports_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, attribute: str
) -> None:
    class Old(Plugin):
        value = "old:probe"

        @staticmethod
        def load() -> Any:
            exec(f"from streamtrain.ingestion.sources.base import {name}", {})

    install(monkeypatch, Old)
    (tmp_path / "x.ones").write_bytes(bytes(5))
    with pytest.raises(UsageError, match=f"plug-in old:probe cannot be imported: .*{name} is gone.*{attribute}"):
        open_source(tmp_path / "x.ones")


class Chunked(Undecided):
    seekable, chunk_bytes = False, 700


def test_several_files_of_a_plug_in_are_read_as_it_reads_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Callable[..., Any]
) -> None:
    class InChunks(Plugin):
        load = staticmethod(lambda: lambda path, options: Chunked())

    install(monkeypatch, InChunks)
    for name in "ab":
        (tmp_path / f"{name}.ones").write_bytes(bytes(5))
    source = open_source(tmp_path)
    assert (source.n_samples, source.seekable, source.chunk_bytes) == (6, False, 700)
    assert read_all(source)["x"].tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(NotImplementedError, match="reads in order only"):
        Source.read(source, 0, 1)


def test_a_file_that_changed_is_named(tmp_path: Path) -> None:
    save(tmp_path, "x.npy")
    path = tmp_path / "x.npy"
    provenance = open_source(path).provenance
    assert changed(provenance) is None
    os.utime(path, ns=(0, 0))
    assert changed(provenance) == f"{path}: written to while it was read (its modification time changed)"
    path.write_bytes(b"123")
    assert "to 3 bytes" in str(changed(provenance))
    path.unlink()
    assert "gone while it was read" in str(changed(provenance))


def test_arrays_need_neither_torch_nor_zarr_nor_pyarrow_nor_dask() -> None:
    code = (
        "import sys, numpy as np; from streamtrain.ingestion.sources.registry import open_source;"
        "open_source(np.zeros(3));"
        "print(sorted({'torch', 'zarr', 'pyarrow', 'dask'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
