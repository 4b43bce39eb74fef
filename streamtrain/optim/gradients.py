"""The gradient of a batch: finite, clipped, and with the L2 penalty.

Every update rule steps on this gradient of J, or sums it before it steps.

The penalty inside J is ``l2 / 2`` times the sum of the squared weights; it counts once a step, whatever the rule. It is
on weights of at least two axes, as matrices, kernels and embeddings have; biases and scales of normalizations have one.
With plain SGD that is ``weight_decay`` that spares the biases; AdamW's decay, in contrast, stays out of J.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from streamtrain.errors import Argument, DivergedError, Fix, InputError, UsageError
from streamtrain.models.losses import Loss
from streamtrain.models.real_view import as_real
from streamtrain.optim.schedules import OptimizerSchedules
from streamtrain.system.arguments import is_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """Limits of the mean gradient of a step: first of each component, then of the Euclidean norm.

    ``value`` limits both parts of a complex component.
    """

    value: float | None = None
    norm: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("clip_grad_value", self.value), ("clip_grad_norm", self.norm)):
            if limit is not None and not (is_number(limit) and limit > 0):
                raise UsageError(f"{name} is {limit!r}; it must be positive and finite")

    def clip(self, parameters: list[nn.Parameter]) -> None:
        """Clip the gradients of some parameters in place; refuse sparse ones."""
        if self != NO_CLIPPING and any(p.grad is not None and p.grad.is_sparse for p in parameters):
            raise UsageError("sparse gradients cannot be clipped", fix="sparse=False where the model's layers are made")
        if self.value is not None:
            if real := [parameter for parameter in parameters if not parameter.is_complex()]:
                clip_grad_value_(real, self.value)
            for parameter in parameters:
                if parameter.grad is not None and parameter.is_complex():
                    as_real(parameter.grad).clamp_(-self.value, self.value)
        if self.norm is not None:
            clip_grad_norm_(parameters, self.norm)


NO_CLIPPING: Final = Clipping()


def gradient_sizes(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Compute the norm of each gradient, as scalars not yet read; not finite where any component is not."""
    found = [dense(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return list(torch._foreach_norm(found)) if found else []


def check_finite(loss: float, sizes: Iterable[float], parameters: Iterable[nn.Parameter]) -> None:
    """Refuse a loss, or a gradient with these `gradient_sizes`, that is not finite, before a step is taken on it."""
    # A norm may overflow although every component is finite.
    if not math.isfinite(loss) or (not math.isfinite(sum(sizes)) and not _are_finite(parameters)):
        raise non_finite_error(loss)


def check_finite_sum(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse a mean of finite gradients that is not finite, before a step is taken on it."""
    if not _are_finite(parameters):
        raise DivergedError(
            "the sum of the gradients is not finite, though each of them is",
            why="It is too large for its own dtype, or for that of the weights",
            fix=Fix(Argument("grad_sum_dtype", "float64"), ", or a loss of another scale"),
        )


def non_finite_error(loss: float) -> DivergedError:
    """Build the error for a loss that is not finite, or a finite loss whose gradient is not."""
    return DivergedError(
        f"the gradient is not finite, at a loss of {loss:g}" if math.isfinite(loss) else f"the loss is {loss}",
        why="The weights or a sample hold numbers that are not finite, or too large",
        fix=Fix("a smaller ", Argument("lr"), ", or normalized inputs"),
    )


def _are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return all(bool(torch.isfinite(dense(gradient)).all()) for gradient in found)


def dense(gradient: Tensor) -> Tensor:
    """Return the numbers of a gradient; of a sparse one, those that it holds."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


_Function = TypeVar("_Function", bound=Callable[..., None])


def reading_weights(on_step: _Function) -> _Function:
    """Mark a callback that only reads weights, and may be called for steps that are undone and repeated.

    The sample rule's fast path accepts no other: it would miss what a callback changes.
    """
    on_step.reads_weights_only = True  # type: ignore[attr-defined]
    return on_step


def only_reads_weights(on_step: Callable[[], None]) -> bool:
    """Whether a callback is marked by `reading_weights`."""
    return getattr(on_step, "reads_weights_only", False) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The model, its loss, the optimizer, and the options that steps are taken with."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    l2: float = 0.0
    clipping: Clipping = NO_CLIPPING
    schedules: OptimizerSchedules | None = None
    # Called after every step, with the weights that it came to.
    on_step: Callable[[], None] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer trains, in its order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def copy_weights(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Copy the values of some parameters or buffers."""
    return [parameter.detach().clone() for parameter in parameters]


def put_weights(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Put values into some parameters or buffers."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


@contextmanager
def weights_kept(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Put the values of some parameters or buffers back at the end of the block, which is given a copy."""
    parameters = list(parameters)
    before = copy_weights(parameters)
    try:
        yield before
    finally:
        put_weights(parameters, before)


class BadWeightError(InputError):
    """A weight in the batch is negative or not finite; no step was taken on it."""


def least_weight(weight: Tensor | None) -> Tensor | float:
    """Return the least of a batch's weights where they are not validated yet, since reading would have waited."""
    return weight.detach().min() if weight is not None and waits_for_reads(weight.device) else math.inf


def check_least_weight(least: float, total: float) -> None:
    """Refuse weights of which one is negative or not finite, by their least and their sum."""
    if least != math.inf and not (least >= 0 and math.isfinite(total)):
        raise BadWeightError("the weight of a sample is negative, or not finite", fix="weights of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """A batch as a step takes it: what the model is given, what the loss compares with, and what samples weigh."""

    # (B, ...) each; the weights are (B,), and None where all samples weigh the same.
    inputs: tuple[Tensor, ...]
    target: Tensor
    weight: Tensor | None = None
    # The names of the fields in this order, for messages.
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    @property
    def fields(self) -> dict[str, Tensor]:
        """The tensors by name."""
        named = zip(self.names, (*self.inputs, self.target, self.weight), strict=False)
        return {name: tensor for name, tensor in named if tensor is not None}

    @property
    def factors(self) -> list[float | None]:
        """The weight of each sample as a number; None without weights."""
        return [None] * len(self) if self.weight is None else self.weight.tolist()

    def rows(self, some: slice | list[int]) -> TrainingBatch:
        """Select some of the samples."""
        weight = None if self.weight is None else self.weight[some]
        inputs = tuple(x[some] for x in self.inputs)
        return TrainingBatch(inputs=inputs, target=self.target[some], weight=weight, names=self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """The loss and outputs of the samples of a batch that a rule took in."""

    # The weighted mean over the samples, each measured just before it changed the weights; 0 where none has a weight.
    loss: float
    output: Tensor
    target: Tensor
    # The sum of the weights in that mean; without weights, the number of samples or of the target's elements.
    weight: float
    sample_weights: Tensor | None = None
    # Whether the weights are those of a trial of a line search, which the run may not come to.
    is_trial: bool = False
    # Samples that an earlier call took in, before the run was cut short inside the batch.
    n_before: int = 0
    # Of the batch of all ranks, where they were exchanged: the mean loss, the weight, and the number of samples.
    of_all: tuple[float, float, int] | None = None

    @property
    def n_samples(self) -> int:
        """Samples taken in; fewer than the batch holds after a stop inside it."""
        return len(self.target)

    @property
    def n_new(self) -> int:
        """Samples that this call took in."""
        return self.n_samples - self.n_before


def batch_gradient(
    learner: Learner, batch: TrainingBatch, *, summed: bool = False, scale: float | None = None, check: bool = True
) -> BatchResult:
    """Leave the gradient of J over a batch, times ``scale``, in the parameters, in place of any before.

    With ``summed`` it is the gradient of the weighted sum of the losses, which no division has rounded. Over several
    batches these add up, and J's gradient is their sum over the sum of the weights, or over 1 where the loss itself is
    ``summed``. With ``check`` a loss or a gradient that is not finite is a DivergedError.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    if not len(batch):
        # A rank's share of a last batch of fewer samples than there are ranks.
        return BatchResult(loss=0.0, output=batch.target, target=batch.target, weight=0.0, sample_weights=batch.weight)
    output: Tensor = learner.model(*batch.inputs)
    measured, weights = (learner.loss.total if summed else learner.loss.objective)(output, batch.target, batch.weight)
    factor = None if scale is None else torch.full_like(measured, scale)
    measured.backward(factor)  # type: ignore[no-untyped-call]
    # Where reading waits for the device, the weights have not been validated before.
    least = least_weight(batch.weight)
    value, total_weight, least, *sizes = read_scalars(measured, weights, least, *gradient_sizes(learner.parameters))
    check_least_weight(least, total_weight)
    if check and total_weight:
        check_finite(value, sizes, learner.parameters)
    if summed or learner.loss.summed or not total_weight:
        value = value / total_weight if total_weight else 0.0
    return BatchResult(
        loss=value, output=output.detach(), target=batch.target, weight=total_weight, sample_weights=batch.weight
    )


def read_scalars(loss: Tensor, *others: Tensor | float) -> list[float]:
    """Read a loss and other scalars, waiting once for the device."""
    scalars = (loss, *others)
    if not waits_for_reads(loss.device):
        return [float(x.item()) if isinstance(x, Tensor) else float(x) for x in scalars]
    tensors = [x.detach() if x.requires_grad else x for x in scalars if isinstance(x, Tensor)]
    read = iter(_read_at_once(tensors, loss.device))
    return [next(read) if isinstance(x, Tensor) else float(x) for x in scalars]


def waits_for_reads(device: torch.device) -> bool:
    """Whether reading a number waits for queued work; on the CPU, reading one costs less than stacking several."""
    return device.type != "cpu"


def _read_at_once(scalars: list[Tensor], device: torch.device) -> list[float]:
    """Read scalars with one wait; those of one dtype are stacked before they are widened, which takes few kernels."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    places: dict[torch.dtype, list[int]] = {}
    for i, scalar in enumerate(scalars):
        places.setdefault(scalar.dtype, []).append(i)
    groups = [torch.stack([scalars[i].to(device) for i in some]).to(wide) for some in places.values()]
    values = (groups[0] if len(groups) == 1 else torch.cat(groups)).tolist()
    of_place = dict(zip([i for some in places.values() for i in some], values, strict=True))
    return [of_place[i] for i in range(len(scalars))]


def grad_norm(parameters: list[nn.Parameter]) -> float:
    """Compute the Euclidean norm of all the gradients together."""
    wide = torch.float32 if parameters[0].device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(as_real(dense(p.grad)), dtype=wide) for p in parameters if p.grad is not None]
    return math.hypot(*torch.stack(norms).tolist()) if norms else 0.0


def check_l2(l2: float) -> None:
    """Refuse a factor that is not a finite number of at least 0."""
    if not is_number(l2) or l2 < 0:
        raise UsageError(f"l2 is {l2!r}; it must be 0 or positive, and finite")


def penalized(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Select the parameters that the penalty is on: trained, and with at least two axes."""
    return [parameter for parameter in parameters if parameter.ndim >= 2 and parameter.requires_grad]


def penalty(parameters: Iterable[nn.Parameter], l2: float) -> float:
    """Compute the penalty on some parameters, in float64 where the device has it."""
    if not l2:
        return 0.0
    squares = [_square(parameter.detach()) for parameter in penalized(parameters)]
    return l2 / 2 * math.fsum(torch.stack(squares).tolist()) if squares else 0.0


def _square(weight: torch.Tensor) -> torch.Tensor:
    flat = as_real(weight).reshape(-1)
    wide = flat if flat.device.type == "mps" else flat.double()
    return wide.dot(wide)


def add_penalty(parameters: Iterable[nn.Parameter], l2: float) -> None:
    """Add the penalty's gradient to the parameters' own."""
    for parameter in penalized(parameters) if l2 else ():
        weight = parameter.detach()
        if parameter.grad is None:
            parameter.grad = weight * l2
        elif parameter.grad.is_sparse:
            parameter.grad = (weight * l2).add_(parameter.grad)
        else:
            parameter.grad.add_(weight, alpha=l2)
