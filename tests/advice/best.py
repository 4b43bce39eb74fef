"""Worlds of the best epoch: its monitor, the checkpoint that is read, and a trainer with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.optim.lr_scheduler import ReduceLROnPlateau

import streamtrain as st
from streamtrain.optim.schedules import Schedule
from tests.advice.command_line import TRAIN
from tests.advice.training import net
from tests.advice.world import World, X, Y, world

_MONITOR = "training/best/monitor.py:choose_monitor: "
_OR_VAL = ", or val= with data to measure on, which split= at ingest sets aside (val=0.1, say)"
_CHOSEN = "training/best/chosen_checkpoint.py:"
_MODE = "optim/schedules.py:OptimizerSchedules._check_mode: "


def fit(
    data: st.Dataset, on: st.Trainer | None = None, *, of_trainer: dict[str, Any] | None = None, **how: Any
) -> None:
    """Train for an epoch, or as many as are asked for."""
    trainer = on or st.Trainer(net(), loss="cross_entropy", device="cpu", **of_trainer or {})
    trainer.fit(data, **{"max_epochs": 1, "batch_size": 20, "memory": "16MB", "progress": False} | how)


@world(
    f"{_MONITOR}monitor='loss'{_OR_VAL}",
    f"{_MONITOR}monitor={{}}{_OR_VAL}",
    f"{_MONITOR}monitor={{}}, which is measured on the validation data alone",
)
def monitors_without_validation_data(w: World) -> None:
    data = w.dataset()
    for line in (f"{TRAIN} --patience 2", f"{TRAIN} --monitor val_accuracy"):
        w.typed(line)
        w.works(f"{line} --val d.zarr")
    np.savez("more.npz", x=X, y=Y)
    w.works("ingest more.npz split --split val=0.1")
    w.works(f"{TRAIN.replace('d.zarr', 'split')} --patience 2")
    w.typed(f"{TRAIN} --val d.zarr --monitor f1")
    w.followed(fit, data, restore_best=True)
    w.followed(fit, data, monitor="val_loss")
    fit(data, val=data, restore_best=True)


@world(f"{_CHOSEN}_numbered: which='last'", f"{_CHOSEN}_parse: which='best'")
def checkpoints_that_are_not_there(w: World) -> None:
    w.dataset()
    w.works(f"{TRAIN} --val d.zarr --out run")
    for command in ("evaluate run d.zarr", "report run"):
        w.typed(f"{command} --checkpoint 77")
        w.typed(f"{command} --checkpoint first")


@world(f"{_CHOSEN}checkpoint_of: which={{}}, the best, which is whole; or {{}}")
def runs_whose_newest_checkpoints_are_damaged(w: World) -> None:
    w.dataset()
    train = f"{TRAIN} --out run --epochs 3 --monitor loss --monitor-mode max"
    w.works(train)
    _, *newer = sorted(Path("run/checkpoints").iterdir())
    for folder in newer:
        (folder / "model.safetensors").write_bytes(b"")
    w.typed("evaluate run d.zarr")
    told = w.refuses(f"{train} --resume")
    init = told.rpartition("; ")[2].removesuffix(" begins either with the best weights, which are whole")
    w.works(f"{TRAIN} --out other {init}")


@world("training/best/watch.py:check_same_weights: resume='auto' to go on from the last weights, or a new trainer")
def a_trainer_with_the_best_weights(w: World) -> None:
    data = w.dataset()
    # Uphill: the first epoch is the best.
    trainer = st.Trainer(net(), loss="cross_entropy", optimizer="sgd", lr=0.5, maximize=True, device="cpu")
    fit(data, trainer, max_epochs=3, monitor="loss", restore_best=True, checkpoint="run")
    w.refused(fit, data, trainer, max_epochs=4)
    fit(data, trainer, max_epochs=4, monitor="loss", checkpoint="run", resume="auto")
    fit(data, max_epochs=4)


@world(f"{_MODE}options={{}} of the schedule", f"{_MODE}mode={{}}")
def plateaus_of_the_other_mode(w: World) -> None:
    data = w.dataset()
    w.typed(f"{TRAIN} --monitor accuracy --schedule plateau --schedule-option mode=min")

    def made(mode: str) -> dict[str, Any]:
        def plateau(optimizer: Any) -> Any:
            return ReduceLROnPlateau(optimizer, mode=mode)  # type: ignore[arg-type]

        return {"schedule": Schedule(name=plateau)}

    assert w.refused(fit, data, monitor="accuracy", of_trainer=made("min")) == "mode='max'"
    fit(data, monitor="accuracy", of_trainer=made("max"))
