"""Metrics of the user's own, such as torchmetrics': objects with ``update``, ``compute`` and ``reset``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

from torch import Tensor

from streamtrain.errors import UsageError
from streamtrain.loader.world import present_rank
from streamtrain.system.arguments import is_number

METRIC_NAMES: Final = (
    *("loss", "accuracy", "f1", "balanced_accuracy", "top5_accuracy", "auc", "precision", "recall", "exact_match"),
    *("rmse", "mae", "r2", "max_error"),
)
"""Metric names of ours that a line of metrics may hold."""

_TAKEN: Final = frozenset(
    {"epoch", "partial", "steps", "samples", "batches", "kind", "objective", "grad_norm", "lr", "seconds", "trial"}
    | {"samples_per_second", "stall_fraction"}
)
_METHODS: Final = ("update", "compute", "reset")


class UserMetric(Protocol):
    """A metric over batches: what it has seen since it was last reset."""

    def update(self, prediction: Tensor, target: Tensor, /) -> object: ...
    def compute(self) -> object: ...
    def reset(self) -> object: ...


def check_metrics(metrics: object) -> dict[str, UserMetric]:
    """Refuse metrics that are no objects with ``update``, ``compute`` and ``reset``, by names that are free."""
    if not isinstance(metrics, Mapping):
        raise UsageError(f"metrics is {metrics!r:.80}", fix="a mapping of name to metric: metrics={'ap': metric}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise UsageError(f"a metric's name is {name!r:.80}", fix="a name of letters, digits and underscores")
        if name in {*METRIC_NAMES, *_TAKEN} or name.startswith(("val_", "trial_")) or name.endswith("_seconds"):
            raise UsageError(f"the name {name!r} is taken", fix="another name for the metric")
        missing = [method for method in _METHODS if not callable(getattr(metric, method, None))]
        if isinstance(metric, type) or missing:
            is_function = callable(metric) and len(missing) == len(_METHODS)
            raise UsageError(
                f"metric {name} is {metric!r:.80}, which has no {missing[0] if missing else 'instance'}",
                why="A mean of batch means is not a metric" if is_function else None,
                fix="an object with update(prediction, target), compute() and reset(), as torchmetrics has them",
            )
        if present_rank().world_size > 1 and not _is_synchronized(metric):
            raise UsageError(
                f"metric {name} is not synchronized, and {present_rank().world_size} processes train together",
                why="Its compute() would be of the samples of one process",
                fix="one of torchmetrics, or the attribute synchronized = True where compute() gathers from all",
            )
    return dict(metrics)


def _is_synchronized(metric: object) -> bool:
    """Whether a metric says that it computes over all processes, as those of torchmetrics do."""
    is_of_torchmetrics = any(each.__module__.split(".")[0] == "torchmetrics" for each in type(metric).__mro__)
    return is_of_torchmetrics or getattr(metric, "synchronized", False) is True


def computed(name: str, metric: UserMetric) -> float:
    """Return what a metric comes to, one number."""
    found = metric.compute()
    if isinstance(found, Tensor) and found.numel() == 1:
        return float(found)
    if hasattr(found, "item") and getattr(found, "ndim", 0) == 0 and not isinstance(found, Tensor):
        found = found.item()
    if is_number(found) or (isinstance(found, float) and not math.isfinite(found)):
        return float(found)
    shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.80}"
    raise UsageError(f"metric {name} computes {shape}", fix="one number, and a metric for each")
