"""HDF5 files that are refused, each with what to do instead: by structure, by content, and for security."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import streamtrain as st
from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source

X = np.arange(60.0).reshape(20, 3)


def refused(path: Path, name: str = "/x", **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        open_source(path, options=SourceOptions(fields={"x": name}, **options))
    assert caught.value.exit_code == 3
    assert caught.value.fix
    return caught.value


def make(path: Path, fill: Callable[[h5py.File], Any], **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


@pytest.mark.parametrize(
    ("fill", "name", "what", "fix"),
    [
        (lambda f: f.create_dataset("images", data=X), "/image", "there is no array '/image'", "'/images'"),
        (lambda f: f.create_dataset("a/images", data=X), "images", "there is no array '/images'", "'/a/images'"),
        (lambda f: f.create_dataset("g/x", data=X), "/g", "it is a group", "name one of its arrays: /g/x"),
        (lambda f: f.create_dataset("x", data=["a", "b"]), "/x", "it holds text", "a number for each text"),
        (lambda f: f.create_dataset("x", data=np.array([b"a"])), "/x", "it holds text", "number"),
        (lambda f: f.create_dataset("x", data=np.zeros(3, [("a", "f4")])), "/x", "compound: a", "member"),
        (lambda f: f.create_dataset("x", data=np.zeros(3, "c8")), "/x", "its numbers are complex", "imaginary"),
        (lambda f: f.create_dataset("x", (3,), h5py.vlen_dtype("f4")), "/x", "different lengths", "pad"),
        (lambda f: f.create_dataset("x", (3,), "V4"), "/x", "opaque", "numbers"),
        (lambda f: f.create_dataset("x", (3,), h5py.ref_dtype), "/x", "references", "name what"),
        (lambda f: f.create_dataset("x", (3,), np.dtype(("f4", (2,)))), "/x", "elements are arrays", "axes"),
        (lambda f: f.create_dataset("x", data=3.0), "/x", "a single value", "first axis"),
        (lambda f: f.create_dataset("x", (0, 3), "f4"), "/x", "holds no samples", "leave it out"),
    ],
)
def test_arrays_that_are_no_numbers(
    tmp_path: Path, fill: Callable[[h5py.File], Any], name: str, what: str, fix: str
) -> None:
    error = refused(make(tmp_path / "a.h5", fill), name)
    assert what in error.what
    assert fix in str(error.fix)


def test_arrays_of_two_lengths(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda f: f.update({"x": X, "y": X[:5]}))
    with pytest.raises(InputError, match="differ in rows: /x 20, /y 5"):
        open_source(path, options=SourceOptions(fields={"x": "/x", "y": "/y"}))


def external(file: h5py.File) -> None:
    file["link"] = h5py.ExternalLink("/etc/passwd", "/x")
    file["through"] = h5py.SoftLink("/link/x")
    file["round"] = h5py.SoftLink("/round")
    file["dangling"] = h5py.SoftLink("/nothing")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((20, 3), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (20, 3))
    file.create_virtual_dataset("x", layout)


def beside(file: h5py.File) -> None:
    file.create_dataset("x", (20, 3), "f8", external=[("/etc/passwd", 0, 480)])


def test_nothing_leads_out_of_the_file(tmp_path: Path) -> None:
    links = make(tmp_path / "links.h5", external)
    for name in ("/link", "/link/x", "/through"):
        assert "external link, to '/etc/passwd'" in refused(links, name).what
    for name in ("/round", "/dangling"):
        assert "there is no array" in refused(links, name).what
    for fill, what in ((virtual, "it is virtual"), (beside, "another file")):
        path = make(tmp_path / f"{fill.__name__}.h5", fill)
        assert what in refused(path).what
        # It is not left out in silence either.
        with pytest.raises(InputError, match=what):
            open_source(path)


def test_a_filter_that_nobody_here_has(tmp_path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((5, 3))
    plist.set_filter(32013, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((20, 3))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, space, plist)
    error = refused(tmp_path / "a.h5")
    assert "filter 32013 (zfp)" in error.what
    assert "hdf5plugin" in str(error.fix)


def test_a_file_that_is_written_truncated_or_none(tmp_path: Path) -> None:
    writer = h5py.File(tmp_path / "w.h5", "w", libver="latest")
    writer["x"] = X
    writer.swmr_mode = True
    copy = tmp_path / "copy.h5"
    copy.write_bytes((tmp_path / "w.h5").read_bytes())
    assert "a program is writing the file" in refused(copy).what
    writer.close()
    whole = (tmp_path / "w.h5").read_bytes()
    copy.write_bytes(whole[:-100])
    assert "truncated" in refused(copy).what
    copy.write_bytes(whole[:8] + bytes(99))
    assert "not readable as HDF5" in refused(copy).what
    copy.write_bytes(b"something else")
    error = refused(copy)
    assert "does not begin like one" in error.what
    assert error.why is None


def test_a_chunk_that_is_damaged_short_or_beyond_the_end(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("x", data=X, chunks=(5, 3), compression="gzip", fletcher32=True)

    path = make(tmp_path / "a.h5", fill)
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(2)
    data = bytearray(path.read_bytes())
    data[place.byte_offset + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.h5 /x chunk \(2, 0\): a chunk does not decode") as caught:
        st.ingest(path, tmp_path / "d.zarr", progress=False)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "d.zarr").exists()


def test_h5py_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.h5", lambda f: f.create_dataset("x", data=X))
    imported = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'")
        return imported(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    error = refused(path)
    assert error.fix == "pip install 'streamtrain[hdf5]'"


def test_samples_are_the_first_axis(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda f: f.create_dataset("x", data=X))
    assert "transpose it first" in str(refused(path, sample_axis=1).fix)


def test_a_field_cannot_be_a_date_that_is_none(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda f: f.create_dataset("x", data=X))
    with pytest.raises(UsageError, match="dates names 'day', which is no field"):
        st.ingest(path, tmp_path / "d.zarr", dates="day")
    with pytest.raises(InputError, match="it has no units of time"):
        st.ingest(path, tmp_path / "d.zarr", dates="x")
