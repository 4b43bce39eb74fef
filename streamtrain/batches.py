"""A span of samples cut into batches, some at a time: a tensor takes more memory than a tiny batch has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor

Group = tuple[Tensor, ...]
"""The fields of some batches in a row."""

_BATCHES_AT_ONCE: Final = 512


def groups_of(fields: Iterable[Tensor], batch_size: int) -> list[Group]:
    """Cut the fields of a span, (n, ...) each, into groups of batches, the first one last.

    Examples
    --------
    >>> [[len(batch) for batch, in reversed(batches_of(group, 2, tuple))] for group in groups_of([torch.zeros(5)], 2)]
    [[2, 2, 1]]
    """
    parts = [torch.split(field, batch_size * _BATCHES_AT_ONCE) for field in fields]
    return list(zip(*parts, strict=True))[::-1]


def batches_of(group: Group, batch_size: int, make: Callable[[Iterable[Tensor]], Any]) -> list[Any]:
    """Cut a group into its batches, the first one last."""
    parts = [torch.split(field, batch_size) for field in group]
    return list(map(make, zip(*parts, strict=True)))[::-1]
