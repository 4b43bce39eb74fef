"""How training results look to people: a line for every epoch, and the figures below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamtrain.metrics import EpochSummary, Metrics
from streamtrain.units import format_bytes

_WIDTH: Final = 12


def epoch_head(score_name: str | None, *, with_val: bool) -> str:
    """The head of the table of epochs.

    Examples
    --------
    >>> epoch_head("accuracy", with_val=False)
    'epoch      steps        loss    accuracy   samples/s   stall'
    """
    names = [name for name in ("loss", score_name) if name]
    columns = [*names, *(f"val {name}" for name in names if with_val)]
    middle = "".join(f"{name:>{max(_WIDTH, len(name) + 2)}}" for name in columns)
    return f"epoch{'steps':>11}{middle}{'samples/s':>{_WIDTH}}{'stall':>8}"


def epoch_line(summary: EpochSummary) -> str:
    """One epoch in the columns of `epoch_head`."""
    values = [*_values(summary.train, ""), *(_values(summary.val, "val ") if summary.val else [])]
    middle = "".join(f"{value:>{max(_WIDTH, len(name) + 2)}.4f}" for name, value in values)
    speed = summary.speed
    return (
        f"{summary.counts.n_epochs:>5}{summary.counts.n_steps:>11,}{middle}"
        f"{speed.samples_per_second:>{_WIDTH},.0f}{speed.stall_fraction:>8.1%}"
    )


def _values(metrics: Metrics, prefix: str) -> list[tuple[str, float]]:
    return [(f"{prefix}{name}", value) for name, value in metrics.named().items()]


def memory_line(memory: Mapping[str, int]) -> str:
    """Budget, projection and measured peak, side by side.

    Examples
    --------
    >>> memory_line({"budget": 16_000_000, "projected": 15_200_000, "measured": 12_345_678})
    'memory  budget 16.0 MB, projected 15.2 MB, measured 12.3 MB'
    """
    return "memory  " + ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in memory.items())


def result_lines(metrics: Metrics) -> str:
    """Loss and score of an evaluation, the score last."""
    return "\n".join(f"test {name} {value:.4f}" for name, value in metrics.named().items())
