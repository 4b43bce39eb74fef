"""Worlds of an ingest in the terms of another dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import streamtrain as st
from tests.advice.world import World, world

_INGEST = "ingestion/opening.py:_opened_like: "
_KNOWN = "ingestion/sources/tables/roles/known.py:"
_LEARNER = "ingestion/sources/tables/roles/learned.py:TableLearner."
_MATCHING = "store/schema/matching.py:"
_TABLE = "a,c,t,y\n1,u,2020-01-01,no\n2,v,2020-01-02,yes\n3,u,2020-01-03,no\n4,v,2020-01-04,yes\n"
_ROLES = "--label-column y --categorical c --dates t"


def _based(w: World, table: str = _TABLE, roles: str = _ROLES) -> None:
    Path("a.csv").write_text(table)
    w.works(f"ingest a.csv a.zarr {roles}")


@world(
    f"{_INGEST}leave {{}} out, or like=",
    f"{_INGEST}leave like= out",
    f"{_KNOWN}_check_unsaid: leave {{}} out, or like=",
)
def options_beside_it(w: World) -> None:
    _based(w)
    w.refuses("ingest a.csv b.zarr --like a.zarr --classes no,yes")
    w.refuses("ingest a.csv b.zarr --like a.zarr --categorical c")
    w.works("ingest a.csv b.zarr --like a.zarr")
    st.ingest("a.csv", "plain.zarr", columns=["a"], label_column="y")
    w.refuses("ingest a.csv plain.zarr --like a.zarr --append")
    w.works("ingest a.csv plain.zarr --columns a --label-column y --append")


@world(
    "ingestion/sources/registry.py:open_readers: correct the value in the source, or leave its row out",
    f"{_LEARNER}_check_known: leave those rows out of the source, or ingest all sources again",
)
def values_that_the_other_has_not(w: World) -> None:
    _based(w)
    for wrong in ("x,u,2020-02-01,no", "1,u,2020-02-01,maybe"):
        Path("b.csv").write_text(f"a,c,t,y\n{wrong}\n2,v,2020-02-02,yes\n")
        w.refuses("ingest b.csv b.zarr --like a.zarr")
    Path("b.csv").write_text("a,c,t,y\n2,v,2020-02-02,yes\n")
    w.works("ingest b.csv b.zarr --like a.zarr")


@world(f"{_LEARNER}_check_label_dtype: correct the labels, or ingest them as a dataset of their own")
def labels_of_another_kind(w: World) -> None:
    _based(w, "a,y\n1,0\n2,1\n", "--label-column y")
    Path("b.csv").write_text("a,y\n1,0.5\n")
    w.refuses("ingest b.csv b.zarr --like a.zarr")
    w.works("ingest b.csv b.zarr --label-column y")


@world(
    "ingestion/sources/tables/roles/rows.py:RowReader._unfit: round it in the source; or ingest it as a dataset of its own"
)
def fractions_among_whole_numbers(w: World) -> None:
    _based(w, "a,y\n1,0\n2,1\n", "--label-column y")
    Path("b.csv").write_text("a,y\n1.5,0\n")
    w.refuses("ingest b.csv b.zarr --like a.zarr")
    w.works("ingest b.csv b.zarr --label-column y")


@world(f"{_KNOWN}check_fields_like: bring them to these dtypes and shapes")
def arrays_of_other_kinds(w: World) -> None:
    base = w.dataset()
    x, y = base[:]["x"], base[:]["y"]
    w.refused(st.ingest, {"x": x.astype(np.float64), "y": y}, "b.zarr", like=base)
    st.ingest({"x": x, "y": y}, "b.zarr", like=base)


@world(
    f"{_MATCHING}_categories_difference: ingest it again like the other: like=",
    f"{_MATCHING}_numbers_of_columns_difference: ingest it again like the other: like=",
)
def validation_data_that_means_something_else(w: World) -> None:
    _based(w)
    Path("b.csv").write_text(_TABLE.replace(",u,", ",k,"))
    train = "train a.zarr --val b.zarr --model mlp:2 --epochs 1 --memory 16MB --batch-size 2 --threads 1"
    for roles in (_ROLES, "--label-column y --categorical c --dates t=days"):
        if roles != _ROLES:
            Path("b.csv").write_text(_TABLE)
        w.works(f"ingest b.csv b.zarr {roles}{' --overwrite' if Path('b.zarr').exists() else ''}")
        w.refuses(train)
    w.works("ingest b.csv b.zarr --like a.zarr --overwrite")
    w.works(train)


@world("ingestion/sources/tables/roles/choice.py:check_has_labels: rename {}, if that is it")
def a_label_of_another_name(w: World) -> None:
    _based(w, "a,grade\n1,0\n2,1\n", "--label-column grade")
    Path("b.csv").write_text("a,grades\n1,0\n2,1\n")
    assert "'grades'" in w.refuses("ingest b.csv b.zarr --like a.zarr")
    Path("b.csv").write_text(Path("b.csv").read_text().replace("grades", "grade"))
    w.works("ingest b.csv b.zarr --like a.zarr")
