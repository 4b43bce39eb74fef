"""WebDataset: samples in tar files of any of the three name forms, read where they lie, or refused by their member."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain as st
from streamtrain.errors import InputError, StreamtrainError, UsageError
from streamtrain.ingestion.sources.images.tar_members import tar_members
from tests.support.images import encoded, pixels_of

Files = Sequence[tuple[str, bytes]]


def _tar(path: Path, files: Files, form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def _samples(n: int = 6, start: int = 0) -> list[tuple[str, bytes]]:
    found = []
    for i in range(start, start + n):
        found += [(f"a/{i:04}.jpg", encoded(pixels_of(i))), (f"a/{i:04}.cls", b"%d" % (i % 3))]
    return found


def _ingest(*paths: Path, **options: Any) -> st.Dataset:
    dest = paths[0].parent / "d.zarr"
    return st.ingest(list(paths) if len(paths) > 1 else paths[0], dest, progress=False, overwrite=True, **options)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_form(form: int, tmp_path: Path) -> None:
    # Beyond the 100 bytes of a header's own name; ustar has it in two parts.
    folder = "/".join(["folder" * 5] * 4)
    files = [
        (f"{folder}/{i}.{suffix}", data) for i in range(3) for suffix, data in (("jpg", b"j%d" % i), ("cls", b"1"))
    ]
    path = _tar(tmp_path / "a.tar", files, form)
    assert [(member.name, member.n_bytes) for member in tar_members(path)] == [(n, len(data)) for n, data in files]
    if form != tarfile.USTAR_FORMAT:
        long = f"{'x' * 300}/ü.jpg"
        path = _tar(tmp_path / "b.tar", [(long, b"data")], form)
        (member,) = tar_members(path)
        assert (member.name, path.read_bytes()[member.offset :][: member.n_bytes]) == (long, b"data")


def test_samples_are_stored_as_they_are(tmp_path: Path) -> None:
    files = _samples()
    dataset = _ingest(_tar(tmp_path / "a.tar", files))
    assert dataset[:]["image"] == [data for name, data in files if name.endswith("jpg")]
    assert dataset[:]["y"].tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.manifest.sources[0]["format"] == "webdataset"
    assert not st.verify(dataset.path, full=True).damage


def test_several_tar_files_are_one_after_another(tmp_path: Path) -> None:
    paths = [_tar(tmp_path / f"{k}.tar", _samples(4, 4 * k)) for k in range(3)]
    dataset = _ingest(*paths, max_side=4096)
    assert dataset[:]["image"] == [data for name, data in _samples(12) if name.endswith("jpg")]


def test_labels_in_json_and_arrays(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    files = []
    for i in range(4):
        npy = io.BytesIO()
        np.save(npy, rows[i])
        label = json.dumps({"kind": ["cat", "dog"][i % 2], "weight": i / 2}).encode()
        files += [(f"{i}.x.npy", npy.getvalue()), (f"{i}.meta.json", label), (f"{i}.png", encoded(pixels_of(i), "PNG"))]
    path = _tar(tmp_path / "a.tar", files)
    dataset = _ingest(path, fields={"x": "x.npy", "y": "meta.json:kind", "w": "meta.json:weight"})
    assert (dataset[:]["x"] == rows).all()
    assert dataset.classes == ("cat", "dog")
    assert dataset[:]["y"].tolist() == [0, 1, 0, 1]
    assert dataset[:]["w"].tolist() == [0.0, 0.5, 1.0, 1.5]
    pictures = _ingest(path, fields={"picture": "png"}, store="decoded", size=8)
    assert pictures[:]["picture"].shape == (4, 8, 8, 3)


def _member(kind: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as out:
            info = tarfile.TarInfo("a.jpg")
            info.type, info.linkname = kind, "b.jpg"
            out.addfile(info)

    return write


def _cut(n_bytes: int) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(_tar(path, _samples()).read_bytes()[:-n_bytes]), None)[1]


def _with(files: Files) -> Callable[[Path], None]:
    return lambda path: (_tar(path, files), None)[1]


def _flipped(path: Path) -> None:
    data = bytearray(_tar(path, _samples()).read_bytes())
    data[130] ^= 1
    path.write_bytes(data)


def _joined(path: Path) -> None:
    path.write_bytes(2 * _tar(path, _samples()).read_bytes())


_JPEG = encoded(pixels_of(0))
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a key again": (_with([*_samples(2), ("a/0000.png", _JPEG), ("a/0000.cls", b"1")]), "comes again in member 4"),
    "another case": (_with([*_samples(2), ("A/0000.jpg", _JPEG), ("A/0000.cls", b"1")]), "differ in case only"),
    "no label": (_with([*_samples(2), ("b.jpg", _JPEG)]), "no member for field y"),
    "a label later": (_with([("b.jpg", _JPEG), *_samples(2)]), "before it have no member for field y"),
    "no image": (_with([("b.cls", b"1")]), "no member for field image"),
    "two images": (_with([("b.jpg", _JPEG), ("b.png", _JPEG), ("b.cls", b"1")]), "two members for field image"),
    "no samples": (_with([]), "no samples"),
    "cut in a member": (_cut(15_000), "truncated"),
    "without its end": (_cut(10_240), "truncated"),
    "a flipped bit": (_flipped, "does not match its checksum"),
    "joined": (_joined, "data follows the end"),
    "a link": (_member(tarfile.SYMTYPE), "a symbolic link"),
    "a hard link": (_member(tarfile.LNKTYPE), "a hard link"),
    "a device": (_member(tarfile.CHRTYPE), "a device"),
    "a pipe": (_member(tarfile.FIFOTYPE), "a pipe"),
    "sparse": (_member(tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "above": (_with([("../b.jpg", _JPEG)]), "leads out of its folder"),
    "absolute": (_with([("/b.jpg", _JPEG)]), "leads out of its folder"),
    "a pickle": (_with([*_samples(1), ("c.pkl", b"x")]), "can run any code"),
    "a bad image": (_with([("b.jpg", _JPEG[:-1]), ("b.cls", b"1")]), "its end is missing"),
    "mixed labels": (_with([*_samples(1), ("b.jpg", _JPEG), ("b.cls", b"cat")]), "text in some samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_webdataset_is_refused(name: str, tmp_path: Path) -> None:
    make, told = BAD[name]
    make(tmp_path / "a.tar")
    with pytest.raises(InputError, match=told) as caught:
        _ingest(tmp_path / "a.tar")
    assert str(tmp_path / "a.tar") in str(caught.value.where)
    assert caught.value.fix
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"y": "json:kind"}, "no member for field y"),
        ({"y": "cls:kind"}, "it is not JSON"),
        ({"x": "cls.npy"}, "no member"),
    ],
)
def test_fields_that_are_not_there(fields: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        _ingest(_tar(tmp_path / "a.tar", _samples()), fields=fields)


def test_options_that_say_nothing_to_a_tar(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", _samples())
    for options in ({"label_column": "y"}, {"dtype": "uint8"}, {"na": "drop"}):
        with pytest.raises(UsageError, match="does not apply"):
            _ingest(path, **options)


def test_mutated_headers_are_refused_or_read_rightly(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", _samples(3), tarfile.PAX_FORMAT)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    right = [(member.name, member.offset, member.n_bytes) for member in tar_members(path)]
    n_right = 0
    for _ in range(400):
        changed = bytearray(data)
        changed[int(rng.integers(0, 512))] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        try:
            found = [(member.name, member.offset, member.n_bytes) for member in tar_members(path)]
        except StreamtrainError:
            continue
        n_right += 1
        assert found == right
    assert n_right < 40


def test_a_bad_image_is_named_as_its_tar_file_names_it(tmp_path: Path) -> None:
    files = [*_samples(2), ("z/9.jpg", _JPEG[:-40]), ("z/9.cls", b"1")]
    _with(files)(tmp_path / "a.tar")
    with pytest.raises(InputError, match="truncated") as caught:
        st.ingest(tmp_path / "a.tar", tmp_path / "d", progress=False)
    assert str(caught.value.where) == f"{tmp_path / 'a.tar'} member 4, 'z/9.jpg'"
