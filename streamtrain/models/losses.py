"""Losses by name: exact weighted means over the samples of a batch.

Every loss here is a weighted mean, J = sum of weight * loss / sum of weight, over the elements of the targets. An
element's weight is its sample's weight times its class's, and 0 where its class is ignored. So the mean over several
batches is the sum of their `Loss.total` over the sum of their weights; the mean of their means is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it
from torch.nn.modules import loss as torch_losses

from streamtrain.errors import UsageError, unknown_name
from streamtrain.models.alignment import LossKind, align, check_element_weight

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Output (B, ...) and target (B, ...) -> the mean over the B samples, a scalar tensor, or each sample's loss (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A named loss, as J and as sums that batches can add up."""

    name: str
    kind: LossKind
    mean: LossFunction
    # The losses of the target's elements, each times its class weight; None for a callable of the user's own.
    each: LossFunction | None = None
    # Whether J is the sum; what is reported is the mean all the same.
    summed: bool = False
    class_weights: Tensor | None = None
    ignored: int | None = None
    # Whether the mean is over the samples' sums, not over the elements.
    of_samples: bool = False
    element_weights: tuple[Tensor, ...] = ()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar tensor."""
        return self._mean(*self._lined_up(output, target))

    def _lined_up(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output, target = align(self, output, target)
        for weight in self.element_weights:
            check_element_weight(self, weight, output, target)
        return output, target

    def _mean(self, output: Tensor, target: Tensor) -> Tensor:
        mean = self.mean(output, target)
        return mean.mean() if self.each is None and _is_per_sample(mean, target) else mean

    def total(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """Compute the weighted sum of a batch's losses, a scalar tensor, and the sum of the weights."""
        total, weights, _ = self.total_and_each(output, target, weight)
        return total, weights

    def total_and_each(
        self, output: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor | int, Tensor | None]:
        """Compute the same, and the losses (B, ...) that were added up; None of a loss that tells their mean alone."""
        output, target = self._lined_up(output, target)
        if self.each is None:
            return self._own_total(output, target, weight)
        losses = self.each(output, target)
        # The output of a single sample may have no axis.
        losses = losses.reshape(1) if losses.ndim == 0 else losses
        if self.of_samples:
            losses = losses.flatten(1).sum(1) if losses.ndim > 1 else losses
        weights = self._weights(target, losses)
        if weight is None:
            return _summed(losses), losses.numel() if weights is None else _summed(weights), losses
        of_sample = weight.to(losses.dtype).view(-1, *(1,) * (losses.ndim - 1))
        of_each = of_sample.expand_as(losses) if weights is None else of_sample * weights
        return _summed(losses * of_sample), of_each.sum(dtype=_wide(losses)), losses

    def objective(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """Compute J over a batch, the scalar tensor that a step lowers, and the sum of the weights in it.

        Without sample weights the mean is torch's own, bit for bit.
        """
        if weight is None and not self.summed:
            output, target = self._lined_up(output, target)
            return self._mean(output, target), self.weigh(output, target)
        total, weights = self.total(output, target, weight)
        return (total if self.summed else total / weights), weights

    def weigh(self, output: Tensor, target: Tensor) -> Tensor | int:
        """Sum the weights in the mean over an aligned batch whose samples weigh the same."""
        if self.kind == "custom" or self.of_samples:
            return len(target)
        if self.kind in ("labels", "label lists"):
            return target[..., 0].numel()
        weights = self._weights(target, None)
        return target.numel() if weights is None else _summed(weights)

    def counted(self, target: Tensor) -> Tensor:
        """Mark the targets whose class is not ignored."""
        return torch.ne(target, IGNORED if self.ignored is None else self.ignored)

    def _weights(self, target: Tensor, losses: Tensor | None) -> Tensor | None:
        """Weigh the target's elements; None where each weighs 1."""
        if self.kind != "classes":
            return None
        kept = self.counted(target)
        if self.class_weights is None:
            return kept
        # The ignored class may lie outside the class weights.
        return self.class_weights.to(target.device)[target.where(kept, 0)] * kept

    def _own_total(
        self, output: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor | int, Tensor | None]:
        losses = self.mean(output, target)
        if not _is_per_sample(losses, target):
            if weight is not None:
                raise UsageError(
                    f"{self.name} returns {_described(losses)} for {len(target)} samples, so they cannot be weighted",
                    fix="return the loss of each sample, (B,)",
                )
            return losses * len(target), len(target), None
        if weight is None:
            return _summed(losses), len(target), losses
        return _summed(losses * weight.to(losses.dtype)), weight.sum(dtype=_wide(losses)), losses


def _is_per_sample(losses: Tensor, target: Tensor) -> bool:
    return isinstance(losses, Tensor) and losses.shape == (len(target),)


def _summed(values: Tensor) -> Tensor:
    """Sum in float32 at least: half precision cannot count to the size of a batch."""
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
    "huber": ("values", F.huber_loss, nn.HuberLoss),
    "poisson": ("numbers", F.poisson_nll_loss, nn.PoissonNLLLoss),
}
"""Name -> kind, function and module."""

IGNORED: Final = -100
"""The class that torch ignores by default."""


def resolve_loss(loss: str | LossFunction | Loss, *, ignore_index: int | None = None) -> Loss:
    """Turn a name or a callable into a `Loss`.

    torch's functions and modules are recognized, ``partial(F.huber_loss, delta=2.0)`` too, with their class weights and
    reduction: with ``"sum"`` J is the sum, ``"none"`` is taken as ``"mean"``. Any other callable must return the mean
    over its batch or, so that samples can be weighted, the loss of each sample, (B,).
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSS_DEFINITIONS:
            raise unknown_name("loss", loss, LOSS_DEFINITIONS)
        return _of_function(loss, ignore_index)
    _refuse_class(loss)
    if not callable(loss):
        raise UsageError(
            f"loss is {loss!r}", fix=f"one of {', '.join(LOSS_DEFINITIONS)}, or a function (output, target) -> mean"
        )
    for name, (_, function, _) in LOSS_DEFINITIONS.items():
        if loss is function:
            return _of_function(name)
    if isinstance(loss, nn.Module) and (of_torch := _torch_class(loss)) is not None:
        return _of_module(loss, of_torch)
    if (module := _called_module(loss)) is not None:
        return replace(_of_module(module, type(module)), name=getattr(loss, "func", loss).__name__)
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "mean") == "sum":
        raise UsageError(
            f"{type(loss).__name__} has reduction='sum'",
            why="A sum gives no mean, except that of torch's own modules",
            fix="reduction='mean' or 'none'",
        )
    return Loss(name=getattr(loss, "__name__", type(loss).__name__), kind="custom", mean=loss)


def _refuse_class(loss: object) -> None:
    """Refuse the class of a loss, in the place of one made of it."""
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        of = "nn." if loss.__module__.startswith("torch.nn.") else ""
        what = f"loss is the class {loss.__name__}, and not a loss made of it"
        raise UsageError(what, fix=f"loss={of}{loss.__name__}()")


_NOT_SETTINGS: Final = ("reduction", "ignore_index", "training")


def has_settings(loss: Loss) -> bool:
    """Whether a loss of torch is a module with settings of its own, which its name does not tell: a delta, weights."""
    module = loss.mean
    if not isinstance(module, nn.Module) or type(module) not in _KINDS:
        return False
    own, default = (_settings(each) for each in (module, type(module)()))
    return any(isinstance(value, Tensor) or value != default.get(name) for name, value in own.items())


def _settings(module: nn.Module) -> dict[str, object]:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    held = {name: value for name, value in module._buffers.items() if value is not None}
    return {name: value for name, value in (public | held).items() if name not in _NOT_SETTINGS}


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


_KINDS: Final[dict[type[nn.Module], LossKind]] = {
    **{module: kind for kind, _, module in LOSS_DEFINITIONS.values()},
    nn.MultiMarginLoss: "classes",
    nn.HuberLoss: "values",
    nn.SmoothL1Loss: "values",
    nn.BCELoss: "values",
    nn.PoissonNLLLoss: "numbers",
    nn.KLDivLoss: "numbers",
    nn.SoftMarginLoss: "numbers",
    nn.HingeEmbeddingLoss: "numbers",
    nn.MultiLabelSoftMarginLoss: "labels",
    nn.MultiLabelMarginLoss: "label lists",
}
"""Torch's modules of an output and a target; all others take more, or have weights of their own."""

_FUNCTIONS: Final[dict[Callable[..., Tensor], type[nn.Module]]] = {
    **{function: module for _, function, module in LOSS_DEFINITIONS.values()},
    F.binary_cross_entropy: nn.BCELoss,
    F.cosine_embedding_loss: nn.CosineEmbeddingLoss,
    F.ctc_loss: nn.CTCLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.huber_loss: nn.HuberLoss,
    F.kl_div: nn.KLDivLoss,
    F.margin_ranking_loss: nn.MarginRankingLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.triplet_margin_loss: nn.TripletMarginLoss,
    F.triplet_margin_with_distance_loss: nn.TripletMarginWithDistanceLoss,
}
"""Torch's functions, and the modules that call them."""


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    """Find the loss of torch's that a module is; a subclass counts where its forward is torch's."""
    if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
        return nn.AdaptiveLogSoftmaxWithLoss
    if type(module).__module__ != torch_losses.__name__ and getattr(module, "reduction", "mean") == "sum":
        return None
    of_torch = (of for of in type(module).__mro__ if of.__module__ == torch_losses.__name__)
    first = next(of_torch, None)
    is_loss = first is not None and issubclass(first, torch_losses._Loss) and type(module).forward is first.forward
    return first if is_loss else None


def _called_module(loss: LossFunction) -> nn.Module | None:
    """Make the module that does the same as a function of torch's, or a partial of one."""
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    try:
        # A callable need not be hashable.
        module = _FUNCTIONS.get(function)
        return None if module is None else module(**options)
    except TypeError:
        return None


def _of_module(module: nn.Module, of_torch: type[nn.Module]) -> Loss:
    named = {kind: name for name, (_, _, kind) in LOSS_DEFINITIONS.items()}
    name = named.get(type(module), type(module).__name__)
    kind = _KINDS.get(of_torch, _KINDS.get(of_torch.__base__ or of_torch, "unfit"))
    if kind == "unfit":
        return Loss(name=name, kind=kind, mean=module)
    reduction = str(module.reduction)
    # torch's mean of a margin between classes is over the samples, whatever their classes weigh.
    has_classes = kind == "classes" and not isinstance(module, nn.MultiMarginLoss)
    weights = [getattr(module, weight, None) for weight in ("weight", "pos_weight")]
    return Loss(
        name=name,
        kind=kind,
        mean=_reduced(module, "batchmean" if reduction == "batchmean" else "mean"),
        each=_reduced(module, "none"),
        summed=reduction == "sum",
        class_weights=weights[0] if has_classes else None,
        ignored=getattr(module, "ignore_index", None),
        of_samples=reduction == "batchmean",
        element_weights=() if kind == "classes" else tuple(w for w in weights if w is not None),
    )


def _reduced(module: nn.Module, reduction: str) -> nn.Module:
    """Copy a module with another reduction; the weights are shared."""
    if module.reduction == reduction:
        return module
    other = copy.copy(module)
    other.reduction = reduction  # type: ignore[assignment]
    return other


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
