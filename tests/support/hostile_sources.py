"""Raw files with hostile fields, in every format that is read; and what they hold where they still hold something."""

from __future__ import annotations

import gzip
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_values import NAMES, VALUES, Rng, joined, mutated_header, mutated_json, mutated_rows, pick

Oracle = Callable[[], dict[str, Any]]
"""The arrays that a dataset of the file must have, by another reader; it raises where that cannot say."""
Made = tuple[list[str], Oracle | None]
"""The words of an ingest before its destination, and what it must come to."""

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 3
_SHAPES = (
    *((), (0,), (20,), (60,), (20, 3), (3, 20), (20, 3, 1), (True,), (20, True), (-20, -3), (2**40, 3), (2**62, 2**62)),
    *((20, 3.0), ("20", 3), (None,), [20, 3], 60, (1,) * 40, (20, 0), (20, 3, 2**31), (60, 1), (10**30,)),
)
_DESCRS = (
    *(
        "<f4",
        ">f4",
        "<f8",
        "<i4",
        "|u1",
        "|b1",
        "<f2",
        "<c8",
        "<f16",
        "|O",
        "<U3",
        "|S4",
        "<M8[s]",
        "<m8",
        "|V4",
        "f4,f4",
    ),
    *(
        [("a", "<f4")],
        [("a", "<f4"), ("a", "<f4")],
        "",
        "x",
        None,
        4,
        "<i3",
        "<f4" * 99,
        ["<f4"],
        ("<f4", (3,)),
        "\x1b[2J",
    ),
)


def npy_bytes(header: dict[str, Any], data: bytes, rng: Rng | None = None) -> bytes:
    text = (
        repr(header) if rng is None or rng.integers(20) else json.dumps({str(k): str(v) for k, v in header.items()})
    ).encode("latin1", "replace")
    version = (1, 0) if rng is None else pick(rng, ((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 0)))
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    size = (
        len(text) if rng is None or rng.integers(20) else int(pick(rng, (0, 1, 65535, len(text) - 1, len(text) + 64)))
    )
    length = size.to_bytes(2, "little") if version == (1, 0) else size.to_bytes(4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npy_header(rng: Rng) -> bytes:
    whole = {"descr": "<f4", "fortran_order": False, "shape": (20, 3)}
    values = {"descr": _DESCRS, "fortran_order": (True, False, 0, 1, None, "True", [], -1), "shape": _SHAPES}
    header = mutated_header(whole, values, rng)
    match int(rng.integers(12)):
        case 0:
            header.pop(pick(rng, list(header)))
        case 1:
            header[pick(rng, NAMES)] = pick(rng, VALUES)
    data = X.tobytes() if rng.integers(4) else X.tobytes()[: int(rng.integers(241))] + bytes(int(rng.integers(9)))
    return npy_bytes(header, data, rng)


def npy(rng: Rng, folder: Path) -> Made:
    path = folder / "x.npy"
    path.write_bytes(npy_header(rng))
    return [str(path)], lambda: {"x": np.load(path)}


def npz(rng: Rng, folder: Path) -> Made:
    path = folder / "x.npz"
    members = {"x.npy": npy_bytes({"descr": "<f4", "fortran_order": False, "shape": (20, 3)}, X.tobytes())}
    members["y.npy"] = npy_bytes({"descr": "<i8", "fortran_order": False, "shape": (20,)}, Y.astype("<i8").tobytes())
    if rng.integers(2):
        members[pick(rng, list(members))] = npy_header(rng)
    if not rng.integers(3):
        name = pick(rng, (*NAMES, "x", "z.txt", "a/b", "y.npy.npy")).encode("utf-8", "replace").decode()
        members[f"{name}.npy" if rng.integers(2) else name] = members.pop(pick(rng, list(members)))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", pick(rng, (0, 8, 8, 12, 14))) as archive:
        warnings.simplefilter("ignore")
        for name, data in members.items():
            archive.writestr(name or "x", data)
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(3))):
        _change_zip_field(data, rng)
    path.write_bytes(data)
    return [str(path)], lambda: dict(np.load(path))


def _change_zip_field(data: bytearray, rng: Rng) -> None:
    kinds = (
        (b"PK\x03\x04", 4, (2, 2, 2, 2, 2, 4, 4, 4, 2, 2)),
        (b"PK\x01\x02", 4, (2,) * 6 + (4,) * 3 + (2,) * 5 + (4, 4)),
    )
    magic, start, sizes = pick(rng, (*kinds, (b"PK\x05\x06", 4, (2, 2, 2, 2, 4, 4, 2))))
    found = [place for place in range(len(data)) if data.startswith(magic, place)]
    if not found:
        return
    number = int(rng.integers(len(sizes)))
    place, size = pick(rng, found) + start + sum(sizes[:number]), sizes[number]
    old = int.from_bytes(data[place : place + size], "little")
    new = int(pick(rng, (0, 1, old + 1, max(0, old - 1), 0x800, 8, 9, 99, 2**15, 2**16 - 1, 2**31, 2**32 - 1)))
    data[place : place + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")
    if not rng.integers(4):
        name = data.find(b".npy", place)
        data[name - 1 : name] = pick(rng, (b"\xff", b"\x00", b"/", b"\x1b", b"x"))


def idx_bytes(rng: Rng) -> bytes:
    dims = [20, 3] if rng.integers(2) else [20]
    fields: dict[str, Any] = {"zero": 0, "code": 0x0D, "n": len(dims), "dims": dims}
    huge = ([2**32 - 1] * 3, [0], [0, 3], [20, 0], [2**31, 2**31], [20, 3, 1], [60], [1] * 40, [])
    values = {
        "zero": (0, 0, 1, 2**16 - 1),
        "code": tuple(range(0x07, 0x10)),
        "n": (0, 1, 2, 3, 40, 255),
        "dims": (dims, *huge),
    }
    changed = mutated_header(fields, values, rng)
    n = changed["n"] if rng.integers(2) else len(changed["dims"])
    head = struct.pack(">HBB", changed["zero"], changed["code"], n) + b"".join(
        struct.pack(">I", d) for d in changed["dims"]
    )
    body = X.astype(">f4").tobytes()[: 4 * int(np.prod(dims))]
    return head + (body if rng.integers(4) else body[: int(rng.integers(len(body) + 1))] + bytes(int(rng.integers(5))))


def idx(rng: Rng, folder: Path) -> Made:
    path = folder / "images-idx2-float"
    path.write_bytes(idx_bytes(rng))
    return [str(path)], None


def idx_gz(rng: Rng, folder: Path) -> Made:
    path = folder / "images-idx2-float.gz"
    data = bytearray(gzip.compress(idx_bytes(rng), mtime=0))
    if rng.integers(2):
        place = int(pick(rng, (2, 3, 8, 9, len(data) - 8, len(data) - 4, len(data) - 1)))
        data[place] = int(pick(rng, (0, 1, 4, 8, 16, 31, 127, 255)))
    match int(rng.integers(6)):
        case 0:
            data = data + data
        case 1:
            data += bytes(9)
        case 2:
            del data[int(rng.integers(len(data))) :]
    path.write_bytes(data)
    return [str(path)], None


ROWS = [["a", "b", "y"], *([str(i), f"{i / 7:.4f}", "abc"[i % 3]] for i in range(12))]


def csv(rng: Rng, folder: Path) -> Made:
    return _table(rng, folder / "t.csv", ",")


def tsv(rng: Rng, folder: Path) -> Made:
    return _table(rng, folder / "t.tsv", "\t")


def _table(rng: Rng, path: Path, delimiter: str) -> Made:
    path.write_bytes(joined(mutated_rows(ROWS, rng), delimiter, rng))
    words: tuple[list[str], ...] = ([], ["--label-column", "y"], ["--label-column", "y"], ["--columns", "a,b"])
    return [str(path), *pick(rng, words)], None


def parquet(rng: Rng, folder: Path) -> Made:
    import pyarrow as pa
    from pyarrow import parquet as pq

    n = 12
    kinds = (
        *(pa.array(X[:n, 0]), pa.array([None] * n, pa.null()), pa.array([1, None] * 6), pa.array([float("nan")] * n)),
        *(pa.array([[1.0]] * n), pa.array([{"a": 1}] * n), pa.array([b"\xff"] * n), pa.array(["a\x1b[2J", "b\nc"] * 6)),
        *(pa.array([2**63] * n, pa.uint64()), pa.array([True, False] * 6), pa.array([1.5] * n, pa.float16())),
        *(pa.array([1] * n, pa.timestamp("us")), pa.array([1] * n).cast(pa.decimal128(38, 2)), pa.array([""] * n)),
        *(pa.array(["a", "b"] * 6).dictionary_encode(), pa.array([1, 2] * 6).dictionary_encode(), pa.array(["q"] * n)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((n, 2), np.float32)),
    )
    arrays = [pick(rng, kinds) for _ in range(int(rng.integers(4)))] + [pa.array(list("abc" * 4))]
    names = [pick(rng, (*NAMES, "a", "b", "c")).encode("utf-8", "replace").decode() for _ in arrays[1:]] + ["y"]
    pandas = {"index_columns": ["a", {"kind": "range", "name": None, "start": 0}], "columns": [{"name": "a"}]}
    metadata = {b"pandas": mutated_json(pandas, rng)} if rng.integers(2) else {}
    path = folder / "t.parquet"
    table = pa.Table.from_arrays(arrays, names=names).replace_schema_metadata(metadata)
    options = {"compression": pick(rng, ("none", "snappy", "zstd")), "use_dictionary": bool(rng.integers(2))}
    pq.write_table(
        table, path, row_group_size=int(pick(rng, (1, 5, 12))), store_schema=bool(rng.integers(2)), **options
    )
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(3))):
        data[int(rng.integers(len(data)))] = int(pick(rng, (0, 1, 0x15, 0x80, 0xFF)))
    if not rng.integers(6):
        data[-8:-4] = struct.pack("<i", int(pick(rng, (0, -1, 2**31 - 1, 1, len(data)))))
    path.write_bytes(data)
    column, label = str(pick(rng, ("a", "b"))), ["--label-column", str(pick(rng, ("y", "y", "y", "a")))]
    roles = (
        *(["--drop-unlabelled"], ["--auto"], ["--na", "drop"], ["--categorical", column], ["--hash", f"{column}=9"]),
        *(["--dates", column], ["--weight-column", column], ["--id-column", column]),
    )
    return [str(path), *pick(rng, ([], label, label, [*label, *pick(rng, roles)]))], None


def raw(rng: Rng, folder: Path) -> Made:
    path = folder / "x.bin"
    path.write_bytes(X.tobytes()[: int(pick(rng, (240, 240, 0, 1, 239, 12)))])
    shape = pick(
        rng,
        ("3", "3", "", "0", "-3", "3,1", "1e3", "x", "9" * 30, "9" * 5000, "3,,1", "\u0663", "1," * 40, "True", "3.0"),
    )
    dtype = pick(
        rng,
        (
            "float32",
            "<f4",
            ">f4",
            "f8",
            "O",
            "U3",
            "V4",
            "M8[s]",
            "f4,f4",
            "(3,)f4",
            "",
            "x",
            "\x1b[2J",
            "c8",
            "f16",
            "0f4",
        ),
    )
    words = [str(path), f"--dtype={dtype}", f"--shape={shape}"]
    if not rng.integers(4):
        words.remove(pick(rng, words[1:]))
    is_plain = dtype in ("float32", "<f4") and shape == "3"
    return words, (lambda: {"x": np.fromfile(path, np.float32).reshape(-1, 3)}) if is_plain else None


SOURCES: dict[str, Callable[[Rng, Path], Made]] = {
    "npy": npy, "npz": npz, "idx": idx, "idx.gz": idx_gz, "csv": csv, "tsv": tsv, "parquet": parquet, "raw": raw,
}  # fmt: skip
