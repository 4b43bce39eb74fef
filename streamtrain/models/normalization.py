"""Input normalization, ``(x - mean) / std``, computed before the model from the stored statistics.

The statistics are those of the training data. They are saved beside the model's weights, so that an evaluation rescales
its inputs in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamtrain.errors import UsageError, unknown_name
from streamtrain.store.layout import Field

_EXACT_IN_FLOAT32: Final = ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32")
_MOST_IN_FLOAT32: Final = 2.0**125
"""Of numbers below this, float32 holds every difference."""
_LEAST_OF_SPREAD: Final = 1e-3
_ROUNDINGS: Final = 4
_WHOLE: Final = 2.0**53


class Normalize(nn.Module):
    """Rescale one input: ``(x - mean) / std`` as float32, computed where the batch is.

    Parameters
    ----------
    mean, std : torch.Tensor
        Scalars, or of the shape of one sample; a ``std`` of zero is taken as one. Their dtype, float32 or float64, is
        the one the difference is computed in.

    Examples
    --------
    >>> pixels = Normalize(torch.tensor(100.0), torch.tensor(50.0))
    >>> pixels(torch.tensor([[0, 200]], dtype=torch.uint8))
    tensor([[-2.,  2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std == 0, torch.ones_like(std), std))

    def forward(self, x: Tensor) -> Tensor:
        """Rescale a batch of any dtype and shape (B, ...) to float32 of that shape."""
        return ((x.to(self.mean.dtype) - self.mean) / self.std).to(torch.float32)


class MeanAndStd(Protocol):
    """Mean and standard deviation over all values of a field."""

    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...


class InputStatistics(Protocol):
    """What a dataset knows of a field: each feature's figures, float64 of the shape of one sample, and the overall."""

    @property
    def mean(self) -> npt.NDArray[np.float64]: ...
    @property
    def std(self) -> npt.NDArray[np.float64]: ...
    @property
    def overall(self) -> MeanAndStd: ...


def normalize_field(field: Field, statistics: InputStatistics) -> Normalize:
    """Make the `Normalize` that fits a field.

    The columns of a table, samples of one axis, are rescaled each by its own mean and standard deviation. Bytes, and
    samples of several axes such as images, have one scale for all: there, a pixel's own would blow up the corners.

    Raises
    ------
    UsageError
        A statistic is not finite.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> table = Field(name="x", dtype=np.dtype("float64"), shape=(2,))
    >>> columns = SimpleNamespace(mean=np.array([10.0, 0.0]), std=np.array([5.0, 0.0]), overall=None)
    >>> normalize_field(table, columns)(torch.tensor([[20.0, 3.0]]))
    tensor([[2., 3.]])
    """
    is_table = len(field.shape) == 1 and field.dtype != np.uint8
    of = statistics if is_table else statistics.overall
    mean, std = np.asarray(of.mean), np.asarray(of.std)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UsageError(
            f"field {field.name} has a mean or standard deviation that is not finite",
            fix="normalize=None, and rescale in the model",
        )
    std = np.where(_is_rounding(mean, std), 0.0, std)
    is_narrow = field.dtype.name in _EXACT_IN_FLOAT32 and _fits_float32(mean, std)
    dtype = torch.float32 if is_narrow else torch.float64
    return Normalize(torch.as_tensor(mean, dtype=dtype), torch.as_tensor(std, dtype=dtype))


def _fits_float32(mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> bool:
    """Whether differences from the mean stay in float32's range, and its rounding is nothing beside the spread."""
    if not max(np.abs(mean).max(), std.max()) < _MOST_IN_FLOAT32:
        return False
    return bool((np.abs(mean - mean.astype(np.float32)) <= _LEAST_OF_SPREAD * std).all())


def _is_rounding(mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where a spread is no more than the roundings of the mean, as statistics of a constant may have it."""
    is_small = std <= _ROUNDINGS * np.finfo(np.float64).eps * np.abs(mean)
    # Whole numbers up to 2^53 differ by 1 at least, and exactly.
    return is_small & ((std < 0.25) | (np.abs(mean) > _WHOLE))


class NormalizedModel(nn.Module):
    """A model with each of its inputs rescaled before it.

    Parameters
    ----------
    model : torch.nn.Module
        Takes the inputs in order.
    inputs : tuple of str
        Their names.
    forward : callable, optional
        What runs the model; by default it is called.
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], forward: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        # A list, not torch's dict of modules: that refuses names such as "values", which a field may have.
        self._rescale = nn.ModuleList(nn.Identity() for _ in inputs)
        self.model = model
        # In a tuple, since torch would take a module for a second one of this one's.
        self._run = (forward or model,)

    def put(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Put modules before the inputs of those names, on a device.

        Raises
        ------
        UnknownName
            There is no such input.
        """
        for name, module in modules.items():
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs)
            self._rescale[self.inputs.index(name)] = module.to(device)

    @property
    def calls_model(self) -> bool:
        """Whether the model is simply called, and nothing runs it in a way of its own."""
        return self._run[0] is self.model

    def modules_by_input(self) -> dict[str, nn.Module]:
        """What stands before the inputs, by their names; those that pass as they are left out."""
        pairs = zip(self.inputs, self._rescale, strict=True)
        return {name: module for name, module in pairs if not isinstance(module, nn.Identity)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's output on the rescaled inputs."""
        (run,) = self._run
        output: Tensor = run(*(rescale(x) for rescale, x in zip(self._rescale, inputs, strict=True)))
        return output
