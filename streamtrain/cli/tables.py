"""How training results look to people: a line for every epoch, and the figures below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamtrain.diagnostics.headspace import Headspace
from streamtrain.system.units import format_bytes, format_duration
from streamtrain.training.metrics import EpochSummary, Metrics, Speed

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


def time_lines(speed: Speed) -> list[str]:
    """Where the wall time of training went, and what the loader's threads did meanwhile.

    Examples
    --------
    >>> from streamtrain.system.events import Work
    >>> work = Work(disk=0.5, decode=0.25, gather=1.0, index=0.25)
    >>> for line in time_lines(Speed(n_samples=9, seconds=4.0, wait_seconds=0.1, work=work)):
    ...     print(line)
    time    4.0 s: compute 97.5%, transfer 0.0%, wait 2.5%
    threads 2.0 s of work: disk 25%, decode 12%, gather 50%, index 12%
    """
    wall = ", ".join(f"{kind} {share:.1%}" for kind, share in _shares(speed.wall()).items())
    lines = [f"time    {format_duration(speed.seconds)}: {wall}"]
    if speed.work.total > 0:
        work = ", ".join(f"{kind} {share:.0%}" for kind, share in _shares(speed.work.named()).items() if share > 0)
        lines.append(f"threads {format_duration(speed.work.total)} of work: {work}")
    return lines


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {kind: value / total if total else 0.0 for kind, value in seconds.items()}


def headspace_line(found: Headspace) -> str:
    """How much faster a perfect loader would be."""
    perfect, real = found.perfect.samples_per_second, found.loader.samples_per_second
    return (
        f"headspace {found.ratio:.2f}: with a perfect loader {perfect:,.0f} samples/s, with this one {real:,.0f} "
        f"({found.loader.stall_fraction:.1%} waiting)"
    )


def result_lines(metrics: Metrics) -> str:
    """Loss and score of an evaluation, the score last."""
    return "\n".join(f"test {name} {value:.4f}" for name, value in metrics.named().items())
