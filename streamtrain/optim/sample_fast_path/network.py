"""A chain of linear layers and activations on one sample at a time, and loss gradients in closed form.

All memory is made once: for every layer a row per sample, of its output and of the loss's gradient with respect to it.
A layer reads and writes row i alone, so forward and backward are each a few calls into torch, and the rows of a whole
chunk can be checked at once. Each activation's backward is the function that autograd would call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

from streamtrain.errors import UsageError
from streamtrain.models.alignment import align
from streamtrain.models.losses import Loss

_aten: Final = torch.ops.aten

# (input, output) and (gradient of the output, input, output, gradient of the input); each writes the last.
LayerForward = Callable[[Tensor, Tensor], object]
LayerBackward = Callable[[Tensor, Tensor, Tensor, Tensor], object]


def _relu(_: Any) -> tuple[LayerForward, LayerBackward]:
    return (
        lambda z, h: torch.clamp_min(z, 0, out=h),
        lambda dh, _, h, dz: _aten.threshold_backward.grad_input(dh, h, 0, grad_input=dz),
    )


def _leaky_relu(module: Any) -> tuple[LayerForward, LayerBackward]:
    slope = module.negative_slope
    return (
        lambda z, h: _aten.leaky_relu.out(z, slope, out=h),
        lambda dh, z, _, dz: _aten.leaky_relu_backward.grad_input(dh, z, slope, False, grad_input=dz),
    )


def _elu(module: Any) -> tuple[LayerForward, LayerBackward]:
    alpha = module.alpha
    return (
        lambda z, h: _aten.elu.out(z, alpha, out=h),
        lambda dh, z, _, dz: _aten.elu_backward.grad_input(dh, alpha, 1, 1, False, z, grad_input=dz),
    )


def _gelu(module: Any) -> tuple[LayerForward, LayerBackward]:
    how = module.approximate
    return (
        lambda z, h: _aten.gelu.out(z, approximate=how, out=h),
        lambda dh, z, _, dz: _aten.gelu_backward.grad_input(dh, z, approximate=how, grad_input=dz),
    )


def _silu(_: Any) -> tuple[LayerForward, LayerBackward]:
    return (
        lambda z, h: _aten.silu.out(z, out=h),
        lambda dh, z, _, dz: _aten.silu_backward.grad_input(dh, z, grad_input=dz),
    )


def _tanh(_: Any) -> tuple[LayerForward, LayerBackward]:
    return (
        lambda z, h: torch.tanh(z, out=h),
        lambda dh, _, h, dz: _aten.tanh_backward.grad_input(dh, h, grad_input=dz),
    )


def _sigmoid(_: Any) -> tuple[LayerForward, LayerBackward]:
    return (
        lambda z, h: torch.sigmoid(z, out=h),
        lambda dh, _, h, dz: _aten.sigmoid_backward.grad_input(dh, h, grad_input=dz),
    )


def _log_softmax(_: Any) -> tuple[LayerForward, LayerBackward]:
    return (
        lambda z, h: _aten._log_softmax.out(z, 0, False, out=h),
        lambda dh, _, h, dz: _aten._log_softmax_backward_data.out(dh, h, 0, dh.dtype, out=dz),
    )


ACTIVATIONS: Final[dict[type[nn.Module], Callable[[Any], tuple[LayerForward, LayerBackward]]]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.LogSoftmax: _log_softmax,
}
"""Makers of forward and backward. On one sample, a vector, ``LogSoftmax`` runs along axis 0."""

_SETTINGS: Final = ("negative_slope", "alpha", "approximate", "dim")
"""The settings of activations that their functions depend on."""


class RowBuffer:
    """A row for every sample of a chunk, and each row as a vector, as a matrix of one row, and of one column."""

    def __init__(self, n_rows: int, width: int, dtype: torch.dtype) -> None:
        self.all = torch.zeros(n_rows, width, dtype=dtype)
        # The views are made once: making one takes about as long as multiplying a vector.
        self.vectors = list(self.all.unbind())
        self.as_rows = list(self.all.unsqueeze(1).unbind())
        self.as_columns = list(self.all.unsqueeze(2).unbind())


class Dense:
    """A linear layer at work on rows; ``dx`` is None where no layer below needs the gradient."""

    def __init__(self, module: nn.Linear, x: RowBuffer, dx: RowBuffer | None) -> None:
        n_rows, dtype = len(x.all), x.all.dtype
        self.module = module
        self.x, self.dx = x, dx
        n_outputs = module.weight.shape[0]
        self.z, self.dz = RowBuffer(n_rows, n_outputs, dtype), RowBuffer(n_rows, n_outputs, dtype)
        self._own = (module.weight, module.bias)
        self.weight = module.weight.detach()
        self.bias: Tensor | None = None if module.bias is None else module.bias.detach()
        self._transposed = self.weight.t()

    def forward(self, i: int) -> None:
        """Write row ``i`` of the output."""
        if self.bias is None:
            torch.mv(self.weight, self.x.vectors[i], out=self.z.vectors[i])
        else:
            torch.addmv(self.bias, self.weight, self.x.vectors[i], out=self.z.vectors[i])

    def backward(self, i: int) -> None:
        """Write row ``i`` of the gradient of the input, where it is needed."""
        if self.dx is not None:
            torch.mv(self._transposed, self.dz.vectors[i], out=self.dx.vectors[i])

    def is_current(self) -> bool:
        """Whether the module's weights are the same, in the same memory; ``.data = ...`` and ``model.to`` move them."""
        module = self.module
        if module.weight is not self._own[0] or module.bias is not self._own[1]:
            return False
        return _is_same_memory(self.weight, module.weight) and (
            self.bias is None or _is_same_memory(self.bias, module.bias)
        )

    def are_finite(self) -> Tensor:
        """Mark the samples whose gradient of the weights is finite.

        That gradient is the product of two vectors, so its largest number is the product of their largest.
        """
        largest = self.dz.all.abs().amax(1)
        return largest.isfinite() & (largest * self.x.all.abs().amax(1)).isfinite()


def _is_same_memory(view: Tensor, whole: Tensor) -> bool:
    return (view.data_ptr(), view.shape, view.stride(), view.dtype) == (
        whole.data_ptr(),
        whole.shape,
        whole.stride(),
        whole.dtype,
    )


class Activation:
    """An activation at work on rows."""

    def __init__(self, module: nn.Module, z: RowBuffer, dz: RowBuffer) -> None:
        self.x, self.dx = z, dz
        self.z, self.dz = (RowBuffer(len(z.all), z.all.shape[1], z.all.dtype) for _ in range(2))
        self._forward, self._backward = ACTIVATIONS[type(module)](module)
        self._module, self._setting = module, _setting(module)

    def forward(self, i: int) -> None:
        """Write row ``i`` of the output."""
        self._forward(self.x.vectors[i], self.z.vectors[i])

    def backward(self, i: int) -> None:
        """Write row ``i`` of the gradient of the input."""
        self._backward(self.dz.vectors[i], self.x.vectors[i], self.z.vectors[i], self.dx.vectors[i])

    def is_current(self) -> bool:
        """Whether the module's settings are what they were."""
        return self._setting == _setting(self._module)


def _setting(module: nn.Module) -> list[object]:
    return [getattr(module, name, None) for name in _SETTINGS]


class Network:
    """A chain of layers over a chunk of samples; the first is linear."""

    def __init__(self, modules: Sequence[nn.Module], n_rows: int) -> None:
        first = modules[0]
        assert isinstance(first, nn.Linear)
        self.x = RowBuffer(n_rows, first.weight.shape[1], first.weight.dtype)
        self.dense: list[Dense] = []
        layers: list[Dense | Activation] = []
        x, dx = self.x, None
        for module in modules:
            if isinstance(module, nn.Linear):
                self.dense.append(Dense(module, x, dx))
                layers.append(self.dense[-1])
            else:
                assert dx is not None
                layers.append(Activation(module, x, dx))
            x, dx = layers[-1].z, layers[-1].dz
        self.output, self.d_output = layers[-1].z, layers[-1].dz
        self._layers = layers
        self._forward = [layer.forward for layer in layers]
        self._backward = [layer.backward for layer in reversed(layers[1:])]

    def forward(self, i: int) -> None:
        """Write row ``i`` of the output from row ``i`` of ``x``."""
        for layer in self._forward:
            layer(i)

    def backward(self, i: int) -> None:
        """Write row ``i`` of every layer's gradient from that of ``d_output``."""
        for layer in self._backward:
            layer(i)

    def is_current(self) -> bool:
        """Whether the layers are still what they were made from."""
        return all(layer.is_current() for layer in self._layers)

    def are_finite(self) -> Tensor:
        """Mark the samples whose gradient is finite throughout."""
        return torch.stack([layer.are_finite() for layer in self.dense]).all(0)


GradientWriter = Callable[[Tensor, Tensor, Tensor, float], object]
"""(output, target, gradient, 1 / width), vectors of one sample: writes the gradient."""


def _cross_entropy(z: Tensor, wanted: Tensor, dz: Tensor, _: float) -> None:
    torch.softmax(z, 0, out=dz)
    dz.sub_(wanted)


def _nll(_: Tensor, wanted: Tensor, dz: Tensor, __: float) -> None:
    torch.neg(wanted, out=dz)


def _bce_with_logits(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sigmoid(z, out=dz)
    dz.sub_(wanted).mul_(share)


def _mse(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sub(z, wanted, out=dz)
    dz.mul_(2 * share)


def _l1(z: Tensor, wanted: Tensor, dz: Tensor, share: float) -> None:
    torch.sub(z, wanted, out=dz)
    dz.sign_().mul_(share)


GRADIENT_WRITERS: Final[dict[str, GradientWriter]] = {
    "cross_entropy": _cross_entropy,
    "nll": _nll,
    "bce_with_logits": _bce_with_logits,
    "mse": _mse,
    "l1": _l1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGradient:
    """The loss over a chunk's outputs: its gradient, and each sample's loss and weight."""

    # Writes the gradient with respect to row i of the output.
    write: Callable[[int], object]
    # Each sample's weight in a mean: the elements of its target, and 0 where its class is ignored.
    weights: Sequence[float]
    # The mean loss of each of the first n rows.
    losses: Callable[[int], Tensor]


def output_gradient(loss: Loss, net: Network, target: Tensor) -> OutputGradient:
    """Line a chunk's outputs and targets up; refuse labels out of the range of the classes."""
    n, width = len(target), net.output.all.shape[1]
    _, aligned = align(loss, net.output.all[:n], target)
    if loss.kind == "classes":
        wanted, weights = _one_hot(aligned, loss, width, net.output.all.dtype)
    else:
        wanted, weights = aligned.reshape(n, width), [float(width)] * n
    rows, outputs, deltas = list(wanted.unbind()), net.output.vectors, net.d_output.vectors
    function, share = GRADIENT_WRITERS[loss.name], 1 / width

    def write(i: int) -> None:
        function(outputs[i], rows[i], deltas[i], share)

    def losses(n_rows: int) -> Tensor:
        assert loss.each is not None
        each = loss.each(*align(loss, net.output.all[:n_rows], target[:n_rows]))
        return each.reshape(n_rows, -1).mean(1)

    return OutputGradient(write=write, weights=weights, losses=losses)


def _one_hot(labels: Tensor, loss: Loss, n_classes: int, dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    counts = loss.counted(labels)
    wanted = labels.where(counts, 0)
    if not ((wanted >= 0) & (wanted < n_classes)).all():
        bad = wanted[(wanted < 0) | (wanted >= n_classes)][0]
        raise UsageError(f"label {int(bad)} of {n_classes} classes", fix=f"labels from 0 to {n_classes - 1}")
    return F.one_hot(wanted, n_classes).to(dtype), counts.to(torch.float64).tolist()
