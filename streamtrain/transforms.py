"""A caller's function over batches, handed the keys of their samples where it takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import picks

Transform = Callable[..., Any]
"""``transform(batch)`` or ``transform(batch, keys)``: what is yielded in place of a batch."""

_INDEX_SAMPLES: Final = 8192


def takes_keys(transform: Transform | None) -> bool:
    """Whether a function has a second positional argument without a default.

    Examples
    --------
    >>> [takes_keys(f) for f in (None, lambda batch: 0, lambda batch, keys: 0, lambda batch, noise=1: 0)]
    [False, False, True, False]
    """
    if transform is None:
        return False
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):
        # Some functions written in C do not say what they take; those made for batches alone are the usual ones.
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(needed) > 1


def batch_samples(order: EpochOrder, start: int, stop: int, batch_size: int) -> Iterator[I64]:
    """The samples of each batch at positions [start, stop) of an epoch, one after the other."""
    rest = np.empty(0, np.int64)
    for piece in picks(order, start, index_samples=max(batch_size, _INDEX_SAMPLES)):
        samples = order.run_first[piece.runs] + piece.rows
        rest = np.concatenate([rest, samples[: max(stop - piece.start, 0)]])
        while len(rest) >= batch_size:
            yield rest[:batch_size]
            rest = rest[batch_size:]
    if len(rest):
        yield rest
