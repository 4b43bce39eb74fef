"""scores.json: of the last epoch and the best, right for the newest checkpoint wherever the run was killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

import streamtrain as st
from streamtrain.training.records.kept_scores import KeptScores


def of_epoch(epoch: int, n_batches: int, *, partial: bool = False) -> dict[str, Any]:
    return {"epoch": epoch, "batches": n_batches, **({"partial": True} if partial else {}), "loss": 1 / epoch}


def epochs_in(file: Any) -> tuple[int | None, int | None]:
    return (file["best"] or {}).get("epoch"), file["epoch"]


@given(some.integers(0, 2**32))
def test_a_kill_anywhere_leaves_what_the_newest_checkpoint_names(seed: int) -> None:
    draw = random.Random(seed)
    kept, file, best, durable = KeptScores(), None, None, None
    epoch = 1
    while epoch < 12:
        if draw.random() < 0.2:
            # A checkpoint inside the epoch, or one of an epoch that was cut short and is finished later.
            if draw.random() < 0.5:
                kept.keep(of_epoch(epoch, 10 * epoch - 5, partial=True))
            n_batches, last = 10 * epoch - 5, epoch
        else:
            kept.keep(of_epoch(epoch, 10 * epoch))
            best = epoch if draw.random() < 0.5 else best
            n_batches, last, epoch = 10 * epoch, epoch, epoch + 1
        text = kept.changed(best)
        if text is not None:
            file = json.loads(text)
            kept.written(text)
        match draw.choice(["saved", "not saved", "killed"]):
            case "saved":
                kept.saved(best)
                durable = (n_batches, best, epoch)
                if n_batches == 10 * last:
                    assert epochs_in(file) == (best, last)
            case "not saved":
                best = durable[1] if durable else None
            case "killed" if durable is not None:
                kept = KeptScores()
                n_batches, best, epoch = durable
                kept.resume(file, n_batches)
                text = kept.changed(best)
                if text is not None:
                    assert epochs_in(json.loads(text))[0] == best


@pytest.mark.parametrize("found", [None, [], {}, {"epoch": "1"}, {"epoch": 1}, {"best": 3, "before": 7}])
def test_what_no_run_has_written_is_left_out(found: object) -> None:
    kept = KeptScores()
    kept.resume(found, 10)
    assert kept.changed(None) is None


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_a_run_keeps_the_scores_of_its_best_epoch(tmp_path: Path, update: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 3)).astype(np.float32)
    data = st.ingest({"x": x, "y": (x[:, 0] > 0) * 1}, tmp_path / "d.zarr")
    other = st.ingest({"x": x, "y": (x[:, 0] + 0.9 * x[:, 1] > 0.2) * 1}, tmp_path / "v.zarr")

    def fit(max_epochs: int) -> st.History:
        torch.manual_seed(0)
        trainer = st.Trainer(nn.Linear(3, 2), loss="cross_entropy", optimizer="sgd", lr=0.5, update=update)
        how: dict[str, Any] = {"batch_size": 8, "progress": False, "resume": "auto"}
        return trainer.fit(data, val=other, checkpoint=tmp_path / "run", max_epochs=max_epochs, **how)

    measured = {}
    for max_epochs in (3, 9):
        history = fit(max_epochs)
        measured |= {summary.number: summary for summary in history}
        found = json.loads((tmp_path / "run" / "scores.json").read_text())
        assert history.best is not None
        assert epochs_in(found) == (history.best.epoch, max_epochs)
        for kept in (found, found["best"]):
            expected = measured[kept["epoch"]].scores()
            assert {name: kept[name] for name in ("loss", "confusion")} == {
                "loss": expected["loss"],
                "confusion": [list(row) for row in expected["confusion"]],
            }
    assert history.best is not None
    assert history.best.epoch < 9 or update != "batch"
