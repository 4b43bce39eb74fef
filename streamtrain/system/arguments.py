"""Argument checks shared by loaders, plans and comparisons."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Final, TypeGuard

from streamtrain.errors import Argument, Fix, UsageError, unknown_name

ON_BAD_BLOCK: Final = ("error", "quarantine")
RESHUFFLE: Final = ("epoch", "never")
MOST_INT: Final = 2**63 - 1
"""Libraries count in 64 bits."""


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a finite number, an integer one of 64 bits; True and False are not."""
    return math.isfinite(value) if isinstance(value, float) else is_int(value, -MOST_INT, MOST_INT)


def is_int(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Say whether a value is an integer from ``least`` to ``most``; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def a_kind(value: object) -> str:
    """Name the type of a value with its article: a dict, an ndarray."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def check_int(value: object, name: str, least: int = 1, most: float = math.inf, *, fix: str | None = None) -> None:
    """Refuse a value that is not an integer from ``least`` to ``most``."""
    if not is_int(value, least, most):
        wanted = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise UsageError(f"{name} is {value!r:.80}; it must be an integer {wanted}", fix=fix)


def check_flags(**flags: object) -> None:
    """Refuse what is neither True nor False: of an array, and of the text "no", it would be a guess."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r:.80}; it must be True or False")


def check_functions(**functions: object) -> None:
    """Refuse what cannot be called."""
    for name, value in functions.items():
        if not callable(value):
            raise UsageError(f"{name} is {value!r:.80}; it must be a function")


def check_optional_functions(**functions: object) -> None:
    """Refuse what is neither None nor can be called."""
    check_functions(**{name: value for name, value in functions.items() if value is not None})


def check_choice(value: object, kind: str, known: Iterable[str]) -> None:
    """Refuse what is not one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise unknown_name(kind, f"{value:.80}" if isinstance(value, str) else f"{value!r:.80}", known)


def check_names(**names: object) -> None:
    """Refuse what is not a name, nor a tuple or list of names."""
    for argument, value in names.items():
        if not all(isinstance(name, str) for name in (value if isinstance(value, tuple | list) else [value])):
            raise UsageError(f"{argument} is {value!r:.80}; it must be a name, or names")


def check_batch_size(batch_size: int, n_samples: int, *, drop_last: bool) -> None:
    """Refuse a batch size that is not a positive integer, or that leaves no batch with ``drop_last``."""
    check_flags(drop_last=drop_last)
    if not is_int(batch_size, 1, MOST_INT):
        raise UsageError(
            f"batch_size is {batch_size!r:.80}; it must be a positive integer",
            fix=Fix(Argument("batch_size", 256), ", say"),
        )
    if drop_last and batch_size > n_samples:
        raise UsageError(
            f"0 batches: batch_size is {batch_size}, the dataset has {n_samples} samples, and drop_last is set",
            fix=Fix(Argument("batch_size", n_samples), ", or ", Argument("drop_last", False)),
        )


def check_dataset(dataset: object) -> None:
    """Refuse what is no dataset, arrays say."""
    if not hasattr(getattr(dataset, "layout", None), "n_samples") or not hasattr(dataset, "__len__"):
        what = f"dataset is {dataset!r:.80}, and not a Dataset"
        raise UsageError(what, fix="give a dataset or its path; arrays are ingested first")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer of at least 0."""
    check_int(seed, "seed", least=0)


def check_reading(on_bad_block: str, timeout: float | None, reshuffle: str) -> None:
    """Refuse unknown values of ``on_bad_block`` and ``reshuffle``, and a timeout that is not positive."""
    check_choice(reshuffle, "reshuffle", RESHUFFLE)
    check_choice(on_bad_block, "on_bad_block", ON_BAD_BLOCK)
    if timeout is not None and not (is_number(timeout) and 0 < timeout <= threading.TIMEOUT_MAX):
        what = f"timeout is {timeout!r:.80}; it must be a positive number of seconds"
        raise UsageError(what, fix="300, say, or None to wait forever")
