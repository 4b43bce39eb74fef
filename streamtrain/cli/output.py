"""Text, tables and JSON on stdout: the ``--json`` option, and the results that several commands print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.system.json_values import to_json_value
from streamtrain.system.units import format_bytes, format_duration

if TYPE_CHECKING:
    from streamtrain.diagnostics.headspace import Headspace
    from streamtrain.store.dataset import Dataset
    from streamtrain.training.metrics import EpochSummary, Metrics, Speed

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
"""Adds ``as_json: bool`` to a command."""


def emit(as_json: bool, result: Mapping[str, object], text: str) -> None:
    """Print a result on stdout: one JSON object, or the text for people.

    Parameters
    ----------
    as_json : bool
        The value of ``json_option``.
    result : Mapping
        The result's values by name; see `streamtrain.system.json_values` for what a value may be.
    text : str
        The same result for people.

    Raises
    ------
    TypeError
        A value has no JSON form.

    Examples
    --------
    >>> emit(True, {"loss": float("nan"), "steps": 3}, "3 steps")
    {"loss": null, "steps": 3}
    >>> emit(False, {"steps": 3}, "3 steps")
    3 steps
    """
    click.echo(_printable(json.dumps(to_json_value(result), allow_nan=False) if as_json else text))


def _printable(text: str) -> str:
    # A file name may hold bytes that no encoding knows; an escape in the output is better than a crash.
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
    """One epoch in the columns of `epoch_head`; behind them, whether it was cut short."""
    values = [*_values(summary.train, ""), *(_values(summary.val, "val ") if summary.val else [])]
    middle = "".join(f"{value:>{max(_WIDTH, len(name) + 2)}.4f}" for name, value in values)
    speed = summary.speed
    return (
        f"{summary.number:>5}{summary.counts.n_steps:>11,}{middle}"
        f"{speed.samples_per_second:>{_WIDTH},.0f}{speed.stall_fraction:>8.1%}{'  partial' if summary.partial else ''}"
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
    >>> from streamtrain.system.events import ThreadSeconds
    >>> from streamtrain.training.metrics import Speed
    >>> work = ThreadSeconds(disk=0.5, decode=0.25, gather=1.0, index=0.25)
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


def stored_facts(dataset: Dataset) -> dict[str, Any]:
    """A dataset's identity, size, blocks and classes, for ``--json``; ``bytes`` are those of the decoded samples."""
    layout = dataset.layout
    return {
        "dataset": str(dataset.path),
        "id": dataset.id,
        "samples": len(dataset),
        "bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "codec": layout.codec,
        "block_rows": layout.block_rows,
        "block_bytes": layout.block_bytes,
        "blocks": layout.n_blocks,
        "shards": layout.n_shards * len(layout.fields),
        "classes": dict(enumerate(dataset.classes)) if dataset.classes else None,
    }
