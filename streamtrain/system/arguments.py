"""Argument checks shared by loaders, plans and comparisons."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeGuard, TypeVar

from streamtrain.errors import Argument, Fix, UsageError, unknown_name

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
ON_BAD_BLOCK: Final = ("error", "quarantine")
RESHUFFLE: Final = ("epoch", "never")


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Say whether a value is an integer of at least ``least``; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_int(value: object, name: str, least: int = 1, *, fix: str | None = None) -> None:
    """Refuse a value that is not an integer of at least ``least``."""
    if not is_int(value, least):
        raise UsageError(f"{name} is {value!r}; it must be an integer of at least {least}", fix=fix)


def check_batch_size(batch_size: int, n_samples: int, *, drop_last: bool) -> None:
    """Refuse a batch size that is not a positive integer, or that leaves no batch with ``drop_last``."""
    if not is_int(batch_size, 1):
        raise UsageError(
            f"batch_size is {batch_size!r}; it must be a positive integer",
            fix=Fix(Argument("batch_size", 256), ", say"),
        )
    if drop_last and batch_size > n_samples:
        raise UsageError(
            f"0 batches: batch_size is {batch_size}, the dataset has {n_samples} samples, and drop_last is set",
            fix=Fix(Argument("batch_size", n_samples), ", or ", Argument("drop_last", False)),
        )


def check_dataset(dataset: object) -> None:
    """Refuse what is no open dataset, a path or arrays say."""
    if not hasattr(dataset, "layout") or not hasattr(dataset, "__len__"):
        what = f"dataset is {dataset!r:.80}, and not a Dataset"
        raise UsageError(what, fix="streamtrain.open(path); or ingest the arrays first")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer of at least 0."""
    check_int(seed, "seed", least=0)


def check_reading(on_bad_block: str, timeout: float | None, reshuffle: str) -> None:
    """Refuse unknown values of ``on_bad_block`` and ``reshuffle``, and a timeout that is not positive."""
    if reshuffle not in RESHUFFLE:
        raise unknown_name("reshuffle", str(reshuffle), RESHUFFLE)
    if on_bad_block not in ON_BAD_BLOCK:
        raise unknown_name("on_bad_block", str(on_bad_block), ON_BAD_BLOCK)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise UsageError(f"timeout is {timeout!r}; it must be a positive number of seconds", fix="300, say, or None")


def naming_nearest(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Wrap a function to suggest the nearest argument name where a call has an unknown one."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        if not named.keys() <= known_names:
            raise unknown_name("argument", next(name for name in named if name not in known_names), known)
        return function(*given, **named)

    known_names = frozenset(known)
    return call


@contextmanager
def naming_misspelt(options: Mapping[str, object], function: Callable[..., object]) -> Iterator[None]:
    """Name what is nearly an argument of the function's own where options meant for somebody else are refused."""
    try:
        yield
    except UsageError:
        arguments = inspect.signature(function).parameters
        known = [name for name, argument in arguments.items() if argument.kind is not argument.VAR_KEYWORD]
        for name in options:
            if difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise unknown_name("argument", name, known) from None
        raise
