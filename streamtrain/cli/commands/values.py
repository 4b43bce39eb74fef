"""Types of option values: sizes, names out of a list, datasets, runs and code; checked, and completed in a shell.

Nothing here imports torch or zarr: help, completion and usage errors come at once. The lists of names are those of the
library, which a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from streamtrain.errors import unknown_name
from streamtrain.system.units import parse_bytes

if TYPE_CHECKING:
    ValueType = click.ParamType[Any]
    _Choice = click.Choice[str]
else:
    # Generic in later versions of click only.
    ValueType, _Choice = click.ParamType, click.Choice

COMPLETION: Final = "_STREAMTRAIN_COMPLETE"
"""The environment variable by which a shell asks for completions."""

Items = list[CompletionItem]

UPDATES: Final = ("batch", "sample", "epoch")
TASKS: Final = ("classification", "multilabel", "regression")
LOSSES: Final = ("cross_entropy", "mse", "bce_with_logits", "l1", "huber", "nll", "poisson")
OPTIMIZERS: Final = (
    *("adam", "adamw", "sgd", "lbfgs", "cg", "rmsprop", "adagrad", "adamax", "nadam", "radam"),
    *("adadelta", "adafactor", "asgd", "muon", "rprop"),
)
SCHEDULES: Final = (
    *("cosine", "step", "onecycle", "plateau", "linear", "exponential", "constant", "multistep"),
    *("cyclic", "polynomial", "restarts"),
)
MODELS: Final = ("mlp", "linear", "cnn")
CODECS: Final = ("auto", "none", "lz4", "zstd")
MODES: Final = ("min", "max")
GRAD_SUM_DTYPES: Final = ("float64", "compensated", "float32")
SAMPLE_PATHS: Final = ("auto", "plain", "fast")
AUTOCAST: Final = ("bf16", "bfloat16")
EVERY: Final = ("step", "epoch")
ON_CHECKPOINT_FAILURE: Final = ("error", "warn")
CHECKPOINTS: Final = ("best", "last")
DEVICES: Final = ("auto", "cpu", "cuda")
MISSING: Final = ("error", "fill=mean", "drop")
"""Of ``--na``, which also takes ``fill=0`` with any number."""

_SHORT: Final = 12
_MANIFESTS: Final = ("_streamtrain/manifest.json", "_streamtrain/splits.json")
_CONFIG: Final = ("config.json",)


def _name(param: click.Parameter | None) -> str:
    return (param and param.name) or "value"


class Choice(_Choice):
    """One of some names, the most common first; any other is refused with the nearest, as the library does.

    ``kind`` is what the error calls it, by default the option's name.
    """

    def __init__(self, choices: Sequence[str], kind: str | None = None) -> None:
        super().__init__(choices)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a known name as it is."""
        if value not in self.choices:
            raise unknown_name(self.kind or _name(param), str(value), self.choices)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        """Write a few names where the value stands; many are in the help."""
        text = f"[{'|'.join(self.choices)}]"
        return text if len(text) <= _SHORT else _name(param).upper()


class Suggestion(Choice):
    """A name that is completed out of a list, and checked by the library, which takes others too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return any value as it is."""
        return value


class Names(ValueType):
    """Names with commas between them, completed one by one; where they have a ``kind``, there are no others."""

    name = "names"

    def __init__(self, known: Sequence[str], kind: str | None = None) -> None:
        self.known, self.kind = known, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split a list at its commas."""
        if not isinstance(value, str):
            return tuple(value)
        names = tuple(word.strip() for word in value.split(",") if word.strip())
        for name in names if self.kind is not None else ():
            if name not in self.known:
                raise unknown_name(str(self.kind), name, self.known)
        return names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """Complete the last of the names."""
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self.known if name.startswith(last)]


class Size(ValueType):
    """A number of bytes with its unit, or one of some words."""

    name = "SIZE"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a size without a unit; the library reads the text."""
        if value not in self.words:
            parse_bytes(value, name=(param and param.name) or "size")
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """Complete the words, and a number by the units."""
        units = [f"{incomplete}{unit}" for unit in ("MB", "GB")] if incomplete.isdecimal() else []
        return [CompletionItem(each) for each in (*self.words, *units) if each.startswith(incomplete)]


def _matches(incomplete: str, is_wanted: Callable[[Path], bool]) -> Items:
    """List what is wanted among the entries that a path may become, and the folders on the way to more."""
    head, slash, tail = incomplete.rpartition("/")
    head += slash
    try:
        names = sorted(path.name for path in Path(head or ".").iterdir() if path.name.startswith(tail))
    except OSError:
        return []
    shown = [f"{head}{name}" for name in names if tail.startswith(".") or not name.startswith(".")]
    wanted = [path for path in shown if is_wanted(Path(path))]
    if not wanted:
        # The shell completes folders better: it leaves out the blank behind them.
        return [CompletionItem(incomplete, type="dir")]
    return [*map(CompletionItem, wanted), *(CompletionItem(f"{path}/") for path in shown if _is_way(path, wanted))]


def _is_way(path: str, wanted: Sequence[str]) -> bool:
    return path not in wanted and Path(path).is_dir()


class Folder(click.Path):
    """A folder that holds one of some files."""

    def __init__(self, holds: Sequence[str], **of_path: Any) -> None:
        super().__init__(**of_path)
        self.holds = holds

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """Complete folders that hold such a file, and the way to them."""
        return _matches(incomplete, lambda path: any((path / name).is_file() for name in self.holds))


class Split(ValueType):
    """A split of the dataset that the command has named already."""

    name = "NAME"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """Complete the names of the folders in the dataset."""
        # Where the last word is an option without its value, click has not parsed the arguments before it.
        given = (ctx.params.get("dest"), *(ctx.params.get("sources") or ()), *ctx.args)
        found = (path for folder in given if folder for path in Path(folder).glob(f"*/{_MANIFESTS[0]}"))
        names = sorted(path.parents[1].name for path in found)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Code(ValueType):
    """A model by name, or a file of Python with a name in it."""

    name = "MODEL"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """Complete the names of models, and files of Python."""
        names = [CompletionItem(name) for name in MODELS if name.startswith(incomplete)]
        files = _matches(incomplete, lambda path: path.suffix == ".py" and path.is_file())
        return names + [each for each in files if each.type == "plain"] or files


DATASET: Final = Folder(_MANIFESTS, path_type=Path)
DATASET_TEXT: Final = Folder(_MANIFESTS, readable=False)
"""A dataset that the library is given as it was typed."""
RUN: Final = Folder(_CONFIG, path_type=Path)
FILE: Final = click.Path(readable=False)
SIZE: Final = Size()
SIZE_OR_AUTO: Final = Size("auto")
