"""Splits of every kind of source: each row in exactly one, equal values in one, the same ones again."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dask.array
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as some

import streamtrain as st
from streamtrain.ingestion.splits.rule import value_word
from streamtrain.store.split_root import read_splits

pytestmark = pytest.mark.filterwarnings("ignore::streamtrain.StreamtrainWarning")

N: Final = 600
SPLIT: Final = {"val": 0.2, "test": 0.1}
X: Final = np.arange(N * 2, dtype=np.float64).reshape(N, 2)
Y: Final = np.arange(N) % 3
G: Final = np.arange(N) * 7 % 60
FEW: Final = 26
NAMES: Final = ("train", "val", "test")


def rows_of(path: Path, field: str = "x") -> dict[str, npt.NDArray[Any]]:
    return {name: st.open(path, split=name)[:][field] for name in NAMES}


def plain(values: list[Any], seed: int = 0) -> list[str]:
    """The split of each value, by Python alone."""
    found = []
    for value in values:
        word = value_word(value, seed)
        found.append("val" if word * 10 < 2 * 2**64 else "test" if word * 10 < 3 * 2**64 else "train")
    return found


def _idx(path: Path, rows: npt.NDArray[np.uint8]) -> None:
    data = bytes([0, 0, 8, rows.ndim]) + np.array(rows.shape, ">i4").tobytes() + rows.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def sources(folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every kind of source, of the same rows."""
    table = pa.table({"a": X[:, 0], "b": X[:, 1], "label": Y})
    pa.csv.write_csv(table, folder / "t.csv")
    pa.csv.write_csv(table, folder / "t.tsv", pa.csv.WriteOptions(delimiter="\t"))
    pa.parquet.write_table(table, folder / "t.parquet", row_group_size=100)
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    np.savez(folder / "xy.npz", x=X, y=Y)
    X.tofile(folder / "x.bin")
    of_table = {"label_column": "label"}
    yield "csv", folder / "t.csv", of_table
    yield "tsv", folder / "t.tsv", of_table
    yield "parquet", folder / "t.parquet", of_table
    yield "npy", folder / "x.npy", {"labels": folder / "y.npy"}
    yield "npz", folder / "xy.npz", {}
    yield "raw", folder / "x.bin", {"dtype": "float64", "shape": (2,)}
    yield "arrays", {"x": X, "y": Y}, {}
    yield "dask", {"x": dask.array.from_array(X, chunks=(70, 2)), "y": dask.array.from_array(Y, chunks=70)}, {}
    yield "iterator", ({"x": X[i : i + 77], "y": Y[i : i + 77]} for i in range(0, N, 77)), {}
    yield "iterable", [{"x": X[i : i + 77], "y": Y[i : i + 77]} for i in range(0, N, 77)], {}


def test_the_same_rows_of_every_kind_of_source_are_divided_alike(tmp_path: Path) -> None:
    word_of_row: dict[str, list[list[float]]] = {}
    for name, source, options in sources(tmp_path):
        path = tmp_path / f"{name}.zarr"
        st.ingest(source, path, split=SPLIT, memory="30MB", **options)
        found = {split: rows.tolist() for split, rows in rows_of(path).items()}
        word_of_row = word_of_row or found
        assert found == word_of_row, name
    together = sorted(row for rows in word_of_row.values() for row in rows)
    assert together == X.tolist()


def test_idx_files_are_divided_with_their_labels(tmp_path: Path) -> None:
    images = np.arange(N * 4, dtype=np.uint32).astype(np.uint8).reshape(N, 2, 2)
    for suffix in ("", ".gz"):
        _idx(tmp_path / f"images-idx3-ubyte{suffix}", images)
        _idx(tmp_path / f"labels-idx1-ubyte{suffix}", Y.astype(np.uint8))
        path = tmp_path / f"d{suffix}.zarr"
        st.ingest(
            tmp_path / f"images-idx3-ubyte{suffix}", path, labels=tmp_path / f"labels-idx1-ubyte{suffix}", split=SPLIT
        )
        assert sum(map(len, rows_of(path).values())) == N
    assert all((rows_of(path, "y")[name] == rows_of(tmp_path / "d.zarr", "y")[name]).all() for name in NAMES)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("text", [True, False])
def test_groups_of_a_table_stay_together_whatever_the_order_of_its_files(kind: str, text: bool, tmp_path: Path) -> None:
    groups = [f"p{g}" for g in G] if text else G.tolist()
    table = pa.table({"a": X[:, 0], "who": groups})
    files = []
    for place in range(3):
        part = table.slice(place * 200, 200)
        files.append(tmp_path / f"{place}.{kind}")
        pa.csv.write_csv(part, files[-1]) if kind == "csv" else pa.parquet.write_table(part, files[-1])
    given = {"columns": ["a"], "split": SPLIT, "split_by": "who"}
    st.ingest(files, tmp_path / "d.zarr", **given)
    st.ingest(files[::-1], tmp_path / "e.zarr", **given)
    st.ingest(files[0], tmp_path / "f.zarr", **given)
    st.ingest(files[1:], tmp_path / "f.zarr", append=True, columns=["a"])
    expected = plain(groups)
    for path in (tmp_path / f"{name}.zarr" for name in "def"):
        for name, rows in rows_of(path).items():
            assert sorted(rows[:, 0].tolist()) == [
                x for x, at in zip(X[:, 0].tolist(), expected, strict=True) if at == name
            ]


@settings(max_examples=15, deadline=None)
@given(
    groups=some.lists(some.integers(-5, 40), min_size=60, max_size=200),
    seed=some.integers(0, 9),
    how=some.sampled_from(["hash", "last"]),
    as_float=some.booleans(),
)
def test_equal_values_are_never_in_two_splits(
    groups: list[int], seed: int, how: str, as_float: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("d") / "d.zarr"
    source = {"row": np.arange(len(groups)), "g": np.array(groups, np.float64 if as_float else np.int64)}
    given: dict[str, Any] = {"split": {"val": 0.3}, "split_by": "g", "split_how": how, "split_seed": seed}
    if len(set(groups)) < FEW:
        return  # chance may leave a split without one
    st.ingest(source, path, **given)
    found = {name: st.open(path, split=name)[:] for name in ("train", "val")}
    assert sorted([*found["train"]["row"], *found["val"]["row"]]) == list(range(len(groups)))
    assert not {*found["train"]["g"].tolist()} & {*found["val"]["g"].tolist()}
    if how == "last":
        assert found["train"]["g"].max() < found["val"]["g"].min()
        before = sum(g < found["val"]["g"].min() for g in groups)
        assert before >= len(groups) - round(0.3 * len(groups) + 1e-9) - 1


def test_the_last_rows_are_in_order_of_the_source_or_of_a_column(tmp_path: Path) -> None:
    days = [f"2020-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(N)]
    pa.csv.write_csv(pa.table({"a": np.arange(N), "day": days}), tmp_path / "t.csv")
    st.ingest(tmp_path / "t.csv", tmp_path / "d", columns=["a"], split=SPLIT, split_how="last")
    assert [len(rows) for rows in rows_of(tmp_path / "d").values()] == [420, 120, 60]
    assert rows_of(tmp_path / "d")["test"][:, 0].tolist() == list(range(540, 600))
    st.ingest(tmp_path / "t.csv", tmp_path / "e", columns=["a"], split=SPLIT, split_how="last", split_by="day")
    last = {name: [days[int(row)] for row in rows[:, 0]] for name, rows in rows_of(tmp_path / "e").items()}
    assert max(last["train"]) < min(last["val"]) <= max(last["val"]) < min(last["test"])


def test_rows_keep_their_split_when_others_are_appended(tmp_path: Path) -> None:
    st.ingest({"x": X[:250], "y": Y[:250]}, tmp_path / "d", split=SPLIT, split_seed=3)
    st.ingest({"x": X[250:], "y": Y[250:]}, tmp_path / "d", append=True, split=SPLIT, split_seed=3)
    st.ingest({"x": X, "y": Y}, tmp_path / "e", split=SPLIT, split_seed=3)
    for name in NAMES:
        assert rows_of(tmp_path / "d")[name].tolist() == rows_of(tmp_path / "e")[name].tolist()
    root = read_splits(tmp_path / "d")
    assert root is not None
    assert root.n_samples == {name: len(st.open(tmp_path / "d", split=name)) for name in NAMES}
    assert root.ids == {name: st.open(tmp_path / "d", split=name).id for name in NAMES}


def test_a_split_may_get_no_row_of_what_is_appended(tmp_path: Path) -> None:
    st.ingest({"x": X}, tmp_path / "d", split=SPLIT)
    before = rows_of(tmp_path / "d")
    st.ingest({"x": X[:1]}, tmp_path / "d", append=True)
    assert sum(len(rows) - len(before[name]) for name, rows in rows_of(tmp_path / "d").items()) == 1


def test_statistics_and_classes_are_those_of_train_alone(tmp_path: Path) -> None:
    st.ingest({"x": X, "y": Y}, tmp_path / "d", split=SPLIT)
    train = st.open(tmp_path / "d", split="train")
    np.testing.assert_allclose(train.stats("x").mean, rows_of(tmp_path / "d")["train"].mean(axis=0))
    pa.csv.write_csv(pa.table({"a": np.arange(N), "y": ["a"] * 560 + ["b"] * 40}), tmp_path / "t.csv")
    for source, options in ((tmp_path / "t.csv", {"label_column": "y"}), ({"x": X, "y": np.arange(N) // 560}, {})):
        with pytest.raises(st.InputError, match="of which train has no sample"):
            st.ingest(source, tmp_path / "e", split={"val": 0.1}, split_how="last", **options)
        assert not (tmp_path / "e").exists()


def test_a_root_is_plain_zarr_and_opens_by_the_name_of_a_split(tmp_path: Path) -> None:
    st.ingest({"x": X, "y": Y}, tmp_path / "d", split=SPLIT)
    group = zarr.open_group(tmp_path / "d", mode="r")
    np.testing.assert_array_equal(group["val/x"][:], rows_of(tmp_path / "d")["val"])
    with pytest.raises(st.UsageError, match=r"give one of them: .*/train, say"):
        st.open(tmp_path / "d")
    with pytest.raises(st.UnknownName, match="did you mean 'val'"):
        st.open(tmp_path / "d", split="vla")
    st.ingest({"x": X}, tmp_path / "plain")
    with pytest.raises(st.UsageError, match="has no splits"):
        st.open(tmp_path / "plain", split="val")
    for use in (
        lambda: st.StreamLoader(str(tmp_path / "d"), batch_size=8),  # type: ignore[arg-type]
        lambda: st.plan(tmp_path / "d", batch_size=8),  # type: ignore[arg-type]
        lambda: st.compare(lambda: None, tmp_path / "d"),  # type: ignore[arg-type]
    ):
        with pytest.raises(st.UsageError, match=r"give one of them: .*/train, say"):
            use()


def test_what_cannot_be_split_by_is_refused(tmp_path: Path) -> None:
    gaps = G.astype(np.float64)
    gaps[17] = np.nan
    (tmp_path / "t.csv").write_text("a,who\n" + "1,p\n" * 40 + "1,\n" + "1,q\n" * 40)
    pa.parquet.write_table(pa.table({"a": X[:, 0], "who": [None, *["p"] * (N - 1)]}), tmp_path / "t.parquet")
    named: dict[str, Any] = {"split": {"val": 0.2}, "split_by": "who"}
    for source, options, said in (
        ({"x": X, "who": gaps}, {}, "is missing"),
        (tmp_path / "t.csv", {"columns": ["a"]}, "t.csv:42"),
        (tmp_path / "t.parquet", {"columns": ["a"]}, "is missing"),
        ({"x": X, "whom": G}, {}, "did you mean split_by='whom'"),
        ({"x": X}, {}, "no column or field 'who'"),
        ({"who": X}, {}, "no column or field 'who'"),
        (tmp_path / "t.csv", {"columns": ["a"], "split_by": "wo"}, "did you mean split_by='who'"),
    ):
        with pytest.raises(st.InputError, match=said):
            st.ingest(source, tmp_path / "d", **{**named, **options})
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(st.InputError, match="split val has no rows"):
        st.ingest({"x": X[:2]}, tmp_path / "d", split={"val": 0.001})
    with pytest.raises(st.InputError, match="split val has no rows"):
        st.ingest({"x": X, "g": np.zeros(N)}, tmp_path / "d", split={"val": 0.1}, split_by="g", split_how="last")
    assert not list(tmp_path.iterdir())


def test_few_groups_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(st.StreamtrainWarning, match="split val has 2 groups of g: below 30"):
        st.ingest({"x": X, "g": np.arange(N) // 60}, tmp_path / "d", split={"val": 0.2}, split_by="g", split_how="last")
    said: list[str] = []
    st.ingest({"x": X, "y": Y}, tmp_path / "e", split={"val": 0.02}, split_how="last", say=said.append)
    assert said[:2] == [
        "train: 588 rows, 98.0% of all, 98.0% wanted; y: 0 196, 1 196, 2 196",
        "val: 12 rows, 2.0% of all, 2.0% wanted; y: 0 4, 1 4, 2 4",
    ]
    assert said[2] == "warning: split val has 12 rows: below 30 its figures say little"


def test_an_append_warns_of_splits_that_stay_small(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    g = np.repeat(np.arange(N // 2), 2)
    for name, options in {"rows": {}, "groups": {"split_by": "g"}}.items():
        st.ingest({"x": X, "g": g}, tmp_path / name, split={"val": 0.3}, **options)  # type: ignore[arg-type]
        said: list[str] = []
        st.ingest({"x": X[:20], "g": g[:20]}, tmp_path / name, append=True, say=said.append)
        assert [line.split(" ")[0] for line in said] == ["train:", "val:"]
        assert not any("groups" in line for line in said)
    assert not recwarn.list
    st.ingest({"x": X[:60]}, tmp_path / "few", split={"val": 0.2})
    with pytest.warns(st.StreamtrainWarning, match=r"split val has \d+ rows: below 30"):
        st.ingest({"x": X[:5]}, tmp_path / "few", append=True)


def test_rows_are_read_in_the_terms_of_a_root(tmp_path: Path) -> None:
    st.ingest({"x": X, "y": Y}, tmp_path / "d", split=SPLIT)
    train = st.open(tmp_path / "d", split="train")
    assert st.ingest({"x": X, "y": Y}, tmp_path / "e", like=tmp_path / "d").manifest.options["like"] == train.id
    assert st.rows({"x": X}, like=tmp_path / "d").n_rows == N


def test_what_is_there_is_appended_to_and_replaced_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "d"
    st.ingest({"x": X}, path, split=SPLIT)
    with pytest.raises(st.UsageError, match="exists there already"):
        st.ingest({"x": X}, path, split=SPLIT)
    with pytest.raises(st.UsageError, match="were made differently"):
        st.ingest({"x": X}, path, split={"val": 0.3}, append=True)
    with pytest.raises(st.UsageError, match="one of several splits"):
        st.ingest({"x": X}, path / "val", append=True)
    (path / "notes.txt").write_text("mine")
    for mode in ({"append": True}, {"overwrite": True}, {"overwrite": True, "split": SPLIT}):
        with pytest.raises(st.UsageError, match=r"notes\.txt"):
            st.ingest({"x": X}, path, **mode)  # type: ignore[arg-type]
    (path / "notes.txt").unlink()
    st.ingest({"x": X}, path, overwrite=True)
    assert len(st.open(path)) == N
    with pytest.raises(st.UsageError, match="has no splits"):
        st.ingest({"x": X}, path, split=SPLIT, append=True)
    st.ingest({"x": X}, path, overwrite=True, split=SPLIT, split_how="last")
    with pytest.raises(st.UsageError, match="no rows can be appended to splits in order"):
        st.ingest({"x": X}, path, append=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_verify_goes_over_all_splits(tmp_path: Path) -> None:
    path = tmp_path / "d"
    st.ingest({"x": X}, path, split=SPLIT)
    assert st.verify(path, full=True).damage == ()
    assert st.repair(path) == ()
    shard = st.open(path, split="val").shard_path("x", 0)
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    (damage,) = st.verify(path, full=True).damage
    assert "val" in str(damage.where)


def test_memory_that_is_too_small_is_refused_as_without_splits(tmp_path: Path) -> None:
    rows = {"x": np.zeros((400, 4096))}
    for source in (rows, iter([rows])):
        with pytest.raises(st.BudgetError, match="memory"):
            st.ingest(source, tmp_path / "d", split=SPLIT, memory="100KB")
    assert not list(tmp_path.iterdir())
