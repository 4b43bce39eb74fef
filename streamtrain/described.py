"""What a run is described as: by that ``config.json`` tells of it, and a checkpoint knows whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from streamtrain.errors import UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.factory import n_parameters
from streamtrain.models.normalization import Front
from streamtrain.optim.rules import Rule
from streamtrain.runs import NoRun, Run, RunFolder
from streamtrain.stream import Stream

_JSON: Final = (bool, int, float, str, tuple, list)


def describe(rule: Rule, front: Front, stream: Stream, fields: Mapping[str, object]) -> dict[str, object]:
    """What a rule and its learner do with some fields of a stream: JSON values by name."""
    learner = rule.learner
    defaults = {name: value for name, value in learner.optimizer.defaults.items() if isinstance(value, _JSON)}
    return {
        "model": type(front.model).__name__,
        "n_parameters": n_parameters(front.model),
        "loss": learner.loss.name,
        "update": rule.name,
        **rule.options(),
        "optimizer": {"name": type(learner.optimizer).__name__, **defaults},
        **fields,
        "normalize": sorted(front.modules_by_input()),
        "batch_size": stream.batch_size,
        "drop_last": stream.drop_last,
        # What is done, not what is asked for: a rule that sums over the whole reads in stored order either way.
        "shuffle": stream.shuffle and not rule.in_stored_order,
        "reshuffle": getattr(stream, "reshuffle", "epoch"),
        "seed": stream.seed,
        "n_samples": len(stream.dataset),
        "dataset_id": getattr(stream.dataset, "id", None),
    }


def solved(loader: StreamLoader, memory: int) -> dict[str, object]:
    """What of a run follows from its budget of so many bytes, likewise."""
    return {"memory": memory, "lanes": loader.sizes.lanes, "groups": loader.sizes.groups}


def run_at(checkpoint: str | Path | RunFolder | None, config: dict[str, object], *, goes_on: bool) -> Run:
    """The run that is kept in a folder; without one, a run that leaves nothing behind.

    Raises
    ------
    UsageError
        Something is there already, or a run is to go on and no folder is named.
    """
    if isinstance(checkpoint, RunFolder):
        return checkpoint
    if checkpoint is not None:
        return RunFolder(Path(checkpoint), config, goes_on=goes_on)
    if goes_on:
        raise UsageError("resume without checkpoint", fix="checkpoint='runs/a', the folder of the run")
    return NoRun()
