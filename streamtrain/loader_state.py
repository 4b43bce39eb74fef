"""Where a loader stands, as a few numbers: told by ``state_dict``, and looked at before anything believes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from streamtrain.errors import UsageError, differences

VERSION: Final = 1
_LEAST: Final = {"seed": 0, "epoch": 0, "batch": 0, "lanes": 1, "groups": 1}
"""What a state may hold besides what the loader has, and the least of each."""
_SINCE: Final = {"reshuffle": "epoch"}
"""What a state of before these were there stands for."""


def check_state(state: object, mine: Mapping[str, Any]) -> None:
    """Refuse a state that a loader cannot go on from.

    Parameters
    ----------
    state : object
        What ``load_state_dict`` was given.
    mine : mapping
        The loader's own ``state_dict``.

    Raises
    ------
    UsageError
        It is of another dataset or of other parameters, or it is no state at all.

    Examples
    --------
    >>> mine = {"version": 1, "batch_size": 2, "seed": 0, "epoch": 0, "batch": 0, "lanes": 4, "groups": 1}
    >>> check_state({**mine, "epoch": 7}, mine)
    >>> check_state({**mine, "epoch": -1}, mine)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: the state's epoch is -1; it must be an integer of at least 0
    """
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is {type(state).__name__}", fix="what state_dict() returned")
    if wrong := differences({**_SINCE, **state}, {name: value for name, value in mine.items() if name not in _LEAST}):
        raise UsageError("the state is of another loader", why="; ".join(wrong), fix="make the loader as it was")
    for name, least in _LEAST.items():
        value = state.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"the state's {name} is {value!r}; it must be an integer of at least {least}")
