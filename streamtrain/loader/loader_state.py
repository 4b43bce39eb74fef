"""The state of a loader, taken up again: checked against the loader, adapted from earlier releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from streamtrain.errors import Argument, CheckpointError, Fix, UsageError, differences
from streamtrain.shuffle.order import ORDER_VERSION
from streamtrain.system.arguments import check_int

LOADER_STATE_VERSION: Final = 2
_LEAST: Final = {"seed": 0, "epoch": 0, "batch": 0, "lanes": 1, "groups": 1}
"""Entries of a state that may differ from the loader's, and the least of each."""
_FIRST_VERSION: Final = {"reshuffle": "epoch", "order": 1}  # defaults where a state of version 1 has none


def checked_state(state: object, mine: Mapping[str, Any]) -> dict[str, Any]:
    """Validate a state to resume from, of this release or an earlier one, against the loader's ``mine``."""
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is {type(state).__name__}", fix="what state_dict() returned")
    for name, value in state.items():
        # Arrays and tensors compare by elements.
        if not isinstance(value, int | str | None):
            raise UsageError(f"the state's {name} is {value!r:.80}", fix="what state_dict() returned")
    is_first = state.get("version") == 1
    known = {**_FIRST_VERSION, **state, "version": LOADER_STATE_VERSION} if is_first else dict(state)
    if is_first and mine.get("order") is None:
        known["order"] = None
    ours = {"decode": None} | {name: value for name, value in mine.items() if name not in _LEAST and name != "order"}
    if wrong := differences(known, ours):
        raise UsageError("the state is of another loader", why="; ".join(wrong), fix="make the loader as it was")
    for name, least in _LEAST.items():
        check_int(known.get(name), f"the state's {name}", least)
    if (seed := known["seed"]) != mine["seed"]:
        why = f"seed: {seed} there, {mine['seed']} here"
        raise UsageError("the state is of another loader", why=why, fix=Fix("make it with ", Argument("seed", seed)))
    return known if known.get("order") == mine.get("order") else _in_this_order(known, mine)


def _in_this_order(state: dict[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """Adapt a state of another order that stands between epochs: the next one is of this order, by its lanes."""
    begun = state["batch"] > 0
    # Then every epoch is the same, but those before had other batches.
    repeats = state.get("reshuffle") == "never" and state["epoch"] > 0
    if begun or repeats:
        where = f"inside epoch {state['epoch']}" if begun else f"after {state['epoch']} epochs that are all alike,"
        raise CheckpointError(
            f"the state was taken {where} of order {state.get('order')}, and this release makes order {ORDER_VERSION}",
            why=(
                "Order 1 is that of streamtrain 0.1.0. The samples it has used so far are not those that this order "
                "would have used: some would come twice"
            ),
            fix="finish that epoch with the release that began it, or begin a new run",
        )
    return {**state, "lanes": mine["lanes"], "groups": mine["groups"], "order": mine["order"]}
