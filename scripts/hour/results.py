"""Rows 1 to 4, 8 and 9: tasks from a table to the figures of a trained model."""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import pyarrow.csv

import streamtrain as st
from scripts.hour import tables
from scripts.hour.session import Check, Row, Session, above, at_most, equal, unmeasured

TIMES: Final = "--auto --split val=0.1,test=0.1"


def delays(session: Session) -> Iterator[Check]:
    """A column of whole numbers, some negative and some missing."""
    tables.write(tables.flights(session.sizes.flights), session.folder / "flights.csv")
    stored = session.run(f"ingest flights.csv flights --label-column arr_delay {TIMES}", json=False)
    trained = session.run(f"train flights --model mlp --epochs {session.sizes.epochs} --out run").result["result"]
    told = re.search(r"arr_delay: .* whole numbers from -\d+ to \d+: a quantity, so (\w+)", stored.text)
    yield equal("task told by ingest", told and told[1], "regression")
    yield at_most("val rmse ÷ baseline's", trained["rmse"] / trained["baseline"]["rmse"], 0.5)
    session.look("predict run flights --split test --out test.npy")
    measured = session.look("evaluate run flights --split test").result["rmse"]
    known = st.open(session.folder / "flights/test")[:]["y"]
    off = np.load(session.folder / "test.npy") - known
    yield at_most("rmse of the predictions in minutes ÷ evaluate's - 1", abs(_rms(off) / measured - 1), 1e-5)


def distances(session: Session) -> Iterator[Check]:
    """A column of 214 whole numbers spread over five thousand."""
    tables.write(tables.flights(session.sizes.flights), session.folder / "flights.csv")
    stored = session.run(f"ingest flights.csv flights --label-column distance {TIMES}")
    trained = session.run(f"train flights --model mlp --epochs {session.sizes.epochs} --out run").result["result"]
    yield equal("task", stored.result["task"]["name"], "regression")
    session.look("predict run flights --split test --out test.npy")
    n_rows = stored.result["splits"]["test"]
    yield equal("one output: the shape of the predictions", np.load(session.folder / "test.npy").shape, (n_rows,))
    yield above("val r2", trained["r2"], 0.5)


def origins(session: Session) -> Iterator[Check]:
    """Three classes with names, weighted in the loss."""
    tables.write(tables.flights(session.sizes.flights), session.folder / "flights.csv")
    session.run(f"ingest flights.csv flights --label-column origin {TIMES}")
    train = f"train flights --model mlp --epochs {session.sizes.epochs}"
    balanced = session.run(f"{train} --class-weight balanced --out run").result["result"]
    for figure in ("balanced_accuracy", "f1"):
        yield above(f"val {figure}", balanced[figure], balanced["baseline"][figure])
    plain = session.look(f"{train} --out plain").result["result"]
    yield above("without the option, val accuracy", plain["accuracy"], plain["baseline"]["accuracy"])
    classes = session.look("evaluate run flights --split test").result["classes"]
    session.look("predict run flights --split test --out test.csv")
    yield _by_peer(session, classes)


def _by_peer(session: Session, classes: list[dict[str, Any]]) -> Check:
    """Compare a table of classes with scikit-learn's, of the same predictions."""
    what = "per-class table: largest difference to scikit-learn's"
    if find_spec("sklearn") is None:
        return unmeasured(what, "scikit-learn is not installed")
    peer = importlib.import_module("sklearn.metrics")
    test = st.open(session.folder / "flights/test")
    names = [row["class"] for row in classes]
    known = np.array(names)[test[:]["y"]]
    said = pyarrow.csv.read_csv(session.folder / "test.csv")["prediction"].to_pylist()
    theirs = peer.precision_recall_fscore_support(known, said, labels=names, zero_division=0)
    ours = [[row[name] for row in classes] for name in ("precision", "recall", "f1", "support")]
    return at_most(what, float(np.abs(np.array(ours) - np.array(theirs)).max()), 1e-12)


def marks(session: Session) -> Iterator[Check]:
    """Whole numbers from 3 to 9, which the rule leaves undecided."""
    tables.write(tables.qualities(session.sizes.samples), session.folder / "wine.csv")
    session.run("ingest wine.csv wine --label-column quality --split val=0.1")
    stored = _digest(session)
    refused = session.run("train wine --model linear --epochs 2 --out run", code=2)
    ways = re.findall(r"--task \w+", refused.result["error"]["fix"])
    yield equal("train is refused with both ways", sorted(ways), ["--task classification", "--task regression"])
    for number, way in enumerate(ways):
        take = session.look if number else session.run
        task = take(f"train wine --model linear --epochs 2 --out run-{number} {way}").result["result"]["task"]
        yield equal(f"{way}, pasted, trains", task, way.split()[1])
    yield equal("the dataset is as it was", _digest(session) == stored, True)


def _digest(session: Session) -> str:
    files = sorted(path for path in (session.folder / "wine").rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def several(session: Session) -> Iterator[Check]:
    """Several label columns: of 0 and 1, and of fractions."""
    n_rows, train = session.sizes.samples, "--model linear --optimizer adam --lr 0.05 --epochs 20"
    tables.write(tables.labels(n_rows), session.folder / "labels.csv")
    session.run("ingest labels.csv labels --label-column r,s,t --split val=0.1")
    found = session.run(f"train labels {train} --out run").result["result"]
    yield equal(
        "three of 0 and 1", (found["task"], [row["label"] for row in found["labels"]]), ("multilabel", [*"rst"])
    )
    yield above("val f1", found["f1"], found["baseline"]["f1"])
    session.next_task()
    tables.write(tables.targets(n_rows), session.folder / "targets.csv")
    session.run("ingest targets.csv targets --label-column u,v --split val=0.1")
    found = session.run(f"train targets {train} --out run-2").result["result"]
    yield equal(
        "two of fractions", (found["task"], [row["target"] for row in found["targets"]]), ("regression", [*"uv"])
    )
    for row in found["targets"]:
        yield above(f"val r2 of {row['target']}", row["r2"], 0)


def house_prices(session: Session) -> Iterator[Check]:
    """Labels of six digits, by the plainest optimizer at its own rate."""
    tables.write(tables.prices(session.sizes.samples), session.folder / "houses.csv")
    session.run("ingest houses.csv houses --label-column price --split val=0.1")
    told = session.run("train houses --model linear --optimizer sgd --epochs 5 --out run").result
    yield equal("the loss of every epoch is finite", all(math.isfinite(row["loss"]) for row in told["epochs"]), True)
    yield at_most("last loss ÷ first", told["epochs"][-1]["loss"] / told["epochs"][0]["loss"], 1.0)
    yield at_most("val rmse ÷ baseline's", told["result"]["rmse"] / told["result"]["baseline"]["rmse"], 1.0)


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


ROWS: Final = (
    Row(number=1, task="regression of whole numbers, some negative and some missing", at_most=2, checks=delays),
    Row(number=2, task="distance as the label, --auto", at_most=2, checks=distances),
    Row(number=3, task="three classes as text, --class-weight balanced", at_most=2, checks=origins),
    Row(number=4, task="quality from 3 to 9", at_most=3, checks=marks),
    Row(number=8, task="three columns of 0 and 1; two of fractions", at_most=2, checks=several),
    Row(number=9, task="sgd at its default rate on prices up to a million", at_most=2, checks=house_prices),
)
