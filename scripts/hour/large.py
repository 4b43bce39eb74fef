"""Rows 6 and 12: many rows, the area under the ROC curve against scikit-learn's, and the speed of predict."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch

import streamtrain as st
from scripts.hour.session import Check, Row, Session, at_most, unmeasured
from scripts.runner import median_ratio, require_disk

BATCH: Final = 4096
N_COLUMNS: Final = 784
CANCERS: Final = 569
BARE_LOOP: Final = (
    "import time, torch, streamtrain as st",
    "model = st.load('run')",
    "with st.StreamLoader('rows', batch_size=1024, shuffle=False) as loader, torch.inference_mode():",
    "    started = time.perf_counter()",
    "    n_seen = sum(len(model(batch.x)) for batch in loader)",
    "    print(n_seen, time.perf_counter() - started)",
)


def areas(session: Session) -> Iterator[Check]:
    """The area at 569 samples, at so many that all scores are kept, and at ten times as many."""
    if find_spec("sklearn") is None:
        yield unmeasured("auc", "scikit-learn is not installed")
        return
    cancers = importlib.import_module("sklearn.datasets").load_breast_cancer()
    yield from _area(session, "cancer", cancers.data.astype(np.float32), cancers.target, lr=0.05)
    chance = np.random.default_rng(0)
    for name, n_rows in (("kept", session.sizes.auc), ("binned", 10 * session.sizes.auc)):
        x = chance.normal(size=(n_rows, 2)).astype(np.float32)
        yield from _area(session, name, x, (x.sum(1) + chance.normal(size=n_rows) > 0).astype(np.int64), lr=0.05)


def _area(session: Session, name: str, x: Any, y: Any, *, lr: float) -> Iterator[Check]:
    session.next_task()
    np.savez(session.folder / f"{name}.npz", x=x, y=y)
    session.run(f"ingest {name}.npz {name}")
    train = f"train {name} --model linear --val {name} --epochs 1 --batch-size {BATCH} --lr {lr} --out run-{name}"
    found = session.run(train).result["result"]
    model = st.load(session.folder / f"run-{name}", device="cpu")
    with torch.inference_mode():
        outputs = torch.cat(
            [model(torch.from_numpy(part)) for part in np.split(x, range(BATCH, len(x), BATCH))]
        ).double()
    theirs = importlib.import_module("sklearn.metrics").roc_auc_score(y, (outputs[:, 1] - outputs[:, 0]).numpy())
    off, bound = abs(found["auc"] - theirs), found.get("auc_bound", 0.0)
    yield at_most(f"auc of {len(x):,}: difference to scikit-learn's", off, 1e-5 if bound else 1e-12)
    if bound:
        yield at_most("    and to the printed bound", off, bound)


def speed(session: Session) -> Iterator[Check]:
    """Predict beside a bare loop over the same rows, in turns."""
    n_rows = session.sizes.predicted
    require_disk(session.folder, 3 * n_rows * N_COLUMNS, fix="--quick, or another --folder")
    chance = np.random.default_rng(0)
    x = np.lib.format.open_memmap(session.folder / "x.npy", mode="w+", dtype=np.uint8, shape=(n_rows, N_COLUMNS))
    for start in range(0, n_rows, 10_000):
        x[start : start + 10_000] = chance.integers(0, 256, (min(10_000, n_rows - start), N_COLUMNS), dtype=np.uint8)
    x.flush()
    np.save(session.folder / "few.npy", x[:2_000])
    np.save(session.folder / "y.npy", np.arange(2_000) % 10)
    session.look("ingest few.npy few --labels y.npy")
    session.look("train few --model linear --epochs 1 --out run")
    session.look("ingest x.npy rows")
    for suffix, bar in (("npy", 0.9), ("parquet", 0.9), ("csv", None)):
        ours, bare = [], []
        for turn in range(session.sizes.repeats):
            session.next_task()
            found = session.run(f"predict run rows --out {turn}.{suffix} --batch-size 1024").result
            ours.append(found["seconds"])
            bare.append(_bare_loop(session))
            (session.folder / f"{turn}.{suffix}").unlink()
        ratio, what = median_ratio(bare, ours), f"{suffix}: rate ÷ bare loop's, of {n_rows:,} rows"
        yield Check(what=what, found=ratio, bar=f">= {bar}" if bar else "printed", met=bar is None or ratio >= bar)


def _bare_loop(session: Session) -> float:
    """Take the seconds of a loop over batches that keeps nothing, in a process as new as that of the command."""
    n_seen, seconds = session.python(*BARE_LOOP).split()
    assert int(n_seen) == session.sizes.predicted
    return float(seconds)


ROWS: Final = (
    Row(number=6, task="two classes: auc of 569 samples, of many, and of more than are kept", at_most=2, checks=areas),
    Row(number=12, task="predict with a linear model beside a bare loop", at_most=1, checks=speed),
)
