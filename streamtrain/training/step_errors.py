"""Explanations of a failed step: the samples that diverged, a lower learning rate, a batch size that fits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from streamtrain.errors import Argument, DeviceError, DivergedError, Fix, StreamtrainError
from streamtrain.loader.batch import tensor_bytes
from streamtrain.loader.device.failures import device_failure, is_device_failure, is_out_of_memory
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.gradients import NO_CLIPPING, Learner, TrainingBatch
from streamtrain.optim.optimizers import takes_closure, usual_rate
from streamtrain.shuffle.order import I64
from streamtrain.system.units import format_bytes

_NAMED: Final = 8
_BAD_VALUES: Final = "These samples hold values that are not finite"


def name_bad_samples(error: DivergedError, learner: Learner, batch: TrainingBatch, samples: I64 | None) -> None:
    """Add to an error the samples behind it, as far as they can be told apart."""
    if samples is None or len(samples) != len(batch):
        return
    places, why = _find(learner, batch)
    found = samples if places is None else samples[places]
    error.samples = tuple(int(sample) for sample in found)
    error.why = f"{why}: {_listed(found)}"
    if why == _BAD_VALUES:
        # No rate is low enough for them.
        error.fix = "leave these samples out, or mend their values where they are made"


def name_missing_values(error: DivergedError, dataset: object, fields: Mapping[str, Any]) -> None:
    """Add to an error how many values of its data are no numbers, where those of a batch's fields are among them."""
    told = ", ".join(filter(None, (_bad_values(dataset, name) for name, values in fields.items() if _has_bad(values))))
    if not told:
        return
    samples = f", here in {_named_samples(error.samples)}" if error.samples else ""
    error.why = f"{told[0].upper()}{told[1:]}{samples}"
    error.fix = "fill them, or leave their rows out, before the ingest; or a model of your own with torch.nan_to_num"


def _named_samples(samples: Sequence[int]) -> str:
    return f"sample{'s' * (len(samples) > 1)} {_listed(np.asarray(samples, np.int64))}"


@contextmanager
def naming_missing_values(dataset: object, rows: Mapping[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Explain a step that fails on these fields of a dataset's rows."""
    try:
        yield
    except DivergedError as error:
        name_missing_values(error, dataset, {name: rows[name] for name in names if name in rows})
        raise


def _has_bad(values: Any) -> bool:
    found = torch.as_tensor(values)
    return found.is_floating_point() and not bool(torch.isfinite(found).all())


def _bad_values(dataset: object, name: str) -> str:
    """Say how many values of a field are not finite, as far as its dataset tells."""
    statistics = getattr(getattr(dataset, "manifest", None), "statistics", {})
    if name not in statistics:
        return ""
    overall = statistics[name].overall
    counts = [f"{n:,} {kind}" for n, kind in ((overall.n_nan, "NaN"), (overall.n_inf, "infinite")) if n]
    many = "s" * (overall.n_nan + overall.n_inf > 1)
    return f"field {name} holds {' and '.join(counts)} value{many}" if counts else ""


def _find(learner: Learner, batch: TrainingBatch) -> tuple[I64 | None, str]:
    bad = _bad_rows((*batch.inputs, batch.target))
    if len(bad):
        return bad, _BAD_VALUES
    if not all(bool(torch.isfinite(parameter).all()) for parameter in learner.parameters):
        return None, "Weights are not finite since the step before; the batch is of samples"
    try:
        bad_losses, bad_gradients = _by_sample(learner, batch)
    except (StreamtrainError, RuntimeError, ValueError, TypeError, IndexError):
        # The loss may couple samples; then only the batch is known.
        return None, "The batch is of samples"
    if len(bad_losses):
        return bad_losses, "These samples have a loss that is not finite"
    if len(bad_gradients):
        return bad_gradients, "These samples have a gradient that is not finite"
    return None, "The batch is of samples"


def _bad_rows(tensors: tuple[Tensor, ...]) -> I64:
    bad = torch.zeros(len(tensors[0]), dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        if tensor.is_floating_point():
            bad |= ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    return _places(bad.tolist())


def _by_sample(learner: Learner, batch: TrainingBatch) -> tuple[I64, I64]:
    """Find the samples whose own loss, and those whose own gradient, is not finite."""
    with torch.no_grad():
        output = learner.model(*batch.inputs)
    ones = [slice(i, i + 1) for i in range(len(batch))]
    losses = [learner.loss.total(output[one], batch.target[one])[0] for one in ones]
    bad_losses = _places([not bool(torch.isfinite(loss)) for loss in losses])
    if len(bad_losses):
        return bad_losses, _places([])
    # One at a time: in a shared graph, a non-finite gradient times the zero of another sample's loss is NaN.
    return bad_losses, _places([_has_bad_gradient(learner, batch.rows(one)) for one in ones])


def _has_bad_gradient(learner: Learner, sample: TrainingBatch) -> bool:
    loss, _ = learner.loss.total(learner.model(*sample.inputs), sample.target)
    gradients = torch.autograd.grad(loss, learner.parameters, allow_unused=True)
    return not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)


def _places(bad: list[bool]) -> I64:
    return np.flatnonzero(np.array(bad, np.bool_)).astype(np.int64)


def _listed(samples: I64) -> str:
    named = ", ".join(str(sample) for sample in samples[:_NAMED])
    return named if len(samples) <= _NAMED else f"{named}, ... ({len(samples)} in all)"


def name_rate(error: DivergedError, learner: Learner, *, takes_raw_target: bool) -> None:
    """Add to an error the learning rate that it came at, and as its remedy a lower one, and what else may help.

    ``takes_raw_target`` says that the targets could be in units of their spread, and are not.
    """
    if not isinstance(error.fix, Fix) or error.fix.argument("lr") is None:
        return
    group = learner.optimizer.param_groups[0]
    lr = float(group["lr"])
    error.why = f"The run diverged at a learning rate of {lr:g}. {error.why or ''}".strip()
    # Schedules change the rate that was given.
    lower = lower_rate(float(group.get("initial_lr", lr)), usual_rate(type(learner.optimizer)))
    also = [part for each in _beside_rate(learner, takes_raw_target=takes_raw_target) for part in (", or ", each)]
    error.fix = Fix("a lower learning rate, ", Argument("lr", lower), *also)


def _beside_rate(learner: Learner, *, takes_raw_target: bool) -> Iterator[Argument]:
    """Name what keeps a run from diverging that it does without."""
    if isinstance(learner.model, NormalizedModel) and not learner.model.modules_by_input():
        yield Argument("normalize", "auto")
    if takes_raw_target:
        yield Argument("normalize_target", "auto")
    if learner.clipping == NO_CLIPPING and not takes_closure(learner.optimizer):
        yield Argument("clip_grad_norm", 1.0)


def lower_rate(lr: float, usual: float = math.inf) -> float:
    """Return a rate that is likely low enough where one diverged: a tenth, or the usual one of the optimizer.

    >>> lower_rate(0.1), lower_rate(0.03), lower_rate(1e30, usual=0.1)
    (0.01, 0.003, 0.1)
    """
    return min(float(f"{lr / 10:.1g}"), usual) if 0 < lr < math.inf else lr


_WANTED: Final = re.compile(r"[Tt]ried to allocate ([0-9.]+) (bytes|[KMGT]iB)")
_UNITS: Final = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def suggest_batch_size(batch_size: int, *, room_bytes: int, needed_bytes: int) -> int:
    """Return a batch size for a step that needs ``needed_bytes``: at most half, less where room is short."""
    return min(batch_size // 2, batch_size * max(0, room_bytes) // max(1, needed_bytes))


def failed_allocation_bytes(error: Exception) -> int:
    """Return the size of the failed allocation, read from torch's message."""
    found = _WANTED.search(str(error))
    return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0


@contextmanager
def explain_device(
    device: torch.device, *, batch_size: int, optimizer: Optimizer, loader_bytes: int = 0
) -> Iterator[None]:
    """Turn torch's out-of-memory error into one with a batch size that fits, and report a failed device."""
    try:
        yield
    except RuntimeError as error:
        if is_device_failure(error):
            raise device_failure(error, device) from error
        if not is_out_of_memory(error):
            raise
        # While the error is handled, its frames still hold the memory that the step took so far.
        held, most = _usage(device)
        kept = tensor_bytes(each for each in _kept(optimizer) if each.device.type == device.type)
        needed = max(held - kept, 0) + failed_allocation_bytes(error)
        fits = suggest_batch_size(batch_size, room_bytes=most - kept, needed_bytes=needed)
        of_loader = f" and up to {format_bytes(loader_bytes)} that the loader holds" if loader_bytes else ""
        less = (", or a smaller ", Argument("memory"), " for the loader") if loader_bytes else ()
        raise DeviceError(
            f"the device is out of memory at batch_size {batch_size}",
            where=str(device),
            why=f"Besides the {format_bytes(kept)} that the model and its optimizer keep{of_loader}, the step needs "
            f"more than {format_bytes(needed)}, and {format_bytes(max(0, most - kept))} are there for it",
            fix=Fix(Argument("batch_size", fits), *less)
            if fits
            else Fix("a smaller model", *less, ", or ", Argument("device", "cpu")),
        ) from error


def _usage(device: torch.device) -> tuple[int, int]:
    """Return the bytes of the device that this process uses, and the most it could."""
    if device.type != "cuda":
        return 0, 0
    held = torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return held, int(free) + torch.cuda.memory_reserved(device)


def _kept(optimizer: Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
