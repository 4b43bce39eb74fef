"""Steps of SGD and Adam on the gradient of one sample, in the optimizer's own state.

The gradient of a linear layer's weights is the product of two vectors. Plain gradient descent subtracts it in one pass
over the weights without ever storing it. With momentum or weight decay, and for Adam, it is stored, and one of torch's
fused functions takes the step in one more pass.

The optimizer's state is made and counted as its own ``step`` would, so ``state_dict()`` is as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.optim.sample_fast_path.network import Dense

FUSED: Final = ("_fused_sgd_", "_fused_adam_", "_fused_adamw_")

_MEAN_ZERO: Final = 1e8
_SQUARE_ZERO: Final = 1e4
"""Moments below so many times the smallest normal number become 0; see `flush_denormals`."""


class Steps:
    """The steps of an optimizer over a chain of layers."""

    def __init__(self, optimizer: Optimizer, dense: Sequence[Dense]) -> None:
        self._optimizer = optimizer
        self._dense = dense
        self._gradients: dict[int, Tensor] = {}
        self._copies: list[Tensor] = []

    def begin(self) -> None:
        """Read the options, and copy the weights and the state."""
        groups = self._optimizer.param_groups
        self._is_direct = isinstance(self._optimizer, torch.optim.SGD) and not any(
            group["momentum"] or group["weight_decay"] for group in groups
        )
        self._groups: list[_Sgd | _Adam] = []
        if self._is_direct:
            self._scales = self._direct_scales()
        else:
            sources = self._sources()
            make = _Sgd if isinstance(self._optimizer, torch.optim.SGD) else _Adam
            self._groups = [make(self._optimizer, group, sources) for group in groups if group["params"]]
        self._held = [parameter.detach() for group in groups for parameter in group["params"]]
        self._held += [tensor for group in self._groups for tensor in group.state]
        if [copy.shape for copy in self._copies] != [tensor.shape for tensor in self._held]:
            self._copies = [tensor.clone() for tensor in self._held]
        torch._foreach_copy_(self._copies, self._held)

    def step(self, i: int) -> None:
        """Step on the gradient of sample ``i``."""
        if self._is_direct:
            for layer, (of_weight, of_bias) in zip(self._dense, self._scales, strict=True):
                layer.weight.addmm_(layer.dz.as_columns[i], layer.x.as_rows[i], alpha=of_weight)
                if layer.bias is not None:
                    layer.bias.add_(layer.dz.vectors[i], alpha=of_bias)
            return
        for layer in self._dense:
            torch.mm(layer.dz.as_columns[i], layer.x.as_rows[i], out=self._gradients[id(layer.module.weight)])
        for group in self._groups:
            group.step(i)

    def undo(self) -> None:
        """Restore what `begin` found."""
        torch._foreach_copy_(self._held, self._copies)
        for group in self._groups:
            group.undo()

    def end(self, n_taken: int, *, is_whole: bool = True) -> None:
        """Leave the state with the optimizer; flush moments only after a whole chunk: a stop must change nothing."""
        if n_taken:
            for group in self._groups:
                group.end(flushes=is_whole)
            # A learning-rate scheduler asks whether a step was taken before its own.
            self._optimizer._opt_called = True  # type: ignore[attr-defined]

    def leave_gradients(self, i: int, *, is_zero: bool) -> None:
        """Leave the gradient of sample ``i`` where autograd would, for code that reads it between two batches."""
        for layer in self._dense:
            of_weight = torch.mm(layer.dz.as_columns[i], layer.x.as_rows[i])
            layer.module.weight.grad = of_weight.zero_() if is_zero else of_weight
            if layer.bias is not None:
                of_bias = layer.dz.vectors[i].clone()
                layer.module.bias.grad = of_bias.zero_() if is_zero else of_bias

    def _direct_scales(self) -> list[tuple[float, float]]:
        scales: dict[int, float] = {}
        for group in self._optimizer.param_groups:
            scale = float(group["lr"]) * (1.0 if group["maximize"] else -1.0)
            scales |= {id(parameter): scale for parameter in group["params"]}
        return [(scales[id(layer.module.weight)], scales.get(id(layer.module.bias), 0.0)) for layer in self._dense]

    def _sources(self) -> dict[int, list[Tensor]]:
        """Map each parameter to the memory of its gradient, by sample."""
        sources: dict[int, list[Tensor]] = {}
        for layer in self._dense:
            weight = layer.module.weight
            if id(weight) not in self._gradients:
                self._gradients[id(weight)] = torch.empty_like(layer.weight)
            sources[id(weight)] = [self._gradients[id(weight)]] * len(layer.x.vectors)
            sources[id(layer.module.bias)] = layer.dz.vectors
        return sources


class _Group:
    """One of an optimizer's groups of parameters."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], sources: dict[int, list[Tensor]]) -> None:
        self._optimizer = optimizer
        self._parameters: list[nn.Parameter] = group["params"]
        self._tensors = [parameter.detach() for parameter in self._parameters]
        self._sources = [sources[id(parameter)] for parameter in self._parameters]

    def _saved(self, name: str) -> list[Tensor]:
        """Return a state of each parameter: the optimizer's own tensors, else zeros."""
        states = [self._optimizer.state.get(parameter, {}).get(name) for parameter in self._parameters]
        return [
            torch.zeros_like(parameter, requires_grad=False) if state is None else state
            for parameter, state in zip(self._parameters, states, strict=True)
        ]


class _Sgd(_Group):
    def __init__(self, optimizer: Optimizer, group: dict[str, Any], sources: dict[int, list[Tensor]]) -> None:
        super().__init__(optimizer, group, sources)
        self._has_momentum = bool(group["momentum"])
        self.state = self._saved("momentum_buffer") if self._has_momentum else []
        self._begins = are_new(optimizer, group)
        self._is_first = self._begins
        self._options: dict[str, Any] = {
            **{name: float(group[name]) for name in ("lr", "momentum", "dampening", "weight_decay")},
            **{name: bool(group[name]) for name in ("nesterov", "maximize")},
        }

    def step(self, i: int) -> None:
        torch._fused_sgd_(
            self._tensors,
            [rows[i] for rows in self._sources],
            self.state,
            **self._options,
            is_first_step=self._is_first,
        )
        self._is_first = False

    def undo(self) -> None:
        self._is_first = self._begins

    def end(self, *, flushes: bool) -> None:
        for parameter, buffer in zip(self._parameters, self.state, strict=self._has_momentum):
            if flushes:
                flush_denormals(buffer, _MEAN_ZERO)
            self._optimizer.state[parameter]["momentum_buffer"] = buffer


class _Adam(_Group):
    def __init__(self, optimizer: Optimizer, group: dict[str, Any], sources: dict[int, list[Tensor]]) -> None:
        super().__init__(optimizer, group, sources)
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        self._moments = {name: self._saved(name) for name in names}
        self._count = step_count(optimizer, self._parameters[0]).clone()
        self.state = [tensor for tensors in self._moments.values() for tensor in tensors] + [self._count]
        self._counts = [self._count] * len(self._parameters)
        self._is_kept_small = float(group["eps"]) >= 1e-8
        is_decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        self._function = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
        beta1, beta2 = group["betas"]
        self._options: dict[str, Any] = {
            **{name: float(group[name]) for name in ("lr", "eps", "weight_decay")},
            **{name: bool(group[name]) for name in ("amsgrad", "maximize")},
            "beta1": float(beta1),
            "beta2": float(beta2),
        }

    def step(self, i: int) -> None:
        self._count.add_(1)
        self._function(
            self._tensors,
            [rows[i] for rows in self._sources],
            self._moments["exp_avg"],
            self._moments["exp_avg_sq"],
            self._moments.get("max_exp_avg_sq", []),
            self._counts,
            **self._options,
        )

    def undo(self) -> None:
        """Do nothing: all of it is in the state."""

    def end(self, *, flushes: bool) -> None:
        for k, parameter in enumerate(self._parameters):
            state = self._optimizer.state[parameter]
            if "step" in state:
                state["step"].copy_(self._count)
            else:
                state["step"] = self._count.clone()
            for name, tensors in self._moments.items():
                if flushes and self._is_kept_small:
                    flush_denormals(tensors[k], _MEAN_ZERO if name == "exp_avg" else _SQUARE_ZERO)
                state[name] = tensors[k]


def flush_denormals(moment: Tensor, times: float) -> None:
    """Set numbers below ``times`` the smallest normal number to 0, in place.

    The moment of a unit that is off shrinks until it is subnormal, and by rounding stays so; a processor handles such
    numbers a hundred times slower. The weights do not notice: this moves them by less than 1e-18 of the learning rate.
    """
    torch.ops.aten.hardshrink.out(moment, torch.finfo(moment.dtype).tiny * times, out=moment)


def are_new(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether no parameter of a group has a momentum yet."""
    return all(optimizer.state.get(p, {}).get("momentum_buffer") is None for p in group["params"])


def step_count(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
    """Return the number of Adam's steps on a parameter, as the scalar tensor that it keeps."""
    count = optimizer.state.get(parameter, {}).get("step")
    if isinstance(count, Tensor):
        return count
    # As Adam does: float32 unless the default is float64.
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(count or 0.0), dtype=dtype)
