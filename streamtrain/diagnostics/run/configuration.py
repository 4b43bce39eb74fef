"""The configuration of a run: what was chosen for it, apart from what is as by default or follows from the rest."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, Final

import torch

from streamtrain.diagnostics.run.scores import short_text
from streamtrain.system.arguments import is_int
from streamtrain.system.units import format_bytes

_TOLD_APART: Final = ("command", "fit", "versions")
_FOLLOWS: Final = (
    *(
        "n_parameters",
        "n_samples",
        "n_outputs",
        "input_shape",
        "dataset_id",
        "order",
        "labels",
        "classes",
        "class_values",
    ),
    *("lanes", "groups", "threads", "category_sizes", "model_sha256", "normalized", "targets", "columns"),
)
"""What follows from the model, the data and the memory."""
_SIZES: Final = ("memory", "max_memory")
USUAL: Final[Mapping[str, object]] = {
    "update": "batch",
    "inputs": ["x"],
    "normalize": ["x"],
    "target": "y",
    "accumulate_grad_batches": 1,
    "batch_size": 256,
    "memory": 512_000_000,
    "shuffle": True,
    "reshuffle": "epoch",
    "seed": 0,
}
"""Defaults other than none, false or zero."""

Facts = list[tuple[str, str]]


def configuration(config: Mapping[str, Any]) -> tuple[Facts, Facts]:
    """Divide a configuration into what was chosen and the rest, each as names and texts."""
    chosen: Facts = []
    rest: Facts = []
    usual = _usual(config)
    for name, value in sorted(_flat(config), key=itemgetter(0)):
        top = name.partition(".")[0]
        if top in _TOLD_APART:
            continue
        is_usual = value == usual[name] if name in usual else value in (None, False, 0)
        text = format_bytes(value) if name in _SIZES and is_int(value) else short_text(value)
        (rest if is_usual or top in _FOLLOWS else chosen).append((name, text))
    return chosen, rest


def _usual(config: Mapping[str, Any]) -> dict[str, object]:
    """Collect the defaults by name, those of the optimizer as torch has them."""
    optimizer = config.get("optimizer")
    name = optimizer.get("name") if isinstance(optimizer, dict) else None
    kind = getattr(torch.optim, name, None) if isinstance(name, str) and name in torch.optim.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        return dict(USUAL)
    given = inspect.signature(kind).parameters
    defaults = {f"optimizer.{each.name}": each.default for each in given.values() if each.default is not each.empty}
    # The learning rate is always told: it is what most runs are tuned by.
    defaults.pop("optimizer.lr", None)
    return dict(USUAL) | {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
