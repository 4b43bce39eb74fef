"""The weights of samples, from a field of their own: what they may be, and who is at fault where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from streamtrain.errors import InputError, UsageError
from streamtrain.shuffle.order import I64

_NAMED: Final = 8


def check_weight_field(name: str, weight: Tensor) -> None:
    """Refuse a field that is no weight of samples.

    Raises
    ------
    UsageError
        It has more than one number a sample, or no real ones.

    Examples
    --------
    >>> check_weight_field("w", torch.ones(4, 2))
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: field w has shape (2,) a sample; a weight is one number. Fix: a field of scalars.
    """
    if weight.ndim != 1:
        raise UsageError(
            f"field {name} has shape {tuple(weight.shape[1:])} a sample; a weight is one number",
            fix="a field of scalars",
        )
    if weight.is_complex():
        raise UsageError(f"field {name} is complex, and a weight is a number of at least 0", fix="floats or integers")


def check_weights(name: str, weight: Tensor, samples: Callable[[], I64 | None]) -> None:
    """Refuse weights of a batch that are negative or not finite.

    Parameters
    ----------
    name : str
        The field.
    weight : torch.Tensor
        Of shape (B,).
    samples : callable
        Gives the samples of the batch, (B,) int64, or None where they are not known; asked for only to name them.

    Raises
    ------
    InputError
        Some are; their samples are named, or their rows in the batch.

    Examples
    --------
    >>> import numpy as np
    >>> check_weights("w", torch.tensor([1.0, -2.0, 0.0]), lambda: np.array([70, 3, 12]))
    Traceback (most recent call last):
    ...
    streamtrain.errors.InputError: field w: the weight of sample 3 is -2.0. ... Fix: weights of at least 0.
    """
    if bool(_are_good(weight).all()):
        return
    rows = torch.nonzero(~_are_good(weight))[:, 0].tolist()
    ids = samples()
    kind = "sample" if ids is not None else "row of the batch"
    named = [f"{row if ids is None else int(ids[row])} is {weight[row].item()}" for row in rows[:_NAMED]]
    more = f", and {len(rows) - _NAMED} more of the batch" if len(rows) > _NAMED else ""
    raise InputError(
        f"the weight of {kind} {', of '.join(named)}{more}",
        where=f"field {name}",
        why="A weighted mean has no meaning then",
        fix="weights of at least 0",
    )


def _are_good(weight: Tensor) -> Tensor:
    return (weight >= 0) & torch.isfinite(weight)


def no_weight(name: str | None) -> InputError:
    """The error for an epoch in which nothing has a weight.

    Examples
    --------
    >>> str(no_weight("w"))
    'field w: the weights of all samples of the epoch sum to 0, so there is no mean. Fix: some weights above 0.'
    """
    if name is None:
        return InputError("every target of the epoch is of the class that the loss ignores", fix="another ignore_index")
    return InputError(
        "the weights of all samples of the epoch sum to 0, so there is no mean",
        where=f"field {name}",
        fix="some weights above 0",
    )
