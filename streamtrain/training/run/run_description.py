"""The description of a run: of its model, rule and stream, compared on resume, and the place inside its stream."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

import torch

from streamtrain.errors import Argument, Fix
from streamtrain.loader.decode.image_dataset import decode_config
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.factory import n_parameters
from streamtrain.models.losses import IGNORED
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.rules import UpdateRule
from streamtrain.training.batch_stream import BatchStream

_JSON: Final = (bool, int, float, str, tuple, list)
FREE: Final = (
    "Free to change are max_epochs, max_steps, until_loss, patience, min_delta, grad_tolerance, loss_tolerance, "
    "memory, threads, device, val, log_every, checkpoint_every, on_checkpoint_failure and the number of ranks"
)
SINCE: Final = {"reshuffle": "epoch", "compile": False, "l2": 0.0}
"""Meaning of a checkpoint from before these options existed, where it is not None."""
_PLACE: Final = frozenset({"epoch", "batch", "lanes", "groups"})
"""The keys of a stream's state that are its position; lanes and groups are taken from it."""


@runtime_checkable
class ResumableStream(Protocol):
    """A stream that can report its position and resume there."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def describe_run(
    rule: UpdateRule, front: NormalizedModel, stream: BatchStream, fields: Mapping[str, object]
) -> dict[str, object]:
    """Describe a rule, its learner and its stream as JSON values by name."""
    learner, decode = rule.learner, getattr(stream.dataset, "decode", None)
    defaults = {name: value for name, value in learner.optimizer.defaults.items() if isinstance(value, _JSON)}
    return {
        "model": type(front.model).__name__,
        "n_parameters": n_parameters(front.model),
        "loss": learner.loss.name,
        **({} if learner.loss.ignored in (None, IGNORED) else {"ignore_index": learner.loss.ignored}),
        "update": rule.name,
        **rule.options(),
        "optimizer": {"name": type(learner.optimizer).__name__, **defaults},
        **fields,
        "normalize": sorted(front.modules_by_input()),
        "batch_size": stream.batch_size,
        "drop_last": stream.drop_last,
        # The effect, not the option: a rule that sums over the whole dataset reads in stored order either way.
        "shuffle": stream.shuffle and not rule.in_stored_order,
        "reshuffle": getattr(stream, "reshuffle", "epoch"),
        "order": None if rule.in_stored_order else getattr(stream, "order_version", None),
        "seed": stream.seed,
        **({} if decode is None else {"decode": decode_config(decode)}),
        "n_samples": len(stream.dataset),
        "dataset_id": getattr(stream.dataset, "id", None),
    }


def budget_config(loader: StreamLoader, memory: int) -> dict[str, object]:
    """Return what follows from a run's memory budget, as JSON values by name."""
    return {"memory": memory, "lanes": loader.sizes.lanes, "groups": loader.sizes.groups}


def defaults_since(optimizer: torch.optim.Optimizer, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, by their names in an identity, that a checkpoint does not tell: torch has them since."""
    known = inspect.signature(type(optimizer)).parameters.items()
    named = {f"optimizer.{name}": each.default for name, each in known if each.default is not each.empty}
    return {name: value for name, value in named.items() if name not in before and isinstance(value, _JSON)}


def stream_state(stream: object) -> dict[str, Any] | None:
    """Return the position of a stream; None where it cannot say."""
    return stream.state_dict() if isinstance(stream, ResumableStream) else None


def stream_identity(stream: BatchStream) -> tuple[object, ...]:
    """Return what two streams must share so that one can resume at the other's position."""
    state = stream_state(stream) or {}
    order = (stream.batch_size, stream.seed, stream.shuffle, stream.drop_last)
    return (getattr(stream.dataset, "id", stream.dataset), *order, {k: v for k, v in state.items() if k not in _PLACE})


_AS_IT_WAS: Final = Fix("train as it was trained, or another ", Argument("checkpoint"))


def how_to_resume(before: Mapping[str, Any], now: Mapping[str, Any]) -> Fix:
    """Say how the run can be resumed: also where its schedule was set up for another end."""
    there, here = (of.get("schedule.T_max") for of in (before, now))
    if there is None or there == here:
        return _AS_IT_WAS
    option = Argument("options", {"T_max": there})
    return Fix("the schedule as it was set up, ", option, ", past whose end its rate rises again; or ", _AS_IT_WAS)
