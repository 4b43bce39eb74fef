"""Models by name: ``linear``, ``mlp:256,128``, ``cnn``, or a factory in a file of the user's own.

The built-in models take samples of any shape, so a name is enough to train on a dataset.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import Tensor, nn

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.models.seeding import seeded_random

Shape = tuple[int, ...]


def build_model(model: str, *, input_shape: Shape, n_outputs: int, seed: int = 0) -> nn.Module:
    """Build a model for samples of a shape; its initial weights follow from the seed alone.

    A factory in a file is called with ``input_shape`` and ``n_outputs`` where it takes them.
    """
    with seeded_random(seed):
        if is_file_model(model):
            return _from_file(model, input_shape, n_outputs)
        name, _, argument = model.partition(":")
        if name not in _BUILT_IN:
            raise unknown_name("model", name, MODELS)
        return _BUILT_IN[name](argument, input_shape, n_outputs)


def n_parameters(model: nn.Module) -> int:
    """Count the trained weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def is_file_model(model: str) -> bool:
    """Whether a model is given as a factory in a Python file, whose code runs when it is built."""
    return ".py:" in model or model.endswith(".py")


def _linear(argument: str, input_shape: Shape, n_outputs: int) -> nn.Module:
    _refuse_argument("linear", argument)
    return nn.Sequential(ToVector(), nn.Linear(math.prod(input_shape), n_outputs))


def _mlp(argument: str, input_shape: Shape, n_outputs: int) -> nn.Module:
    layers: list[nn.Module] = [ToVector()]
    width = math.prod(input_shape)
    for hidden in _widths(argument):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


def _cnn(argument: str, input_shape: Shape, n_outputs: int) -> nn.Module:
    _refuse_argument("cnn", argument)
    to_channels = ToChannels(input_shape)
    channels, height, width = to_channels.output_shape
    if min(height, width) < 4:
        raise UsageError(f"a cnn needs images of at least 4x4; a sample is {height}x{width}", fix=_MLP)
    return nn.Sequential(
        to_channels,
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, n_outputs),
    )


_MLP: Final = Fix(Argument("model", "mlp:256,128"), ", say")
_BUILT_IN: Final[dict[str, Callable[[str, Shape, int], nn.Module]]] = {"linear": _linear, "mlp": _mlp, "cnn": _cnn}

MODELS: Final = tuple(_BUILT_IN)
"""The names `build_model` knows."""


class ToVector(nn.Module):
    """Flatten samples of any shape, single numbers too, to (B, features)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


class ToChannels(nn.Module):
    """Bring images to (B, channels, height, width).

    Gray images (height, width) gain the axis. A last axis of length 1, 3 or 4 is taken for the channels and moved to
    the front, unless the first axis looks like channels too.
    """

    def __init__(self, sample_shape: Shape) -> None:
        super().__init__()
        if len(sample_shape) not in (2, 3):
            raise UsageError(f"a cnn needs images; a sample has the shape {sample_shape}", fix=_MLP)
        self._is_gray = len(sample_shape) == 2
        self._is_last = not self._is_gray and sample_shape[-1] in (1, 3, 4) and sample_shape[0] not in (1, 3, 4)
        shape = (1, *sample_shape) if self._is_gray else sample_shape
        self.output_shape = (shape[2], shape[0], shape[1]) if self._is_last else shape

    def forward(self, images: Tensor) -> Tensor:
        if self._is_gray:
            return images.unsqueeze(1)
        return images.permute(0, 3, 1, 2) if self._is_last else images


def _refuse_argument(name: str, argument: str) -> None:
    if argument:
        raise UsageError(
            f"model {name} takes no {argument!r}",
            fix=Fix(Argument("model", name), ", or ", Argument("model", f"mlp:{argument}")),
        )


def _widths(argument: str) -> list[int]:
    words = [word.strip() for word in argument.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"mlp widths {argument!r} are not positive integers", fix=_MLP)
    return [int(word) for word in words]


def _from_file(model: str, input_shape: Shape, n_outputs: int) -> nn.Module:
    file, _, name = model.rpartition(":")
    if not file or not name:
        raise UsageError(
            f"model {model!r} names no factory", fix=Fix(Argument("model", f"{model.removesuffix(':')}:build"), ", say")
        )
    factory = getattr(_import_file(Path(file)), name, None)
    if not callable(factory):
        raise UsageError(f"{file} has no callable {name!r}", fix="name a function or a class that the file defines")
    made = _call(factory, model, {"input_shape": input_shape, "n_outputs": n_outputs})
    if not isinstance(made, nn.Module):
        raise UsageError(f"{model} returned {type(made).__name__}, not a torch.nn.Module", fix="return the model")
    return made


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"model file {path} does not exist", fix="FILE.py:FACTORY, relative to the current directory")
    name = f"streamtrain_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"{path} cannot be imported: {type(error).__name__}: {error}", fix=_import_fix(path, error)
        ) from error
    return module


def _import_fix(path: Path, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        folder = shlex.quote(str(path.resolve().parent))
        return f"install {error.name}, or put its folder on the path: PYTHONPATH={folder}"
    return "correct the file"


def _call(factory: Callable[..., object], model: str, offered: dict[str, object]) -> object:
    try:
        arguments, named = _arguments(factory, offered)
        return factory(*arguments, **named)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{model} failed: {type(error).__name__}: {error}",
            why=f"It was called with {', '.join(offered)} where it takes them",
            fix="correct the factory",
        ) from error


def _arguments(
    factory: Callable[..., object], offered: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Choose the offered arguments that a factory takes: by name, or as its two required positional ones."""
    parameters = inspect.signature(factory).parameters
    named = {name: value for name, value in offered.items() if name in parameters}
    required = [p for p in parameters.values() if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    if not named and len(required) == len(offered):
        return tuple(offered.values()), {}
    return (), named
