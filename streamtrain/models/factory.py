"""Models by name: ``linear``, ``mlp:256,128``, ``cnn``, or code of the user's own.

The built-in models take samples of any shape, so a name is enough to train on a dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor, nn

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.models.model_data import ModelData, Shape
from streamtrain.models.seeding import seeded_random
from streamtrain.models.table_inputs import CATEGORIES, FIELDS, CategoryEmbeddings, TableModel, embedding_width
from streamtrain.models.user_code import CodeName, check_file, is_importable, make_from_code, parse_code_name


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model made by its name, and what a run remembers of that."""

    module: nn.Module
    name: str
    model_args: Mapping[str, object] = field(default_factory=dict)
    # What a factory was called with, in words; None for the others.
    called_with: str | None = None
    # Of the file it is from.
    sha256: str | None = None
    # Its weights were there before the seed.
    is_ready: bool = False

    def config(self) -> dict[str, object]:
        """What a run's configuration says of it."""
        args = {"model_args": dict(self.model_args)} if self.model_args else {}
        return {"model": self.name, **args, **({"model_sha256": self.sha256} if self.sha256 else {})}

    def told(self) -> str:
        """What the heading of a run ends with, of a model that code made."""
        if self.is_ready:
            return ", ready made: its weights do not follow from the seed"
        return f", called with {self.called_with}" if self.called_with else ""


def build_model(model: str, *, input_shape: Shape, n_outputs: int, seed: int = 0) -> nn.Module:
    """Build a model for samples of a shape, of one input; see `make_model`."""
    return make_model(model, ModelData(shapes={"x": input_shape}, n_outputs=n_outputs), seed=seed).module


def make_model(
    model: str, data: ModelData, *, seed: int = 0, model_args: Mapping[str, object] | None = None
) -> BuiltModel:
    """Make a model by its name; the initial weights of all but a ready module follow from the seed alone."""
    given = dict(model_args or {})
    code = code_of(model)
    with seeded_random(seed):
        if code is not None:
            made = make_from_code(code, data.offered(), given)
            return BuiltModel(
                module=made.module,
                name=model,
                model_args=given,
                called_with=made.called_with,
                sha256=made.sha256,
                is_ready=made.called_with is None,
            )
        name, colon, argument = model.partition(":")
        if given:
            what = f"model {name} takes no arguments: {', '.join(given)}"
            raise UsageError(what, fix=Fix("leave out ", Argument("model_args"), ", or a model of your own"))
        if len(data.shapes) > 1:
            _check_inputs(name, tuple(data.shapes))
        return BuiltModel(module=_BUILT_IN[name](argument if colon else None, data), name=model)


def code_of(model: str) -> CodeName | None:
    """Return the code that a model names; None for a built-in one; refuse what is neither."""
    name = model.partition(":")[0]
    if name in _BUILT_IN:
        return None
    code = parse_code_name(model)
    if code is None or not (code.is_file or "." in code.place or is_importable(code.place)):
        error = unknown_name("model", name, MODELS)
        error.why = f"{error.why}; or code of your own: FILE.py:NAME, PACKAGE.MODULE:NAME"
        raise error
    return code


def check_model_name(model: str) -> None:
    """Refuse a name that no model has, before anything is read."""
    code = code_of(model)
    if code is not None and code.is_file:
        check_file(code.place)


def is_code(model: str) -> bool:
    """Whether a model is named as code, and not as a built-in one."""
    return model.partition(":")[0] not in _BUILT_IN


def n_parameters(model: nn.Module) -> int:
    """Count the trained weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _linear(argument: str | None, data: ModelData) -> nn.Module:
    _refuse_argument("linear", argument)
    if not _is_table(data):
        return nn.Sequential(ToVector(), nn.Linear(math.prod(data.input_shape), data.n_outputs))
    width = _number_width(data)
    return TableModel(
        tuple(data.shapes),
        _embeddings(data, (data.n_outputs,) * len(data.category_sizes)),
        numbers=nn.Linear(width, data.n_outputs) if width else None,
    )


def _mlp(argument: str | None, data: ModelData) -> nn.Module:
    hidden = _widths(_MLP_WIDTHS if argument is None else argument)
    if not _is_table(data):
        return nn.Sequential(ToVector(), *_layers(math.prod(data.input_shape), hidden, data.n_outputs))
    widths = tuple(map(embedding_width, data.category_sizes)) if CATEGORIES in data.shapes else ()
    embeddings = _embeddings(data, widths)
    layers = nn.Sequential(*_layers(_number_width(data) + sum(widths), hidden, data.n_outputs))
    return TableModel(tuple(data.shapes), embeddings, layers=layers)


def _layers(width: int, hidden: list[int], n_outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for each in hidden:
        layers += [nn.Linear(width, each), nn.ReLU()]
        width = each
    return [*layers, nn.Linear(width, n_outputs)]


def _is_table(data: ModelData) -> bool:
    return len(data.shapes) > 1 or (CATEGORIES in data.shapes and bool(data.category_sizes))


def _number_width(data: ModelData) -> int:
    embedded = CATEGORIES if data.category_sizes else None
    return sum(math.prod(shape) for name, shape in data.shapes.items() if name != embedded)


def _embeddings(data: ModelData, widths: tuple[int, ...]) -> CategoryEmbeddings | None:
    if CATEGORIES not in data.shapes or not data.category_sizes:
        return None
    return CategoryEmbeddings(data.category_sizes, widths)


def _check_inputs(name: str, inputs: tuple[str, ...]) -> None:
    """Refuse several inputs for a built-in model that does not take all of them."""
    taken = FIELDS if name != "cnn" else ()
    if not set(inputs) <= set(taken):
        of_table = f", or of a table {', '.join(taken)}" if taken else ""
        raise UsageError(
            f"model {name} takes one input{of_table}; it is given {', '.join(inputs)}",
            fix=Fix(
                Argument("inputs", inputs[:1]), ", say, or a model of your own: ", Argument("model", "FILE.py:NAME")
            ),
        )


def _cnn(argument: str | None, data: ModelData) -> nn.Module:
    _refuse_argument("cnn", argument)
    to_channels = ToChannels(data.input_shape)
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
        nn.Linear(128, data.n_outputs),
    )


_MLP_WIDTHS: Final = "256,128"
_MLP: Final = Fix(Argument("model", f"mlp:{_MLP_WIDTHS}"), ", say")
_BUILT_IN: Final[dict[str, Callable[[str | None, ModelData], nn.Module]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "cnn": _cnn,
}

MODELS: Final = tuple(_BUILT_IN)
"""The names of the built-in models."""
_MOST_WIDTH: Final = 2**24


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


def _refuse_argument(name: str, argument: str | None) -> None:
    if argument:
        raise UsageError(
            f"model {name} takes no {argument!r}",
            fix=Fix(Argument("model", name), ", or ", Argument("model", f"mlp:{argument}")),
        )


def _widths(argument: str) -> list[int]:
    words = [word.strip() for word in argument.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"mlp widths {argument!r} are not positive integers", fix=_MLP)
    if any(len(word) > 9 or int(word) > _MOST_WIDTH for word in words):
        raise UsageError(f"mlp widths {argument:.80} are above {_MOST_WIDTH:,}, the most that are taken", fix=_MLP)
    return [int(word) for word in words]
