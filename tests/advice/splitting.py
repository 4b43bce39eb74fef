"""Worlds of splits: how rows are divided, and what a root of splits is opened with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import streamtrain as st
from tests.advice.ingesting import Short, cut_short
from tests.advice.world import World, X, Y, world

_RULE = "ingestion/splits/rule.py:"
_VALUES = "ingestion/splits/group_values.py:"
_WRITE = "ingestion/splits/ingest_splits.py:"
_ROOT = "store/split_root.py:"
_HALF: dict[str, Any] = {"split": {"val": 0.5}}
G = np.arange(60) % 40
ROWS = {"x": X, "y": Y, "g": G}


def ingest(source: Any, name: str = "d.zarr", **options: Any) -> st.Dataset:
    """Ingest where nobody listens to how few rows there are."""
    return st.ingest(source, name, progress=False, say=lambda text: None, **options)


@world(
    "cli/ingest.py:_parse_split: --split val=0.1,test=0.1, say",
    "cli/ingest.py:_parse_split: --split val={}",
    f"{_RULE}_parse_shares: split={{'val': 0.1, 'test': 0.1}}, say",
    f"{_RULE}parse_split: split={{'val': 0.1, 'test': 0.1}}, say, with it; or leave {{}} out",
)
def shares_that_cannot_be(w: World) -> None:
    np.save("x.npy", np.tile(X, (10, 1)))
    w.typed("ingest x.npy a.zarr --split val")
    assert w.refuses("ingest x.npy f.zarr --split 0.2") == "--split val=0.2"
    w.works("ingest x.npy f.zarr --split val=0.2")
    w.typed("ingest x.npy b.zarr --split val=1")
    w.followed(ingest, np.tile(X, (10, 1)), "c.zarr", split={"val": 0.5, "test": 0.5})
    w.refused(ingest, X, "d.zarr", split_seed=3)
    ingest(X, "d.zarr", split_seed=3, split={"val": 0.5})
    ingest(X, "e.zarr")


@world(
    f"{_VALUES}_missing: fill it in, drop the row in the source, or name another column: split_by=",
    f"{_VALUES}_unknown: did you mean split_by={{}}?",
    f"{_VALUES}_unknown: name one of these",
)
def columns_to_split_by(w: World) -> None:
    gaps = np.where(G == 7, np.nan, G)
    w.refused(ingest, {**ROWS, "gaps": gaps}, split_by="gaps", **_HALF)
    ingest(ROWS, "a.zarr", split_by="g", **_HALF)
    w.followed(ingest, {"x": X, "group": G}, "b.zarr", split_by="groups", **_HALF)
    w.refused(ingest, ROWS, "c.zarr", split_by="patient", **_HALF)
    ingest(ROWS, "c.zarr", split_by="g", **_HALF)


@world(
    "ingestion/splits/division.py:_by_order: memory={}, say; or sort the source, and leave split_by= out",
    "ingestion/splits/division.py:check_not_empty: give more rows, or a larger share: split=",
    f"{_WRITE}_check_classes: leave those samples out; or give another seed or smaller shares",
    f"{_WRITE}_check_classes: give another seed or smaller shares; or task='regression' of quantities",
)
def rows_that_cannot_be_divided(w: World) -> None:
    many = {"x": np.zeros((20_000, 1), "f4"), "t": np.arange(20_000)}
    of_time: dict[str, Any] = {"split_by": "t", "split_how": "last", **_HALF}
    w.refused(ingest, many, memory="21MB", **of_time)
    ingest(many, memory="100MB", **of_time)
    ingest(many, "sorted.zarr", memory="21MB", split_how="last", **_HALF)
    w.refused(ingest, ROWS, "a.zarr", split={"val": 1e-9})
    ingest(ROWS, "a.zarr", **_HALF)
    labels = {"x": X, "y": np.arange(60) // 50}
    w.refused(ingest, labels, "b.zarr", split={"val": 0.2}, split_how="last")
    ingest(labels, "b.zarr", split={"val": 0.1}, split_how="hash")
    ingest({"x": X[:50], "y": labels["y"][:50]}, "c.zarr", split={"val": 0.2}, split_how="last")
    ingest(labels, "e.zarr", split={"val": 0.2}, split_how="last", task="regression")
    w.refused(ingest, {**labels, "y": labels["y"].astype(str)}, "f.zarr", split={"val": 0.2}, split_how="last")


@world(
    "ingestion/splits/spool.py:spooled: give at least one row",
    "ingestion/splits/spool.py:spooled: check the source",
)
def sources_to_split_that_break_their_promise(w: World) -> None:
    w.refused(ingest, Short(70, X), **_HALF)
    w.refused(ingest, Short(0, X[:0]), **_HALF)
    ingest(Short(60, X), **_HALF)


@world(
    f"{_WRITE}_check_can_append: leave split out, to append to the dataset as it is",
    f"{_WRITE}_check_can_append: leave split out: an append divides its rows as the others were",
    f"{_WRITE}_check_can_append: ingest all sources again",
    "ingestion/ingest.py:_rule_at: give the folder above, of all splits: {}",
)
def appending_to_splits(w: World) -> None:
    ingest(ROWS)
    w.refused(ingest, ROWS, append=True, **_HALF)
    ingest(ROWS, append=True)
    ingest(ROWS, "s.zarr", **_HALF)
    w.refused(ingest, ROWS, "s.zarr", append=True, split={"val": 0.4})
    w.refused(ingest, ROWS, "s.zarr/val", append=True)
    ingest(ROWS, "s.zarr", append=True)
    ingest(ROWS, "o.zarr", split_how="last", **_HALF)
    w.refused(ingest, ROWS, "o.zarr", append=True)
    ingest({name: np.concatenate([rows, rows]) for name, rows in ROWS.items()}, "o.zarr", overwrite=True, **_HALF)


@world(
    f"{_WRITE}_is_complete: choose another path",
    "ingestion/ingest.py:_rule_at: give what it was begun with; or ingest from the start with overwrite=True",
)
def resuming_with_splits_what_has_none(w: World) -> None:
    np.save("x.npy", X)
    ingest("x.npy")
    w.refused(ingest, "x.npy", resume=True, **_HALF)
    ingest("x.npy", "e.zarr", resume=True, **_HALF)
    cut_short(w, "x.npy", "f.zarr", n_files=12, **_HALF)
    w.refused(ingest, "x.npy", "f.zarr", resume=True)
    small: dict[str, Any] = {"memory": "30MB", "block": "256B", "shard": "512B"}
    ingest("x.npy", "f.zarr", overwrite=True, **small)


@world(
    f"{_ROOT}split_folder: leave split= out",
    f"{_ROOT}split_folder: give one of them: {{}}, say",
    "cli/inference/predict.py:opened_data: --split {}, say",
    f"{_ROOT}read_splits: restore it from a copy, or ingest again",
    f"{_ROOT}read_splits: upgrade streamtrain (pip install -U streamtrain)",
    "store/verify.py:_verify_splits: restore it from a copy, or ingest again",
)
def opening_splits(w: World) -> None:
    ingest(ROWS)
    w.refused(st.open, "d.zarr", split="val")
    st.open("d.zarr")
    ingest(ROWS, "s.zarr", **_HALF)
    assert "s.zarr/train" in w.refused(st.open, "s.zarr")
    st.open("s.zarr/train")
    w.works("info s.zarr/train")
    w.works("train s.zarr --model linear --epochs 1 --batch-size 4 --out run")
    w.typed("predict run s.zarr")
    root = Path("s.zarr/zarr.json")
    whole = root.read_text()
    for wrong in ('"format": 2', '"format": 9'), ('"splits"', '"spilts"'):
        root.write_text(whole.replace(*wrong))
        w.refused(st.open, "s.zarr", split="val")
    described = json.loads(whole)
    described["attributes"]["streamtrain"]["splits"]["ids"]["val"] = "0"
    root.write_text(json.dumps(described))
    (damage,) = st.verify("s.zarr").damage
    w.note(damage)
    ingest(ROWS, "s.zarr", overwrite=True, **_HALF)
    assert not st.verify("s.zarr").damage
