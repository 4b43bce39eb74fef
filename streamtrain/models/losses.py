"""Losses by name: exact weighted means over the samples of a batch, with output and target aligned.

A `Loss` aligns the model's output with the target before it measures, so that the classic silent mistake, an output of
shape (B, 1) broadcast against a target of shape (B,) to a (B, B) table of differences, cannot happen: the one axis too
many is dropped where that has a single meaning, and everything else is refused. Nothing is broadcast.

Every loss here is a weighted mean, J = sum of weight * loss / sum of weight, over the elements of the targets: all of
weight 1, times the class weight of its class, 0 where its class is ignored, times its sample's weight. So the mean over
several batches is the sum of their `total` over the sum of their weights, which the mean of their means is not.

Floats of different widths are promoted to the wider one, as everywhere in torch; no other dtype is converted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it
from torch.nn.modules import loss as torch_losses

from streamtrain.errors import UsageError, unknown_name

LossKind = Literal["classes", "logits", "values", "custom"]
"""What a loss compares: scores of classes with a class, one logit with 0 or 1, numbers with numbers, or unknown."""


class NamedLoss(Protocol):
    """What is asked of a loss."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> LossKind: ...


def align(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Line output and target up for a loss, or say why they do not fit.

    ======= ============================ ======================================================
    kind    target                       shapes
    ======= ============================ ======================================================
    classes int64                        output (B, C, ...), target (B, ...) or (B, 1)
    logits  float                        equal, or one of them with one last axis of length 1 more
    values  float                        equal, or one of them with one last axis of length 1 more
    custom  anything                     anything
    ======= ============================ ======================================================

    Raises
    ------
    UsageError
        The target's dtype is of another kind, or the shapes could only meet by broadcasting.

    Examples
    --------
    >>> from streamtrain.models.losses import resolve_loss
    >>> output, target = align(resolve_loss("l1"), torch.zeros(8, 1), torch.zeros(8))
    >>> output.shape, target.shape
    (torch.Size([8]), torch.Size([8]))
    """
    match loss.kind:
        case "custom":
            return output, target
        case "classes":
            return _align_classes(loss, output, target)
        case _:
            return _align_values(loss, output, target)


def _align_classes(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype != torch.int64:
        raise _wrong_dtype(loss, target, "int64 class labels", "mse or l1, or store the labels as int64")
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise _wrong_shape(loss, output, target, "an output of shape (B, classes)")
    return output, target


def _align_values(loss: NamedLoss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not target.dtype.is_floating_point:
        fix = "cross_entropy for class labels, or store the target as a float"
        raise _wrong_dtype(loss, target, "a float target", fix)
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
        output = output[..., 0]
    elif target.ndim == output.ndim + 1 and target.shape[-1] == 1:
        target = target[..., 0]
    if output.shape != target.shape:
        raise _wrong_shape(loss, output, target, "an output of the target's shape")
    wider = torch.promote_types(output.dtype, target.dtype)
    return output.to(wider), target.to(wider)


def _wrong_dtype(loss: NamedLoss, target: Tensor, wanted: str, fix: str) -> UsageError:
    return UsageError(f"{loss.name} needs {wanted}; the target is {dtype_name(target.dtype)}", fix=fix)


def _wrong_shape(loss: NamedLoss, output: Tensor, target: Tensor, wanted: str) -> UsageError:
    return UsageError(
        f"{loss.name} cannot compare an output of shape {tuple(output.shape)} with a target of {tuple(target.shape)}",
        why="Broadcasting one against the other would train on a wrong loss",
        fix=f"give the model {wanted}",
    )


def dtype_name(dtype: torch.dtype | str) -> str:
    """A dtype, or its name, without its library's name."""
    return str(dtype).removeprefix("torch.")


LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Output (B, ...) and target (B, ...) -> the mean over the B samples, a scalar tensor, or each sample's loss (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A named loss.

    Parameters
    ----------
    name : str
        As the user wrote it, or the callable's own name.
    kind : {"classes", "logits", "values", "custom"}
        What the target has to be; of a ``"custom"`` loss nothing is known and nothing is checked.
    mean : callable
        The function itself: the mean, or of a callable of the user's own each sample's loss (B,).
    each : callable, optional
        Output and target -> the losses of the target's elements, each times its class weight; of a callable of the
        user's own there is none.
    summed : bool
        Whether J is the sum and not the mean. What is reported is the mean all the same.
    class_weights : torch.Tensor, optional
        The weight of every class, shape (C,).
    ignored : int, optional
        The class whose targets have no loss and no weight; torch's own default where none is given.
    of_samples : bool
        Whether the mean is that of the samples' sums, not of the elements.

    Examples
    --------
    >>> import torch
    >>> mse = resolve_loss("mse")
    >>> float(mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])))
    2.0
    """

    name: str
    kind: LossKind
    mean: LossFunction
    each: LossFunction | None = None
    summed: bool = False
    class_weights: Tensor | None = None
    ignored: int | None = None
    of_samples: bool = False

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar tensor.

        Raises
        ------
        UsageError
            The shapes or dtypes do not fit each other; see `streamtrain.models.losses.align`.
        """
        return self._mean(*align(self, output, target))

    def _mean(self, output: Tensor, target: Tensor) -> Tensor:
        mean = self.mean(output, target)
        return mean.mean() if self.each is None and _is_per_sample(mean, target) else mean

    def total(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """Return the weighted sum of a batch's losses, a scalar tensor, and the sum of the weights.

        Parameters
        ----------
        output, target : torch.Tensor
            Of shapes (B, ...).
        weight : torch.Tensor, optional
            The samples' weights, (B,).

        Raises
        ------
        UsageError
            The shapes or dtypes do not fit each other; or ``weight`` is given, and the loss is a callable of the user's
            own that returns a mean, in which no sample can be weighed any more.

        Examples
        --------
        >>> import torch
        >>> loss = resolve_loss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])))
        >>> total, weight = loss.total(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
        >>> float(total / weight), float(weight)
        (0.6931471824645996, 7.0)
        """
        output, target = align(self, output, target)
        if self.each is None:
            return self._own_total(output, target, weight)
        losses = self.each(output, target)
        # Of a single sample, whose output has no axis of its own.
        losses = losses.reshape(1) if losses.ndim == 0 else losses
        if self.of_samples:
            losses = losses.flatten(1).sum(1) if losses.ndim > 1 else losses
        weights = self._weights(target, losses)
        if weight is None:
            return _summed(losses), losses.numel() if weights is None else _summed(weights)
        of_sample = weight.to(losses.dtype).view(-1, *(1,) * (losses.ndim - 1))
        of_each = of_sample.expand_as(losses) if weights is None else of_sample * weights
        return _summed(losses * of_sample), of_each.sum(dtype=_wide(losses))

    def objective(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """Return J over a batch, the scalar tensor that a step lowers, and the sum of the weights in it.

        J is the weighted mean, or the weighted sum where the loss is ``summed``. Without weights the mean is what torch
        makes of it, bit for bit.

        Raises
        ------
        UsageError
            As `total` does.
        """
        if weight is None and not self.summed:
            output, target = align(self, output, target)
            return self._mean(output, target), self.weigh(output, target)
        total, weights = self.total(output, target, weight)
        return (total if self.summed else total / weights), weights

    def weigh(self, output: Tensor, target: Tensor) -> Tensor | int:
        """Return the sum of the weights in the mean over an aligned batch whose samples weigh the same."""
        if self.kind == "custom":
            return len(target)
        weights = self._weights(target, None)
        return target.numel() if weights is None else _summed(weights)

    def counted(self, target: Tensor) -> Tensor:
        """Return which of the target's classes count: all but the one that is ignored.

        Examples
        --------
        >>> import torch
        >>> resolve_loss(nn.NLLLoss(ignore_index=0)).counted(torch.tensor([0, 2]))
        tensor([False,  True])
        """
        return torch.ne(target, IGNORED if self.ignored is None else self.ignored)

    def _weights(self, target: Tensor, losses: Tensor | None) -> Tensor | None:
        """Of the target's elements; None where each is 1."""
        if self.kind != "classes":
            return None
        kept = self.counted(target)
        if self.class_weights is None:
            return kept
        # A class to be ignored need not be one that has a weight.
        return self.class_weights.to(target.device)[target.where(kept, 0)] * kept

    def _own_total(self, output: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | int]:
        losses = self.mean(output, target)
        if not _is_per_sample(losses, target):
            if weight is not None:
                raise UsageError(
                    f"{self.name} returns {_described(losses)} for {len(target)} samples, so none can be weighed",
                    fix="return the loss of each sample, (B,)",
                )
            return losses * len(target), len(target)
        if weight is None:
            return _summed(losses), len(target)
        return _summed(losses * weight.to(losses.dtype)), weight.sum(dtype=_wide(losses))


def _is_per_sample(losses: Tensor, target: Tensor) -> bool:
    return isinstance(losses, Tensor) and losses.shape == (len(target),)


def _summed(values: Tensor) -> Tensor:
    """The sum, in float32 at least: half as many digits do not count to the size of a batch."""
    is_narrow = values.is_floating_point() and values.element_size() < 4
    return values.sum(dtype=torch.float32 if is_narrow else None)


def _wide(losses: Tensor) -> torch.dtype:
    return torch.float32 if losses.device.type == "mps" else torch.float64


LOSS_DEFINITIONS: Final[dict[str, tuple[LossKind, LossFunction, type[nn.Module]]]] = {
    "cross_entropy": ("classes", F.cross_entropy, nn.CrossEntropyLoss),
    "nll": ("classes", F.nll_loss, nn.NLLLoss),
    "bce_with_logits": ("logits", F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
    "mse": ("values", F.mse_loss, nn.MSELoss),
    "l1": ("values", F.l1_loss, nn.L1Loss),
}
"""Name -> kind, function and module."""

LOSSES: Final = tuple(LOSS_DEFINITIONS)
"""The names `resolve_loss` knows."""

IGNORED: Final = -100
"""The class that torch ignores unless told otherwise."""


def resolve_loss(loss: str | LossFunction | Loss, *, ignore_index: int | None = None) -> Loss:
    """Turn a name or a callable into a `Loss`.

    torch's own functions and modules behind the names (``F.mse_loss``, ``nn.CrossEntropyLoss(...)``) are recognised and
    checked like them. Of every loss module of torch's the reduction is understood: with ``"sum"`` J is the sum, over a
    batch, a window or the dataset; ``"none"`` is taken as ``"mean"``. Class weights count in the mean as in torch's.
    Any other callable must return the mean over the samples of its batch or, so that samples can be weighed, the loss
    of each, (B,). ``ignore_index`` is for losses of classes by name: the class that they ignore.

    Raises
    ------
    UnknownName
        No loss has that name.
    UsageError
        A loss module of the user's own that sums, or something that cannot be called.

    Examples
    --------
    >>> resolve_loss("cross_entropy").kind, resolve_loss(torch.nn.MSELoss()).kind, resolve_loss(max).kind
    ('classes', 'values', 'custom')
    >>> resolve_loss(torch.nn.MSELoss(reduction="sum")).summed
    True
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSS_DEFINITIONS:
            raise unknown_name("loss", loss, LOSS_DEFINITIONS)
        return _of_function(loss, ignore_index)
    if not callable(loss):
        raise UsageError(
            f"loss is {loss!r}", fix=f"one of {', '.join(LOSS_DEFINITIONS)}, or a function (output, target) -> mean"
        )
    for name, (_, function, _) in LOSS_DEFINITIONS.items():
        if loss is function:
            return _of_function(name)
    if isinstance(loss, torch_losses._Loss) and type(loss).__module__ == torch_losses.__name__:
        return _of_module(loss)
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "mean") == "sum":
        raise UsageError(
            f"{type(loss).__name__} has reduction='sum'",
            why="Of a sum, unlike one of torch's own modules, the mean is not known",
            fix="reduction='mean' or 'none'",
        )
    return Loss(name=getattr(loss, "__name__", type(loss).__name__), kind="custom", mean=loss)


def _of_function(name: str, ignore_index: int | None = None) -> Loss:
    kind, function, _ = LOSS_DEFINITIONS[name]
    if kind != "classes":
        return Loss(name=name, kind=kind, mean=function, each=partial(function, reduction="none"))  # type: ignore[call-arg]
    if ignore_index is not None:
        function = partial(function, ignore_index=ignore_index)  # type: ignore[call-arg]
    each: LossFunction = partial(function, reduction="none")  # type: ignore[call-arg]
    return Loss(
        name=name, kind=kind, mean=function, each=each, ignored=IGNORED if ignore_index is None else ignore_index
    )


def _of_module(module: torch_losses._Loss) -> Loss:
    named = {kind: (name, what) for name, (what, _, kind) in LOSS_DEFINITIONS.items()}
    name, kind = named.get(type(module), (type(module).__name__, "custom"))
    mean = _reduced(module, "batchmean" if module.reduction == "batchmean" else "mean")
    has_classes = kind == "classes"
    kind = "values" if isinstance(module, nn.HuberLoss | nn.SmoothL1Loss) else kind
    return Loss(
        name=name,
        kind=kind,
        mean=mean,
        each=_reduced(module, "none"),
        summed=module.reduction == "sum",
        class_weights=module.get_buffer("weight") if has_classes and module.weight is not None else None,
        ignored=getattr(module, "ignore_index", None),
        of_samples=module.reduction == "batchmean",
    )


def _reduced(module: torch_losses._Loss, reduction: str) -> torch_losses._Loss:
    """The same module with another reduction; its weights are shared."""
    if module.reduction == reduction:
        return module
    other = copy.copy(module)
    other.reduction = reduction
    return other


def default_loss(target_dtype: torch.dtype) -> str:
    """The loss that fits a target when none is named: ``cross_entropy`` for int64 class labels, ``mse`` for floats.

    Raises
    ------
    UsageError
        The dtype is neither.

    Examples
    --------
    >>> default_loss(torch.int64), default_loss(torch.float32)
    ('cross_entropy', 'mse')
    """
    if target_dtype == torch.int64:
        return "cross_entropy"
    if target_dtype.is_floating_point:
        return "mse"
    raise UsageError(
        f"no loss fits a {dtype_name(target_dtype)} target by default", fix="name one, or store int64 or float"
    )


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
