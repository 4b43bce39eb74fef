"""Raw binary: what the caller says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source


def options(dtype: str | None, shape: tuple[int, ...] | None) -> SourceOptions:
    return SourceOptions(dtype=None if dtype is None else np.dtype(dtype), shape=shape)


@pytest.mark.parametrize("name", ["x.bin", "x.raw", "x.dat", "x.f32"])
@pytest.mark.parametrize(("dtype", "shape"), [("f4", (3, 2)), (">i2", (4,)), ("u1", ())])
def test_rows_as_described(
    tmp_path: Path,
    read_all: Callable[..., Any],
    check_ranges: Callable[..., None],
    name: str,
    dtype: str,
    shape: tuple[int, ...],
) -> None:
    x = np.random.default_rng(0).integers(0, 100, (30, *shape)).astype(dtype)
    x.tofile(tmp_path / name)
    source = open_source(tmp_path / name, options=options(dtype, shape))
    native = x.astype(x.dtype.newbyteorder("="))
    np.testing.assert_array_equal(read_all(source, 50)["x"], native, strict=True)
    check_ranges(source, {"x": native}, [(0, 30), (7, 7), (29, 30)])


@pytest.mark.parametrize(
    ("dtype", "shape", "missing"),
    [(None, None, "dtype and shape"), ("f4", None, "the shape"), (None, (3,), "the dtype")],
)
def test_what_is_missing_is_named(
    tmp_path: Path, dtype: str | None, shape: tuple[int, ...] | None, missing: str
) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(12))
    with pytest.raises(UsageError, match=missing) as caught:
        open_source(tmp_path / "x.bin", options=options(dtype, shape))
    assert caught.value.exit_code == 2


def test_a_broken_sample_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(26))
    with pytest.raises(InputError, match=r"26 bytes are not a whole number of samples: 2 are left over.*12 bytes"):
        open_source(tmp_path / "x.bin", options=options("f4", (3,)))


def test_fewer_bytes_than_a_sample(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match="not a whole number of samples"):
        open_source(tmp_path / "x.bin", options=options("f4", (3,)))


@pytest.mark.parametrize("shape", [(0,), (3, -1)])
def test_shapes_below_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(24))
    with pytest.raises(UsageError, match="axis below 1"):
        open_source(tmp_path / "x.bin", options=options("f4", shape))


@pytest.mark.parametrize("dtype", ["O", "c8", "S4"])
def test_dtypes_without_a_field(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(32))
    with pytest.raises(InputError, match="is not supported"):
        open_source(tmp_path / "x.bin", options=options(dtype, (1,)))
