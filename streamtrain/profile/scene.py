"""What the drawings of a timeline show, worked out once for the picture and for the page.

Above, memory over time: what was held, stacked by kind, and where budget, projection and peak lie. Below, on the same
axis, the lives of the loaders and their epochs, one row for each dataset; loaders of one dataset that were open at the
same time have rows of their own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from streamtrain.profile.timeline import KINDS, Kept, Level, LoaderSpan, Timeline
from streamtrain.system.units import format_bytes, format_duration

COLOURS: Final = {"anonymous": "#8ab0d6", "shared": "#c9def2", "pinned": "#f6c46a", "device": "#98c98a"}
FILE_COLOUR: Final = "#3d3d3d"
LEVEL_COLOURS: Final = {"budget": "#c1272d", "projected": "#8e44ad", "before": "#555555"}
BAR_COLOURS: Final = ("#d8e3ef", "#b9cce2")
WAIT_COLOUR: Final = "#e4572e"
LABELS: Final = {
    "anonymous": "anonymous",
    "shared": "shared",
    "pinned": "pinned",
    "device": "device",
    "file": "mapped from files (not counted)",
    "budget": "budget",
    "projected": "projected",
    "before": "held before the loader",
    "wait": "share of an epoch spent waiting",
}
NOT_SEEN: Final = "it ended before its memory could be read"
_MOST_ROWS: Final = 6
_MOST_WORDS: Final = 100
_LEAST_SHOWN: Final = 0.002
"""A kind that never was more than this share of the whole is left out of the drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An epoch, or a loader's life: from one time to another in seconds, with a short label and a whole sentence.

    ``wait`` is the share of it that the training waited.
    """

    start: float
    stop: float
    label: str
    title: str
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Loaders of one dataset, of which no two were open at the same time."""

    label: str
    lives: tuple[Bar, ...]
    epochs: tuple[Bar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What to draw; bytes in units of ``unit_bytes``, times in seconds.

    Parameters
    ----------
    title, subtitle : str
        The command, and its figures in a line.
    unit, unit_bytes : str, int
        The unit of the axis, and its size.
    top, right : float
        Where the axes end.
    times : list of float
        Of the samples.
    kinds : dict of str to list of float
        What was held, by kind; kinds of which there was hardly any are left out.
    file : list of float
        What was mapped from files.
    levels : dict of str to list of Level
        Lines by name, from the highest to the lowest.
    rows : list of Row
        Below.
    """

    title: str
    subtitle: str
    unit: str
    unit_bytes: int
    top: float
    right: float
    times: list[float]
    kinds: dict[str, list[float]]
    file: list[float]
    levels: dict[str, list[Level]]
    rows: list[Row]


def scene(timeline: Timeline) -> Scene:
    """Work out what to draw."""
    levels = {
        "budget": timeline.levels(lambda kept: kept.budget_bytes),
        "projected": timeline.levels(lambda kept: kept.projected_bytes),
        "before": timeline.levels(lambda kept: 0),
    }
    highest = max([timeline.peak_bytes, *timeline.file, *(level.n_bytes for some in levels.values() for level in some)])
    unit, unit_bytes = ("GB", 10**9) if highest >= 2 * 10**9 else ("MB", 10**6)
    peaks = {kind: max(timeline.held[kind], default=0) for kind in KINDS}
    shown = [kind for kind in KINDS if kind == "anonymous" or peaks[kind] > _LEAST_SHOWN * highest]
    return Scene(
        title=short_command(timeline.watched.command),
        subtitle=_subtitle(timeline),
        unit=unit,
        unit_bytes=unit_bytes,
        top=1.08 * highest / unit_bytes or 1.0,
        right=max(timeline.seconds, 1e-3),
        times=timeline.times,
        kinds={kind: [n_bytes / unit_bytes for n_bytes in timeline.held[kind]] for kind in shown},
        file=[n_bytes / unit_bytes for n_bytes in timeline.file],
        levels=levels,
        rows=_rows(timeline.loaders),
    )


def _subtitle(timeline: Timeline) -> str:
    kept = timeline.kept
    if not timeline.was_seen:
        return NOT_SEEN
    if not kept:
        return f"peak {format_bytes(timeline.peak_bytes)}; no loader of streamtrain told of itself"
    worst = kept_line(max(kept, key=lambda one: one.ratio))
    return worst if len(kept) == 1 else f"{worst}, the most of {len(kept)} times"


def kept_line(kept: Kept) -> str:
    """Budget, projection and measured peak.

    Examples
    --------
    >>> kept_line(Kept(pid=7, budget_bytes=64_000_000, projected_bytes=60_000_000, measured_bytes=48_000_000,
    ...                held_bytes=0, start=0.0, stop=1.0))
    'budget 64.0 MB, projected 60.0 MB, measured 48.0 MB (0.75 of the budget)'
    """
    return (
        f"budget {format_bytes(kept.budget_bytes)}, projected {format_bytes(kept.projected_bytes)}, "
        f"measured {format_bytes(kept.measured_bytes)} ({kept.ratio:.2f} of the budget)"
    )


def short_command(words: Iterable[str], most: int = _MOST_WORDS) -> str:
    """A command as it is typed, in one line, its middle left out where it is long.

    Examples
    --------
    >>> short_command(["python", "-c", "import time; time.sleep(3)"], most=24)
    "python -c '…ime.sleep(3)'"
    """
    text = " ".join(shlex.join(words).split())
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2 + 1) :]}"


def _rows(loaders: list[LoaderSpan]) -> list[Row]:
    rows: list[list[LoaderSpan]] = []
    for loader in sorted(loaders, key=lambda loader: loader.start):
        for row in rows:
            if row[-1].opened.dataset == loader.opened.dataset and row[-1].stop <= loader.start:
                row.append(loader)
                break
        else:
            rows.append([loader])
    names = [PurePath(row[0].opened.dataset).name for row in rows]
    return [
        Row(
            label=name if len(name) <= 24 else f"…{name[-23:]}",
            lives=tuple(map(_life, row)),
            epochs=tuple(bar for loader in row for bar in _epochs(loader)),
        )
        for name, row in zip(names[:_MOST_ROWS], rows, strict=False)
    ]


def _life(loader: LoaderSpan) -> Bar:
    opened = loader.opened
    title = (
        f"{opened.dataset}: {opened.n_samples:,} samples in batches of {opened.batch_size}, "
        f"budget {format_bytes(opened.budget_bytes)}, open for {format_duration(loader.stop - loader.start)}"
    )
    return Bar(start=loader.start, stop=loader.stop, label="", title=title, wait=0.0)


def _epochs(loader: LoaderSpan) -> Iterable[Bar]:
    for span in loader.epochs:
        ended = span.ended
        title, wait = f"epoch {span.epoch}, not ended", 0.0
        if ended is not None:
            wait = min(ended.wait_seconds / ended.seconds, 1.0) if ended.seconds > 0 else 0.0
            title = (
                f"epoch {span.epoch}: {ended.n_samples:,} samples in {format_duration(ended.seconds)}, "
                f"{wait:.1%} waiting for data"
            )
        yield Bar(start=span.start, stop=span.stop, label=str(span.epoch), title=title, wait=wait)
