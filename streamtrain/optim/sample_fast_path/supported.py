"""The models, losses and optimizers that the fast path supports, and the reason where one is not.

They are recognized by their exact type and without anything attached, so that no user code is bypassed: a hook, a
replaced function, or a callback after every step, which may change or read anything. The rest is left to the plain
loop, which has no conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from streamtrain.models.factory import ToVector
from streamtrain.models.losses import LOSS_DEFINITIONS, Loss
from streamtrain.models.normalization import Normalize, NormalizedModel
from streamtrain.optim.gradients import Clipping, Learner, only_reads_weights
from streamtrain.optim.sample_fast_path.network import ACTIVATIONS
from streamtrain.optim.sample_fast_path.steps import FUSED, are_new, step_count

_RESHAPES: Final = (nn.Identity, nn.Flatten, ToVector)
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_REPLACEABLE: Final = frozenset({"forward", "__call__", "_call_impl"})
_DTYPES: Final = (torch.float32, torch.float64)


def chain(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """List a model's modules in order: those before its first linear layer, and the rest."""
    parts = list(_parts(model))
    at = next((i for i, part in enumerate(parts) if isinstance(part, nn.Linear)), len(parts))
    return parts[:at], [part for part in parts[at:] if type(part) not in _RESHAPES]


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    if type(model) is NormalizedModel:
        yield from model.modules_by_input().values()
        yield from _parts(model.model)
    elif type(model) is nn.Sequential:
        for part in model:
            yield from _parts(part)
    else:
        yield model


def why_unsupported(learner: Learner) -> str | None:
    """Name what the fast path does not support about a learner; None where it supports all of it."""
    return (
        _why_not_model(learner.model)
        or _why_not_parameters(learner)
        or _why_not_loss(learner.loss)
        or _why_not_optimizer(learner.optimizer)
        or _why_not_step(learner)
        or _why_not_here()
    )


def _why_not_model(model: nn.Module) -> str | None:
    for module in model.modules():
        if _has_own_ways(module):
            return f"a {type(module).__name__} has hooks, or a forward of its own"
    before, rest = chain(model)
    for module in before:
        if type(module) not in (*_RESHAPES, Normalize, *ACTIVATIONS) or type(module) is nn.LogSoftmax:
            return f"the model has a {type(module).__name__}"
    for module in rest:
        if type(module) is not nn.Linear and type(module) not in ACTIVATIONS:
            return f"the model has a {type(module).__name__}"
    if not rest:
        return "the model has no Linear"
    for module in model.modules():
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
            return "a Flatten leaves axes as they are"
        if isinstance(module, nn.LogSoftmax) and module.dim not in (1, -1):
            return f"a LogSoftmax goes along axis {module.dim}"
    if type(model) is NormalizedModel and not model.calls_model:
        return "the model is compiled, or runs under autocast"
    if type(model) is NormalizedModel and len(model.inputs) != 1:
        return f"the model takes {len(model.inputs)} inputs"
    return None


def _has_own_ways(module: nn.Module) -> bool:
    has_hooks = any(getattr(module, hooks) for hooks in _HOOKS)
    return has_hooks or not _REPLACEABLE.isdisjoint(vars(module)) or module._compiled_call_impl is not None


def _why_not_parameters(learner: Learner) -> str | None:
    _, rest = chain(learner.model)
    used = [parameter for module in rest for parameter in module.parameters()]
    if len({id(parameter) for parameter in used}) < len(used):
        return "layers share their weights"
    trained = {id(parameter) for parameter in learner.parameters}
    if trained != {id(parameter) for parameter in used} or not all(parameter.requires_grad for parameter in used):
        return "some of the weights are not trained"
    if len({parameter.dtype for parameter in used}) > 1 or used[0].dtype not in _DTYPES:
        return "the weights are not all float32, or all float64"
    if any(parameter.device.type != "cpu" for parameter in used):
        return f"the model is on {used[0].device}"
    if not all(parameter.is_contiguous() and type(parameter) is nn.Parameter for parameter in used):
        return "the weights are not contiguous"
    if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in used):
        return "a weight has hooks"
    return None


FAST_LOSSES: Final = frozenset({"cross_entropy", "nll", "bce_with_logits", "mse", "l1"})
"""Losses whose gradient is written out; of the others the plain loop computes it."""


def _why_not_loss(loss: Loss) -> str | None:
    _, function, module = LOSS_DEFINITIONS.get(loss.name, (None, None, None))
    if loss.name not in FAST_LOSSES or (loss.mean is not function and type(loss.mean) is not module):
        return f"the loss is {loss.name}"
    if any(isinstance(part, nn.Module) and _has_own_ways(part) for part in (loss.mean, loss.each)):
        return f"the loss {loss.name} has hooks, or a forward of its own"
    if loss.summed or loss.class_weights is not None or getattr(loss.mean, "label_smoothing", None):
        return "the loss sums, smooths labels or weighs classes"
    if getattr(loss.mean, "weight", None) is not None or getattr(loss.mean, "pos_weight", None) is not None:
        return "the loss weighs elements"
    return None


def _why_not_optimizer(optimizer: Optimizer) -> str | None:
    name = type(optimizer).__name__
    if type(optimizer) not in (SGD, Adam, AdamW):
        return f"the optimizer is {name}"
    if missing := [function for function in FUSED if not hasattr(torch, function)]:
        return f"this torch has no {missing[0]}"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return f"{name} has hooks"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "there are hooks on every optimizer"
    if "zero_grad" in vars(optimizer) or ("step" in vars(optimizer) and not _is_scheduler_s(optimizer)):
        return f"the step of {name} was replaced"
    for group in optimizer.param_groups:
        if group["differentiable"] or group.get("capturable"):
            return f"{name} is differentiable or capturable"
        if isinstance(optimizer, SGD) and group["momentum"] and not _is_all_or_none(optimizer, group):
            return "some of the weights have a momentum and some have none"
        if not isinstance(optimizer, SGD) and len({float(step_count(optimizer, p)) for p in group["params"]}) > 1:
            return "the weights are not all at the same step"
    return None


def _is_scheduler_s(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step is its class's own, wrapped by a learning-rate scheduler to count it."""
    step = optimizer.step
    # A user's wrapper may have the scheduler's names and attributes, but not its code.
    code = getattr(step, "__code__", None)
    is_wrapped = code is not None and code.co_filename == lr_scheduler.__file__
    wrapped = getattr(step, "__wrapped__", None)
    return is_wrapped and getattr(wrapped, "__func__", wrapped) is type(optimizer).step


def _is_all_or_none(optimizer: Optimizer, group: dict[str, object]) -> bool:
    parameters = group["params"]
    assert isinstance(parameters, list)
    return are_new(optimizer, group) or not any(are_new(optimizer, {"params": [p]}) for p in parameters)


def _why_not_step(learner: Learner) -> str | None:
    if learner.l2:
        return "there is a penalty l2"
    if learner.clipping != Clipping():
        return "gradients are clipped"
    if learner.schedules is not None and learner.schedules.by_step:
        return "a schedule steps after every step"
    if learner.on_step is not None and not only_reads_weights(learner.on_step):
        return "on_step is called after every step, and may change anything"
    return None


def _why_not_here() -> str | None:
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks on every module"
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return "a torch function or dispatch mode is on"
    return None
