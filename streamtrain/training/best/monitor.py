"""The monitor of a run: the value that says which epoch is best, and that epoch as a value.

Best is a strict improvement, so of two equal epochs the earlier one, and never one whose value is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, CheckpointError, Fix, UsageError, first_line, unknown_name
from streamtrain.system.arguments import MOST_INT, check_choice, is_int
from streamtrain.system.json_values import whole_number
from streamtrain.system.units import format_figures

DEFAULT_MONITOR: Final = "val_loss"
MODES: Final = ("min", "max")
_VAL: Final = "val_"
_SMALLEST: Final = ("loss", "rmse", "mae", "max_error")
_LARGEST: Final = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "auc",
    "exact_match",
    "top5_accuracy",
    "r2",
)
_OR_VAL: Final = Fix(
    *(", or ", Argument("val"), " with data to measure on, which "),
    *(Argument("split"), " at ingest sets aside (val=0.1, say)"),
)
_MODE_OF: Final = dict.fromkeys(_SMALLEST, "min") | dict.fromkeys(_LARGEST, "max")
"""The ways a metric can be best: at its smallest, or at its largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """A metric by its name, with ``val_`` before one of the validation data, and whether ``min`` or ``max`` is best."""

    name: str
    mode: str

    @property
    def worst(self) -> float:
        """What no value is worse than."""
        return math.inf if self.mode == "min" else -math.inf

    def improves(self, value: float, than: float, *, by: float = 0.0) -> bool:
        """Whether a value is better than another by more than so much; NaN never is."""
        return (than - value if self.mode == "min" else value - than) > by


def mode_of(name: str) -> str | None:
    """Return whether a metric of ours is best at its smallest or its largest; None of another."""
    return _MODE_OF.get(name.removeprefix(_VAL))


def choose_monitor(
    name: str | None,
    mode: str | None,
    *,
    measured: Collection[str],
    on_val: Collection[str] | None,
    needing: Mapping[str, object],
) -> Monitor | None:
    """Return the monitor of a run, or None where it has none.

    ``measured`` are the metrics of an epoch, ``on_val`` those of validation data, None where there is none, and
    ``needing`` the options that need a monitor, None where not given.
    """
    if mode is not None:
        check_choice(mode, "monitor_mode", MODES)
    if name is None and on_val is None:
        given = [option for option, value in {**needing, "monitor_mode": mode}.items() if value is not None]
        for option in given[:1]:
            raise UsageError(
                f"{option} without validation data or a monitor",
                why="A training loss is measured while the weights change, so it is looked at only where it is named",
                fix=Fix(Argument("monitor", "loss"), _OR_VAL),
            )
        return None
    chosen = DEFAULT_MONITOR if name is None else name
    if not isinstance(chosen, str):
        raise UsageError(f"monitor is {chosen!r:.80}; it must be the name of a metric")
    bare = chosen.removeprefix(_VAL)
    known = [*measured, *(f"{_VAL}{each}" for each in on_val or ())]
    if on_val is None and chosen != bare and bare in measured:
        what = f"monitor is {chosen!r}, and there is no validation data"
        raise UsageError(what, fix=Fix(Argument("monitor", bare), _OR_VAL))
    if chosen not in known:
        error = unknown_name("monitor", chosen, known)
        if f"{_VAL}{chosen}" in known:
            error.fix = Fix(Argument("monitor", f"{_VAL}{chosen}"), ", which is measured on the validation data alone")
        raise error
    mode = mode or mode_of(chosen)
    if mode is None:
        what = f"whether {chosen} is best at its smallest or its largest is not known"
        fix = Fix(Argument("monitor_mode", "max"), ", or ", Argument("monitor_mode", "min"))
        raise UsageError(what, fix=fix)
    return Monitor(name=chosen, mode=mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestEpoch:
    """The best epoch of a run so far.

    ``step`` and ``n_batches`` are counted to its end; ``figures`` is what was measured on the same data as the monitor,
    by name; ``checkpoint`` is its folder, None of a run that keeps none.
    """

    epoch: int
    step: int
    n_batches: int
    monitor: str
    value: float
    figures: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None

    def named(self) -> dict[str, object]:
        """Return everything by name, as JSON has it."""
        return asdict(self)

    def told(self) -> str:
        """Write the monitor and what was measured beside it."""
        others = {name: value for name, value in self.figures.items() if name != self.monitor}
        return format_figures({self.monitor: self.value, **others})


def same_data(figures: Mapping[str, float], monitor: str) -> dict[str, float]:
    """Select the figures that were measured on the data that a monitor is measured on."""
    return {name: value for name, value in figures.items() if name.startswith(_VAL) == monitor.startswith(_VAL)}


def best_record(monitor: Monitor | None, best: BestEpoch | None) -> dict[str, Any] | None:
    """Write the best epoch as a checkpoint holds it; None of a run without a monitor."""
    if monitor is None:
        return None
    record: dict[str, Any] = {"monitor": monitor.name, "mode": monitor.mode}
    if best is not None:
        record |= {"epoch": best.epoch, "step": best.step, "value": best.value, "figures": dict(best.figures)}
        record["checkpoint"] = best.checkpoint.name if best.checkpoint else None
    return record


def parse_best(record: object, checkpoints: Path) -> tuple[Monitor | None, BestEpoch | None]:
    """Read what `best_record` wrote; a ValueError of a record that no run has written."""
    match record:
        case None:
            return None, None
        case {"monitor": str(name), "mode": ("min" | "max") as mode, **rest}:
            monitor = Monitor(name=name, mode=mode)
        case _:
            raise ValueError(f"its best epoch is {str(record)[:60]!r}")
    match rest:
        case {"epoch": epoch, "step": step, "value": value, "figures": dict(figures), "checkpoint": str(folder)}:
            is_number = all(map(_is_value, [value, *figures.values()])) and value == value
            if not (folder.isdecimal() and folder.isascii() and is_number):
                raise ValueError(f"its best epoch is {str(record)[:60]!r}")
            found: dict[str, Any] = {"value": value, "figures": figures, "checkpoint": checkpoints / folder}
            found |= {"epoch": whole_number(epoch), "step": whole_number(step), "n_batches": int(folder)}
            return monitor, BestEpoch(monitor=name, **found)
        case dict() if rest:
            raise ValueError(f"its best epoch is {str(record)[:60]!r}")
    return monitor, None


def best_of(state: Mapping[str, Any], folder: Path) -> BestEpoch | None:
    """Return the best epoch that the state of a checkpoint names; None where it names none."""
    try:
        return parse_best(state.get("best"), folder.parent)[1]
    except ValueError as error:
        raise CheckpointError("is damaged", where=str(folder), why=first_line(error), fix="train again") from error


def _is_value(value: object) -> bool:
    return isinstance(value, float) or is_int(value, -MOST_INT, MOST_INT)


def changed_monitor(before: Monitor | None, now: Monitor | None) -> list[str]:
    """Name what a run's monitor differs in; one that there was not before, or is not measured now, differs in none."""
    if before is None or now is None:
        return []
    pairs = {"monitor": (before.name, now.name), "monitor_mode": (before.mode, now.mode)}
    return [f"{name}: {there!r} there, {here!r} here" for name, (there, here) in pairs.items() if there != here]
