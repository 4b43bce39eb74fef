"""Worlds of targets: their units, the weights of classes, and metrics of one's own."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

import streamtrain as st
from tests.advice.command_line import TRAIN
from tests.advice.training import fit, net
from tests.advice.world import World, X, world

_WEIGHTS = "training/labels/class_weights.py:"
_TARGETS = "training/labels/targets.py:"
_METRICS = "training/metrics/user.py:"


@world(
    "cli/options.py:_parse_class_weight: --class-weight balanced, or A=2,B=0.5",
    f"{_WEIGHTS}check_class_weight: 'balanced', or a mapping of class to weight",
    f"{_WEIGHTS}check_class_weight: leave it out, or a loss of classes",
    f"{_WEIGHTS}check_class_weight: one of the two",
    f"{_WEIGHTS}told: a weight above 0 for one of them",
)
def weights_of_classes(w: World) -> None:
    data = w.dataset()
    w.refuses(f"{TRAIN} --class-weight even")
    w.works(f"{TRAIN} --class-weight balanced")
    w.works(f"{TRAIN} --class-weight 0=2,1=0.5")
    inside = nn.CrossEntropyLoss(weight=torch.ones(3))
    for wrong in ({"class_weight": 2}, {"class_weight": {0: 0, 1: 0, 2: 0}}, {"class_weight": {0: 2}, "loss": inside}):
        w.refused(fit, data, **wrong)
    for right in ({"class_weight": "balanced"}, {"class_weight": {0: 0, 1: 0, 2: 1}}, {"loss": inside}):
        fit(data, **right)
    values = w.dataset("values.zarr", y=X[:, 0])
    w.refused(fit, values, net(1), loss="mse", class_weight="balanced")
    fit(values, net(1), loss="mse")


@world(
    f"{_WEIGHTS}check_one_class_a_sample: loss=torch.nn.CrossEntropyLoss(weight=...), or "
    "BCEWithLogitsLoss(pos_weight=...), in Python",
    f"{_TARGETS}TargetOptions._weights: labels of at most 65,536 whole numbers from 0",
)
def weights_of_other_classes(w: World) -> None:
    masks = w.dataset(y=np.arange(180).reshape(60, 3) % 2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    w.refused(fit, masks, model, class_weight="balanced")
    fit(masks, model, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])))
    marks = w.dataset("marks.zarr", y=np.arange(60) % 2 / 2)
    w.refused(fit, marks, net(1), loss="bce_with_logits", class_weight="balanced")
    fit(w.dataset("whole.zarr", y=np.arange(60) % 2 * 1.0), net(1), loss="bce_with_logits", class_weight="balanced")


@world(f"{_TARGETS}TargetOptions.__init__: None or 'auto'", f"{_TARGETS}_check_counts: loss='mse', or loss='huber'")
def targets_of_a_regression(w: World) -> None:
    data = w.dataset(y=X[:, 0])
    w.refused(fit, data, net(1), loss="mse", normalize_target="all")
    for right in (None, "auto"):
        fit(data, net(1), loss="mse", normalize_target=right)
    w.refused(fit, w.dataset("below.zarr", y=-1 - np.arange(60.0)), net(1), loss="poisson")
    for loss in ("mse", "huber"):
        fit(data, net(1), loss=loss)


@world(f"{_TARGETS}class_number: one of the two")
def the_positive_class(w: World) -> None:
    w.dataset(y=np.arange(60) % 2)
    w.works(f"{TRAIN} --out run")
    evaluate = "evaluate run d.zarr --memory 16MB --batch-size 20 --positive"
    w.refuses(f"{evaluate} 2")
    for right in (0, 1):
        w.works(f"{evaluate} {right}")


class Count:
    """How many samples there were."""

    def __init__(self, result: Any = None) -> None:
        self.result = result

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.n += len(target)

    def compute(self) -> Any:
        return self.n if self.result is None else self.result

    def reset(self) -> None:
        self.n = 0


@world(
    f"{_METRICS}check_metrics: a mapping of name to metric: metrics={{'ap': metric}}",
    f"{_METRICS}check_metrics: a name of letters, digits and underscores",
    f"{_METRICS}check_metrics: another name for the metric",
    f"{_METRICS}check_metrics: an object with update(prediction, target), compute() and reset(), as torchmetrics has "
    "them",
    f"{_METRICS}check_metrics: one of torchmetrics, or the attribute synchronized = True where compute() gathers from "
    "all",
    f"{_METRICS}computed: one number, and a metric for each",
)
def metrics_of_ones_own(w: World) -> None:
    data = w.dataset()
    wrong = ([Count()], {"a b": Count()}, {"loss": Count()}, {"ap": torch.mean}, {"ap": Count(torch.ones(2))})
    for metrics in wrong:
        w.refused(fit, data, metrics=metrics)
    trainer = st.Trainer(net(), loss="cross_entropy", device="cpu", metrics={"ap": Count()})
    fit(data, on=trainer)
    group = {"is_available": lambda: True, "is_initialized": lambda: True}
    two = SimpleNamespace(**group, get_rank=lambda: 0, get_world_size=lambda: 2)
    w.monkeypatch.setitem(sys.modules, "torch.distributed", two)
    w.refused(fit, data, metrics={"ap": Count()})
    gathering = Count()
    gathering.synchronized = True  # type: ignore[attr-defined]
    st.Trainer(net(), loss="cross_entropy", device="cpu", metrics={"ap": gathering})
