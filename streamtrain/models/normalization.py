"""Input normalization, ``(x - mean) / std``, computed before the model from the training data's statistics.

They are saved beside the model's weights, so an evaluation rescales its inputs in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, CheckpointError, Fix, UsageError, unknown_name
from streamtrain.store.layout import Field

_EXACT_IN_FLOAT32: Final = ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32")
_MOST_IN_FLOAT32: Final = 2.0**125
"""float32 holds every difference of numbers below this."""
_LEAST_OF_SPREAD: Final = 1e-3
_ROUNDINGS: Final = 4
_LEAST_OF_FLOATS: Final = 1e-12
_WHOLE: Final = 2.0**53


AUTO: Final = "auto"
IMAGENET: Final = "imagenet"


class Normalize(nn.Module):
    """Rescale one input to float32; the difference has the dtype of ``mean``, and a ``std`` of 0 counts as 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std == 0, torch.ones_like(std), std))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.to(self.mean.dtype) - self.mean) / self.std).to(self.dtype)


def awaits_statistics(normalize: object) -> bool:
    """Say whether inputs are normalized by the statistics of the training data; refuse what is no normalization."""
    if normalize is None or isinstance(normalize, Mapping):
        return False
    if isinstance(normalize, str) and normalize in (AUTO, IMAGENET):
        return True
    raise UsageError(f"normalize is {normalize!r}", fix="None, 'auto', 'imagenet', or a mapping of input to module")


class MeanAndStd(Protocol):
    """Mean and standard deviation over all values of a field."""

    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...


class InputStatistics(Protocol):
    """Statistics of a field: per feature, float64 of the shape of one sample, and overall."""

    @property
    def mean(self) -> npt.NDArray[np.float64]: ...
    @property
    def std(self) -> npt.NDArray[np.float64]: ...
    @property
    def overall(self) -> MeanAndStd: ...


def normalize_field(field: Field, statistics: InputStatistics) -> Normalize:
    """Make the `Normalize` that fits a field.

    Columns of a table, samples of one axis, each have a scale of their own. Bytes, and samples of several axes such as
    images, share one: a scale for each pixel would blow up the corners. Images that are decoded have one a channel.
    """
    is_table = len(field.shape) == 1 and field.dtype != np.uint8
    is_image = _has_channels(field, statistics)
    of = statistics if is_table or is_image else statistics.overall
    mean, std = np.asarray(of.mean), np.asarray(of.std)
    if is_image:
        mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        if is_image:
            raise UsageError(
                f"the channels of field {field.name} have no statistics: its images were not decoded when stored",
                fix=Fix(Argument("normalize", "imagenet"), ", the usual figures; or ", Argument("normalize", off=True)),
            )
        raise UsageError(
            f"field {field.name} has a mean or standard deviation that is not finite",
            fix=Fix(Argument("normalize", off=True), ", and rescale in the model"),
        )
    std = spread_of(field, mean, std)
    is_narrow = field.dtype.name in _EXACT_IN_FLOAT32 and _fits_float32(mean, std)
    dtype = torch.float32 if is_narrow else torch.float64
    return Normalize(torch.as_tensor(mean, dtype=dtype), torch.as_tensor(std, dtype=dtype))


def _has_channels(field: Field, statistics: InputStatistics) -> bool:
    """Whether a field is of images, channels first, with statistics of these."""
    return len(field.shape) == 3 and np.shape(statistics.mean) == field.shape[:1]


_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of red, green and blue, from 0 to 1, over ImageNet (O. Russakovsky et al., 2015)."""


def normalize_as_imagenet(field: Field) -> Normalize:
    """Make the `Normalize` that networks trained on ImageNet expect before them."""
    if len(field.shape) != 3 or field.shape[0] != len(_IMAGENET[0]):
        what = f"normalize='imagenet' is of RGB images, and field {field.name} has samples of shape {field.shape}"
        raise UsageError(what, fix=Fix(Argument("normalize", "auto")))
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) * 255 for values in _IMAGENET)
    return Normalize(mean, std)


def _fits_float32(mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> bool:
    """Whether differences from the mean stay in float32's range and its rounding is small beside the spread."""
    if not max(np.abs(mean).max(), std.max()) < _MOST_IN_FLOAT32:
        return False
    return bool((np.abs(mean - mean.astype(np.float32)) <= _LEAST_OF_SPREAD * std).all())


def spread_of(field: Field, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the spreads of a field's features: 0 where one is that of a constant, a rounding of the mean."""
    is_rounding = std <= _ROUNDINGS * np.finfo(np.float64).eps * np.abs(mean)
    if field.dtype.kind == "f":
        is_rounding |= std < _LEAST_OF_FLOATS * np.abs(mean)
    # Whole numbers up to 2^53 differ by 1 at least, and exactly.
    are_whole = (np.abs(mean) <= _WHOLE) & (std >= 0.25)
    return np.where(is_rounding & ~are_whole, 0.0, std)


class NormalizedModel(nn.Module):
    """A model with each of its inputs rescaled before it; ``forward`` runs the model where it is not simply called."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], forward: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        # A list, not torch's dict of modules: that refuses names such as "values", which a field may have.
        self._rescale = nn.ModuleList(nn.Identity() for _ in inputs)
        self.model = model
        # In a tuple, since torch would register a module a second time.
        self._run = (model if forward is None else forward,)

    def put(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Put modules before the named inputs, on a device."""
        for name, module in modules.items():
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs)
            if not isinstance(module, nn.Module):
                raise UsageError(f"normalize of {name} is {module!r:.80}", fix="a torch.nn.Module")
            if isinstance(module, Normalize):
                module.dtype = self._float_dtype()
            self._rescale[self.inputs.index(name)] = module.to(device)

    def _float_dtype(self) -> torch.dtype:
        """The dtype of the model's weights, where they have one of real numbers; else float32."""
        dtypes = {weight.dtype for weight in self.model.parameters()}
        (dtype,) = dtypes if len(dtypes) == 1 else {torch.float32}
        return dtype if dtype.is_floating_point else torch.float32

    @property
    def calls_model(self) -> bool:
        """Whether the model is simply called, neither compiled nor under autocast."""
        return self._run[0] is self.model

    def put_back(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the statistics of the inputs from a checkpoint, all of them and no others."""
        modules = self.modules_by_input()
        for name in {*modules, *states}:
            before = {key: value.shape for key, value in states.get(name, {}).items()}
            if name not in modules or before != {key: value.shape for key, value in modules[name].state_dict().items()}:
                raise CheckpointError(f"the normalization of {name} is missing, or of another shape", fix="train again")
            modules[name].load_state_dict(states[name])

    def modules_by_input(self) -> dict[str, nn.Module]:
        """The modules before the inputs, by name; inputs that pass unchanged are left out."""
        pairs = zip(self.inputs, self._rescale, strict=True)
        return {name: module for name, module in pairs if not isinstance(module, nn.Identity)}

    def rescaled(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs as the model is given them."""
        return tuple(rescale(x) for rescale, x in zip(self._rescale, inputs, strict=True))

    def forward(self, *inputs: Tensor) -> Tensor:
        (run,) = self._run
        output: Tensor = run(*self.rescaled(*inputs))
        return output
