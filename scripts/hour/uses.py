"""Rows 13 and 15: what a trained model says of new rows, by a command, in Python, and without streamtrain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow.csv

import streamtrain as st
from scripts.hour import tables
from scripts.hour.session import Check, Row, Session, equal

LOADED: Final = (
    "import streamtrain as st, torch, numpy as np; rows = st.open('kinds/train')[:]",
    "model = st.load('run')",
    "np.save('loaded.npy', torch.softmax(model(torch.from_numpy(rows['x'])), 1).detach().numpy())",
)
"""A model loaded and used: three lines."""

ALONE: Final = (
    "import numpy as np, torch; from safetensors.torch import load_file; t = load_file('m.safetensors')",
    "x = ((torch.from_numpy(np.load('x.npy')) - t['normalize.x.mean']) / t['normalize.x.std']).float()",
    "np.save('alone.npy', torch.addmm(t['model.1.bias'], x, t['model.1.weight'].T).softmax(1).numpy())",
)
"""A linear model's file used without streamtrain: three lines."""


def _trained(session: Session) -> None:
    tables.write(tables.kinds(session.sizes.samples), session.folder / "kinds.csv")
    session.look("ingest kinds.csv kinds --label-column kind --split test=0.1")
    session.look("train kinds --model linear --epochs 3 --out run")


def raw_rows(session: Session) -> Iterator[Check]:
    """New rows raw, ingested in the terms of the training, with their columns permuted, and numbered otherwise."""
    _trained(session)
    new = tables.kinds(session.sizes.samples, seed=2)
    tables.write(new, session.folder / "new.csv")
    session.run("predict run new.csv --probabilities --out raw.npy")
    session.look("ingest new.csv new --like kinds/train")
    session.look("predict run new --probabilities --out stored.npy")
    raw, stored = (np.load(session.folder / name) for name in ("raw.npy", "stored.npy"))
    yield equal("raw rows against the same ingested: equal bits", raw.tobytes() == stored.tobytes(), True)
    yield equal(f"wrong in {session.sizes.permutations} permutations of columns", _permuted(session, new, raw), 0)
    marks = tables.kinds(session.sizes.samples)
    tables.write(marks, session.folder / "other.csv")
    session.look("ingest other.csv other --label-column kind --classes red,blue,green")
    refused = session.look("evaluate run other", code=2)
    options = re.search(r"--(classes|like) \S*\w", refused.result["error"]["fix"])
    mended = options and session.look(f"ingest other.csv mended --label-column kind {options[0]}")
    n_rows = mended and session.look("evaluate run mended").result["samples"]
    yield equal("numbered otherwise: refused, and mended by what the refusal names", n_rows, session.sizes.samples)


def _permuted(session: Session, new: tables.Columns, wanted: Any) -> int:
    """Count the permutations of a table's columns whose predictions are others."""
    model, chance, n_wrong = st.load(session.folder / "run"), np.random.default_rng(3), 0
    for _ in range(session.sizes.permutations):
        file = tables.write(
            {name: new[name] for name in chance.permutation(list(new))}, session.folder / "permuted.csv"
        )
        found = model.predict(st.rows(file, like=model, say=lambda _: None), probabilities=True)
        n_wrong += not np.array_equal(found, wanted)
    return n_wrong


def used_elsewhere(session: Session) -> Iterator[Check]:
    """The model in a fresh process, and its file without streamtrain."""
    _trained(session)
    session.look("predict run kinds/train --probabilities --out p.csv")
    table = pyarrow.csv.read_csv(session.folder / "p.csv")
    names = [f"p_{name}" for name in st.load(session.folder / "run").classes or ()]
    wanted = np.column_stack([table[name].to_numpy() for name in names]).astype(np.float32)
    session.python(*LOADED)
    loaded = np.load(session.folder / "loaded.npy")
    yield equal("st.load in 3 lines: largest difference to the csv", float(np.abs(loaded - wanted).max()), 0.0)
    session.look("export run --out m.safetensors")
    np.save(session.folder / "x.npy", st.open(session.folder / "kinds/train")[:]["x"])
    session.python(*ALONE)
    alone = np.load(session.folder / "alone.npy")
    yield equal("safetensors in 3 lines: largest difference to the csv", float(np.abs(alone - wanted).max()), 0.0)


ROWS: Final = (
    Row(number=13, task="new rows raw, ingested alike, permuted, numbered otherwise", at_most=1, checks=raw_rows),
    Row(
        number=15,
        task="the model in a fresh process; its file without streamtrain",
        at_most=None,
        checks=used_elsewhere,
    ),
)
