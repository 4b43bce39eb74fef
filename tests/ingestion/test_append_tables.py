"""Append to a dataset whose columns are categories, dates or filled in: in its own terms, or refused."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.store.dataset import Dataset
from streamtrain.system.syscalls import Syscalls
from tests.support.ingest_cases import tree

FIRST = """\
i,w,a,t,c,h,y
7,0.5,1.5,2020-01-01,u,p,no
8,1,,2020-01-02,v,,yes
9,2,3,2020-01-03,,p,no
5,1,4.5,2020-01-05,u,q,no
"""
MORE = "y,c,h,a,t,w,i,z\nyes,new,q,,2020-01-09,1,3,9\nno,v,,7,2020-01-09,1,4,1\n"
OPTIONS: dict[str, Any] = {
    **{"label_column": "y", "categorical": ["c"], "hash": {"h": 50}, "dates": {"t": "days"}},
    **{"na": "fill=mean", "na_mask": True, "weight_column": "w", "id_column": "i"},
}


@pytest.fixture
def base(tmp_path: Path) -> Dataset:
    (tmp_path / "a.csv").write_text(FIRST)
    (tmp_path / "b.csv").write_text(MORE)
    return st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", **OPTIONS)


@pytest.mark.parametrize("given", [{}, OPTIONS, {"categorical": ["c"]}, {"label_column": "y", "auto": True}])
def test_rows_take_the_terms_of_the_dataset(tmp_path: Path, base: Dataset, given: dict[str, Any]) -> None:
    like = st.ingest(tmp_path / "b.csv", tmp_path / "b.zarr", like=base)[:]
    grown = st.ingest(tmp_path / "b.csv", base.path, append=True, **given)
    rows = grown[4:]
    assert {name: values.tolist() for name, values in rows.items()} == {n: v.tolist() for n, v in like.items()}
    assert rows["x"][:, 0].tolist() == [3.0, 7.0], "filled with the mean of the first rows"
    assert rows["cat"][:, 0].tolist() == [1, 3]
    assert grown.schema == base.schema
    assert grown.task == base.task
    assert grown.describe()["missing"][0] == 2 / 6


@pytest.mark.parametrize("write", ["parquet", "pandas", "arrow"])
def test_every_kind_of_table_is_taken(tmp_path: Path, base: Dataset, write: str) -> None:
    table: Any = pyarrow.csv.read_csv(tmp_path / "b.csv")
    pq.write_table(table, tmp_path / "b.parquet")
    source = {"parquet": tmp_path / "b.parquet", "pandas": pd.read_csv(tmp_path / "b.csv"), "arrow": table}[write]
    assert st.ingest(source, base.path, append=True)[4:]["cat"].tolist() == [[1, 34], [3, 0]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"categorical": ["h"]}, "categorical differs from that of the dataset"),
        ({"na": "fill=0"}, "na differs from that of the dataset"),
        ({"columns": ["w"]}, "columns differs from that of the dataset"),
        ({"exclude": ["w"]}, "exclude differs from that of the dataset"),
        ({"dates": ["t"]}, "dates differs from that of the dataset"),
        ({"like": "a.zarr"}, "like is given, and rows are appended"),
    ],
)
def test_other_options_are_refused(tmp_path: Path, base: Dataset, given: dict[str, Any], told: str) -> None:
    with pytest.raises(st.UsageError, match=told):
        st.ingest(tmp_path / "b.csv", base.path, append=True, **given)
    assert st.open(base.path).id == base.id


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (MORE.replace("yes", "maybe"), "'maybe'"),
        (MORE.replace("y,c,h,a", "y,c,h,b"), "no column 'a'"),
        (MORE.replace("7,2020", "q,2020"), "'q', which is not a number"),
        (MORE.replace("2020-01-09", "once"), "'once', which is not an ISO 8601 date"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, base: Dataset, table: str, told: str) -> None:
    (tmp_path / "b.csv").write_text(table)
    with pytest.raises(st.InputError, match=told):
        st.ingest(tmp_path / "b.csv", base.path, append=True)
    assert st.open(base.path).id == base.id


def test_what_has_no_names_is_refused(base: Dataset) -> None:
    rows = base[:]
    for where in ({"append": True}, {"like": base}):
        dest = base.path if "append" in where else base.path.with_name("b.zarr")
        with pytest.raises(st.InputError, match="the columns have no names"):
            st.ingest(rows, dest, **where)


def test_several_targets_and_dropped_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,p,q\n1,0.5,3\n2,1.5,5\n,1,1\n")
    (tmp_path / "b.csv").write_text("q,a,p\n7,4,9\n8,,1\n1,1,\n")
    options = {"label_column": ["p", "q"], "na": "drop", "drop_unlabelled": True}
    said: list[str] = []
    st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", say=said.append, **options)
    grown = st.ingest(tmp_path / "b.csv", tmp_path / "a.zarr", append=True, say=said.append)
    assert sum("left out" in line for line in said) == 3
    assert grown[:]["x"].tolist() == [[1], [2], [4]]
    assert grown[:]["y"].tolist() == [[0.5, 3], [1.5, 5], [9, 7]]
    assert grown.targets == ("p", "q")


def test_options_of_roles_behind_a_plain_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,0\n2,1\n")
    (tmp_path / "b.csv").write_text("a,y\n,0\n2,1\n")
    st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column="y")
    with pytest.raises(st.UsageError, match="fills or several targets that the dataset does not have"):
        st.ingest(tmp_path / "b.csv", tmp_path / "a.zarr", label_column="y", na="fill=0", append=True)


def test_appended_on_the_command_line(tmp_path: Path, base: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", str(tmp_path / "b.csv"), str(base.path), "--append"]) == 0
    assert "6 samples" in capsys.readouterr().out
    assert main(["ingest", str(tmp_path / "b.csv"), str(base.path), "--append", "--na", "drop"]) == 2
    assert "leave --na out" in capsys.readouterr().err


def test_like_what_was_ingested_like_another(tmp_path: Path, base: Dataset) -> None:
    one = st.ingest(tmp_path / "b.csv", tmp_path / "b.zarr", like=base)
    assert st.ingest(tmp_path / "b.csv", tmp_path / "c.zarr", like=one).id == one.id
    grown = st.ingest(tmp_path / "a.csv", one.path, append=True)
    assert grown.schema == base.schema
    assert grown[2:]["cat"].tolist() == base[:]["cat"].tolist()


def test_columns_of_arrays_like_another_s_are_matched_by_name_or_it_is_said(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    base = st.ingest({"x": frame, "y": np.array([0, 1])}, tmp_path / "a.zarr")
    turned = {"x": frame[["b", "a"]], "y": np.array([0, 1])}
    assert st.ingest(turned, tmp_path / "b.zarr", like=base)[:]["x"].tolist() == base[:]["x"].tolist()
    other = {"x": frame.rename(columns={"b": "k"}), "y": np.array([0, 1])}
    with pytest.raises(st.InputError, match="it has no column 'b'"):
        st.ingest(other, tmp_path / "c.zarr", like=base)
    with pytest.warns(st.StreamtrainWarning, match="matched by position"):
        st.ingest({"x": frame.to_numpy(), "y": np.array([0, 1])}, tmp_path / "d.zarr", like=base)


class _Full:
    """A disk that takes so many files and is full then."""

    def __init__(self, n_files: int) -> None:
        self.n_left = n_files
        self.before = Syscalls.open

    def open(self, system: Syscalls, path: Path) -> int:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.before(system, path)


def test_a_resumed_append_is_the_same_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.csv", "b.csv"):
        rows = [f"{rng.choice(['', '1.5', '2'])},{rng.choice(['u', 'v', 'w', ''])},{n % 3}" for n in range(300)]
        (tmp_path / name).write_text("\n".join(["a,c,y", *rows]) + "\n")
    sizes = {"block": "256B", "shard": "1KB", "codec": "none"}
    options = {"label_column": "y", "categorical": ["c"], "na": "fill=mean"}
    st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", **options, **sizes)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "whole.zarr")
    st.ingest(tmp_path / "b.csv", tmp_path / "whole.zarr", append=True)
    whole = tree(tmp_path / "whole.zarr")
    for n_files in range(1, 200, 7):
        dest = tmp_path / f"{n_files}.zarr"
        shutil.copytree(tmp_path / "a.zarr", dest)
        disk = _Full(n_files)
        with monkeypatch.context() as patch:
            patch.setattr(Syscalls, "open", lambda self, path, disk=disk: disk.open(self, path))
            try:
                st.ingest(tmp_path / "b.csv", dest, append=True)
                break
            except st.ResourceError:
                assert len(st.open(dest)) == 300
        st.ingest(tmp_path / "b.csv", dest, append=True, resume=True)
        assert tree(dest) == whole
    else:
        pytest.fail("never got through")
