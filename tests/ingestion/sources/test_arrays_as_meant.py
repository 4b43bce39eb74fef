"""Arrays stored as they are meant: no masked value, no sparse matrix, and of a tensor its values."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import Rows, Source
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.store.layout import Field

FILL = -9999
Array = np.ndarray[Any, np.dtype[Any]]


class Sliced:
    """An array of another library whose slices are masked arrays, as those of netCDF4's variables are."""

    def __init__(self, values: Any) -> None:
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: slice) -> Any:
        return self._values[rows]


class Plugin(Source):
    """A source of somebody else's that hands its rows on as it has them."""

    n_samples, provenance, seekable = 4, (), False
    fields = (Field(name="x", dtype=np.dtype("f4"), shape=(2,)),)

    def __init__(self, values: Any) -> None:
        self._values = values

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        yield {"x": self._values}

    def where(self, row: int) -> str:
        return f"line {row}"


class SeekablePlugin(Plugin):
    seekable = True

    def read(self, start: int, stop: int) -> Rows:
        return {"x": self._values[start:stop]}


def masked_tensor(values: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        kept = torch.from_numpy(~np.ma.getmaskarray(values))
        return torch.masked.masked_tensor(torch.from_numpy(values.data.copy()), kept)


WAYS: dict[str, Callable[[Any], Any]] = {
    "an array": lambda x: x,
    "in a dict": lambda x: {"x": x},
    "a list of rows": lambda x: {"x": list(x)},
    "a list of lists": lambda x: {"x": [list(row) for row in x]},
    "slices": lambda x: {"x": Sliced(x)},
    "dask": lambda x: {"x": da.from_array(x, chunks=(2, 2))},
    "dask beside": lambda x: {"z": da.zeros((4, 1), chunks=1), "x": x},
    "an iterator": lambda x: iter([{"x": x[:1]}, {"x": x[1:]}]),
    "an iterator of lists": lambda x: [{"x": list(x[:3])}, {"x": list(x[3:])}],
    "a masked tensor": lambda x: {"x": masked_tensor(x)},
    "a plug-in": Plugin,
    "a seekable plug-in": SeekablePlugin,
}


@pytest.mark.filterwarnings("ignore:.*MaskedTensors:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_masked_value_is_never_stored(tmp_path: Path, way: str) -> None:
    x = np.ma.masked_equal(np.array([[1, 2], [3, 4], [5, FILL], [7, 8]], "f4"), FILL)
    with pytest.raises(InputError, match=r"(row|line) \d.*: a value is masked.*Fix: fill it in"):
        streamtrain.ingest(WAYS[way](x), tmp_path / "d.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*MaskedTensors:UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_masked_array_without_a_masked_value_is_data(tmp_path: Path, way: str) -> None:
    x = np.ma.masked_equal(np.arange(8, dtype="f4").reshape(4, 2), FILL)
    rows = streamtrain.ingest(WAYS[way](x), tmp_path / "d.zarr")[:]
    np.testing.assert_array_equal(rows["x"], x.data)
    assert type(rows["x"]) is np.ndarray


@pytest.mark.parametrize("give", [lambda y: y, lambda y: da.from_array(y, chunks=3), lambda y: Sliced(y)])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", "?"])
def test_masked_labels_are_refused(tmp_path: Path, give: Callable[[Any], Any], dtype: str) -> None:
    y = np.ma.masked_array(np.array([0, 1, 1, 0]), mask=[False, False, True, True]).astype(dtype)
    with pytest.raises(InputError, match=r"row 2.*masked"):
        streamtrain.ingest(np.zeros((4, 2)), tmp_path / "d.zarr", labels=give(y))
    with pytest.raises(InputError, match=r"row 2.*masked"):
        streamtrain.ingest({"x": np.zeros((4, 2)), "y": give(y)}, tmp_path / "d.zarr")


def test_rows_with_a_masked_value_are_not_appended(tmp_path: Path) -> None:
    x = np.arange(8.0).reshape(4, 2)
    streamtrain.ingest(x, tmp_path / "d.zarr")
    with pytest.raises(InputError, match=r"array 'x' row 3: a value is masked"):
        streamtrain.ingest(np.ma.masked_equal(x, 7), tmp_path / "d.zarr", append=True)
    assert len(streamtrain.open(tmp_path / "d.zarr")) == 4


@given(
    seed=st.integers(0, 999),
    dtype=st.sampled_from(["?", "u1", "i2", "i8", "f2", "f4", "f8", ">i4", ">f8"]),
    n_rows=st.integers(1, 9),
    shape=st.sampled_from([(), (1,), (3,), (2, 2)]),
    share=st.sampled_from([0.0, 0.1, 0.9]),
    way=st.sampled_from(["an array", "a list of rows", "slices", "an iterator"]),
)
def test_masked_or_stored(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dtype: str,
    n_rows: int,
    shape: tuple[int, ...],
    share: float,
    way: str,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (n_rows, *shape)).astype(dtype)
    mask = rng.random(values.shape) < share
    x, folder = np.ma.masked_array(values, mask), tmp_path_factory.mktemp("d")
    if way == "a list of rows" and not shape and dtype in ("f2", "?"):
        way = "an array"
    make = {**WAYS, "an iterator": lambda x: iter([{"x": x}])}[way]
    try:
        if mask.any():
            row = int(mask.reshape(n_rows, -1).any(axis=1).argmax())
            with pytest.raises(InputError, match=rf"row {row}\b.*a value is masked"):
                streamtrain.ingest(make(x), folder / "d.zarr")
        else:
            np.testing.assert_array_equal(streamtrain.ingest(make(x), folder / "d.zarr")[:]["x"], values)
    finally:
        shutil.rmtree(folder)


class Sparse:
    """What sparse matrices of every library have: a shape, a dtype, slices of their own kind, and a way out."""

    def __init__(self, values: Array) -> None:
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: slice) -> Sparse:
        return type(self)(self._values[rows])

    def toarray(self) -> Array:
        return self._values


class Coordinates:
    """A sparse matrix that has no rows to take, and whose __array__ is an error."""

    def __init__(self, values: Array) -> None:
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def todense(self) -> Array:
        return self._values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("cannot convert a sparse array to dense automatically")


class Closed:
    """Rows without a way to become an array, that do not say what they are."""

    shape, dtype = (6, 4), np.dtype("f4")

    def __getitem__(self, rows: slice) -> Closed:
        return self


SPARSE: dict[str, tuple[Callable[[Array], Any], str]] = {
    "by rows": (Sparse, r"x\.toarray\(\)"),
    "by coordinates": (Coordinates, r"x\.todense\(\)"),
    "torch, by coordinates": (lambda x: torch.from_numpy(x).to_sparse(), r"x\.to_dense\(\)"),
}


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize(
    "give",
    [
        lambda x: x,
        lambda x: {"x": x, "z": np.zeros(6)},
        lambda x: iter([{"x": x}]),
    ],
)
def test_a_sparse_matrix_is_refused_with_what_makes_it_dense(
    tmp_path: Path, kind: str, give: Callable[[Any], Any]
) -> None:
    make, remedy = SPARSE[kind]
    with pytest.raises(InputError, match=f"is sparse, and datasets are dense.*Fix: make it dense, {remedy}"):
        streamtrain.ingest(give(make(np.eye(6, 4, dtype="f4"))), tmp_path / "d.zarr")


def test_a_chunk_that_is_computed_to_a_sparse_matrix(tmp_path: Path) -> None:
    x = da.from_array(np.eye(6, 4, dtype="f4"), chunks=(3, 4))
    sparse = x.map_blocks(Sparse, dtype="f4", meta=np.zeros((0, 0), "f4"))
    with pytest.raises(InputError, match="array 'x': a Sparse is sparse, and datasets are dense"):
        streamtrain.ingest({"x": sparse}, tmp_path / "d.zarr")


def test_the_remedy_of_a_sparse_matrix_works(tmp_path: Path) -> None:
    dense, y = np.eye(2500, 3, dtype="f4"), np.arange(2500) % 2
    x = Sparse(dense)
    with pytest.raises(InputError) as caught:
        streamtrain.ingest({"x": x, "y": y}, tmp_path / "d.zarr")
    runs = str(caught.value).partition("at a time: ")[2].removesuffix(".")
    rows = streamtrain.ingest(eval(runs, {"x": x, "y": y, "range": range}), tmp_path / "d.zarr")[:]
    np.testing.assert_array_equal(rows["x"], dense)
    np.testing.assert_array_equal(rows["y"], y)


def test_what_becomes_no_array_is_refused_as_ours(tmp_path: Path) -> None:
    for source in ({"x": Closed()}, iter([{"x": Closed()}]), {"x": object()}, {"x": [np.zeros(2), np.zeros(3)]}):
        with pytest.raises(InputError, match=r"cannot become an array"):
            streamtrain.ingest(source, tmp_path / "d.zarr")


def tensors(x: Array) -> dict[str, Any]:
    plain = torch.from_numpy(x)
    return {
        "that requires gradients": plain.clone().requires_grad_(),
        "that is computed from one": plain.clone().requires_grad_() * 1,
        "a parameter": torch.nn.Parameter(plain.clone()),
        "lazily negated": torch.imag(torch.complex(torch.zeros_like(plain), -plain).conj()),
        "a view": torch.stack([plain, plain], 1)[:, 0].requires_grad_(),
    }


@pytest.mark.parametrize("kind", tensors(np.zeros((2, 2), "f4")))
@pytest.mark.parametrize(
    "give",
    [
        lambda x: x,
        lambda x: {"x": x},
        lambda x: {"x": list(x)},
        lambda x: [{"x": x[:2]}, {"x": x[2:]}],
        lambda x: {"x": x, "y": torch.zeros(len(x), requires_grad=True)},
    ],
)
def test_of_a_tensor_the_values_are_stored(tmp_path: Path, kind: str, give: Callable[[Any], Any]) -> None:
    x = np.arange(6, dtype="f4").reshape(3, 2)
    np.testing.assert_array_equal(streamtrain.ingest(give(tensors(x)[kind]), tmp_path / "d.zarr")[:]["x"], x)


def test_a_tensor_of_the_cpu_is_not_copied() -> None:
    x = torch.arange(6.0).reshape(3, 2).requires_grad_()
    source = open_source(x)
    assert np.shares_memory(next(source.iter_blocks(1000))["x"], x.detach().numpy())


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.float8_e5m2)])
def test_of_a_dtype_that_numpy_lacks_the_remedy_works(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"Fix: x\.float\(\), say"):
        streamtrain.ingest(tensor, tmp_path / "d.zarr")
    assert len(streamtrain.ingest(tensor.float(), tmp_path / "d.zarr")) == 3


class Series:
    """A column whose slices go by its labels, as those of pandas do where the labels are floats."""

    def __init__(self, values: Array) -> None:
        self._values, self.shape, self.dtype, self.iloc = values, values.shape, values.dtype, values

    def __getitem__(self, labels: slice) -> Array:
        return self._values[:0]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._values


@pytest.mark.parametrize("give", [lambda x: x, lambda x: {"x": x}, lambda x: iter([{"x": x}])])
def test_a_column_is_read_by_its_rows(tmp_path: Path, give: Callable[[Any], Any]) -> None:
    assert streamtrain.ingest(give(Series(np.arange(5.0))), tmp_path / "d.zarr")[:]["x"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("give", [lambda x: x, lambda x: {"x": x}, lambda x: iter([{"x": x}])])
@pytest.mark.parametrize("kind", ["table", "batch"])
def test_an_index_in_a_table_of_arrow_is_no_column(tmp_path: Path, give: Callable[[Any], Any], kind: str) -> None:
    facts = {b"pandas": b'{"index_columns": ["id"]}'}
    columns = {"a": [0.5, 1.5], "id": [7.0, 8.0], "b": [2.5, 3.5], "__index_level_0__": [5.0, 6.0]}
    table = pa.table(columns).replace_schema_metadata(facts)
    dataset = streamtrain.ingest(give(table if kind == "table" else table.to_batches()[0]), tmp_path / "d.zarr")
    assert dataset[:]["x"].tolist() == [[0.5, 2.5], [1.5, 3.5]]
    assert dataset.schema.columns["x"] == ("a", "b")
    alone = streamtrain.ingest(table.select(["id"]), tmp_path / "e.zarr")
    assert alone[:]["x"].tolist() == [[7.0], [8.0]]
