"""A chain of linear layers and activations, one sample at a time, without autograd.

Everything lies in memory made once: for every layer a row a sample of its output and of the loss's gradient with
respect to it. A layer reads and writes row i alone, so forward and backward are each a few calls into torch, and what
they left in the rows can be looked at for a whole chunk of samples at once.

The derivatives are torch's own: each activation goes back by the very function that autograd would call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

_aten: Final = torch.ops.aten

Forward = Callable[[Tensor, Tensor], object]
"""(input, output): writes the output."""
Backward = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""(gradient of the output, input, output, gradient of the input): writes the last."""


def _relu(_: Any) -> tuple[Forward, Backward]:
    return (
        lambda z, h: torch.clamp_min(z, 0, out=h),
        lambda dh, _, h, dz: _aten.threshold_backward.grad_input(dh, h, 0, grad_input=dz),
    )


def _leaky_relu(module: Any) -> tuple[Forward, Backward]:
    slope = module.negative_slope
    return (
        lambda z, h: _aten.leaky_relu.out(z, slope, out=h),
        lambda dh, z, _, dz: _aten.leaky_relu_backward.grad_input(dh, z, slope, False, grad_input=dz),
    )


def _elu(module: Any) -> tuple[Forward, Backward]:
    alpha = module.alpha
    return (
        lambda z, h: _aten.elu.out(z, alpha, out=h),
        lambda dh, z, _, dz: _aten.elu_backward.grad_input(dh, alpha, 1, 1, False, z, grad_input=dz),
    )


def _gelu(module: Any) -> tuple[Forward, Backward]:
    how = module.approximate
    return (
        lambda z, h: _aten.gelu.out(z, approximate=how, out=h),
        lambda dh, z, _, dz: _aten.gelu_backward.grad_input(dh, z, approximate=how, grad_input=dz),
    )


def _silu(_: Any) -> tuple[Forward, Backward]:
    return (
        lambda z, h: _aten.silu.out(z, out=h),
        lambda dh, z, _, dz: _aten.silu_backward.grad_input(dh, z, grad_input=dz),
    )


def _tanh(_: Any) -> tuple[Forward, Backward]:
    return (
        lambda z, h: torch.tanh(z, out=h),
        lambda dh, _, h, dz: _aten.tanh_backward.grad_input(dh, h, grad_input=dz),
    )


def _sigmoid(_: Any) -> tuple[Forward, Backward]:
    return (
        lambda z, h: torch.sigmoid(z, out=h),
        lambda dh, _, h, dz: _aten.sigmoid_backward.grad_input(dh, h, grad_input=dz),
    )


def _log_softmax(_: Any) -> tuple[Forward, Backward]:
    return (
        lambda z, h: _aten._log_softmax.out(z, 0, False, out=h),
        lambda dh, _, h, dz: _aten._log_softmax_backward_data.out(dh, h, 0, dh.dtype, out=dz),
    )


ACTIVATIONS: Final[dict[type[nn.Module], Callable[[Any], tuple[Forward, Backward]]]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.LogSoftmax: _log_softmax,
}
"""Activation -> what makes its forward and backward. On one sample, a vector, ``LogSoftmax`` goes along axis 0."""


class Rows:
    """A row for every sample of a chunk, and each row as a vector, as a matrix of one row, and of one column.

    Parameters
    ----------
    n_rows, width : int
        Its shape.
    dtype : torch.dtype
        Of the numbers.
    """

    def __init__(self, n_rows: int, width: int, dtype: torch.dtype) -> None:
        self.all = torch.zeros(n_rows, width, dtype=dtype)
        # Views made once: to make one takes about as long as to multiply a vector.
        self.vectors = list(self.all.unbind())
        self.as_rows = list(self.all.unsqueeze(1).unbind())
        self.as_columns = list(self.all.unsqueeze(2).unbind())


class Dense:
    """A linear layer at work on rows.

    Parameters
    ----------
    module : torch.nn.Linear
        Whose weights it reads.
    x, dx : Rows, Rows or None
        Its input, and the gradient with respect to it where a layer below needs that.
    """

    def __init__(self, module: nn.Linear, x: Rows, dx: Rows | None) -> None:
        n_rows, dtype = len(x.all), x.all.dtype
        self.module = module
        self.x, self.dx = x, dx
        self.z, self.dz = Rows(n_rows, module.out_features, dtype), Rows(n_rows, module.out_features, dtype)
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

    def are_finite(self) -> Tensor:
        """Which samples have a finite gradient of the weights, bool (n_rows,).

        That gradient is the product of two vectors, so its largest number is that of their largest ones.
        """
        largest = self.dz.all.abs().amax(1)
        return largest.isfinite() & (largest * self.x.all.abs().amax(1)).isfinite()


class Activation:
    """An activation at work on rows.

    Parameters
    ----------
    module : torch.nn.Module
        One of `ACTIVATIONS`.
    z, dz : Rows
        Its input and the gradient with respect to it.
    """

    def __init__(self, module: nn.Module, z: Rows, dz: Rows) -> None:
        self.x, self.dx = z, dz
        self.z, self.dz = (Rows(len(z.all), z.all.shape[1], z.all.dtype) for _ in range(2))
        self._forward, self._backward = ACTIVATIONS[type(module)](module)

    def forward(self, i: int) -> None:
        """Write row ``i`` of the output."""
        self._forward(self.x.vectors[i], self.z.vectors[i])

    def backward(self, i: int) -> None:
        """Write row ``i`` of the gradient of the input."""
        self._backward(self.dz.vectors[i], self.x.vectors[i], self.z.vectors[i], self.dx.vectors[i])


class Network:
    """A chain of layers over a chunk of samples.

    Parameters
    ----------
    modules : sequence of torch.nn.Module
        ``nn.Linear`` first, then more of them and `ACTIVATIONS`.
    n_rows : int
        Samples of a chunk.

    Examples
    --------
    >>> net = Network([nn.Linear(2, 1, bias=False)], 4)
    >>> _ = net.dense[0].weight.copy_(torch.tensor([[2.0, 3.0]]))
    >>> net.x.all[1] = torch.tensor([1.0, 10.0])
    >>> net.forward(1)
    >>> net.output.all[1]
    tensor([32.])
    """

    def __init__(self, modules: Sequence[nn.Module], n_rows: int) -> None:
        first = modules[0]
        assert isinstance(first, nn.Linear)
        self.x = Rows(n_rows, first.in_features, first.weight.dtype)
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
        self._forward = [layer.forward for layer in layers]
        self._backward = [layer.backward for layer in reversed(layers[1:])]

    def forward(self, i: int) -> None:
        """Write row ``i`` of the output from row ``i`` of ``x``."""
        for layer in self._forward:
            layer(i)

    def backward(self, i: int) -> None:
        """From row ``i`` of ``d_output``, write that of every layer."""
        for layer in self._backward:
            layer(i)

    def is_current(self) -> bool:
        """Whether the weights still lie where they lay; ``model.to(...)`` moves them."""
        return all(
            layer.weight.data_ptr() == layer.module.weight.data_ptr()
            and (layer.bias is None or layer.bias.data_ptr() == layer.module.bias.data_ptr())
            for layer in self.dense
        )

    def are_finite(self) -> Tensor:
        """Which samples have a finite gradient throughout, bool (n_rows,)."""
        return torch.stack([layer.are_finite() for layer in self.dense]).all(0)
