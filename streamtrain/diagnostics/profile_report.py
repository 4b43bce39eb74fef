"""The figures of a profile: by name, as lines of text, and as files in a folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePath
from typing import Any, Final

from streamtrain.diagnostics.html import PageSection, page
from streamtrain.diagnostics.profile_charts import (
    NOT_SEEN,
    budget_line,
    check_can_draw,
    draw_timeline,
    short_command,
    timeline_summary,
    write_png,
)
from streamtrain.diagnostics.profile_timeline import BudgetSpan, Timeline
from streamtrain.system.files import Files
from streamtrain.system.units import counted, format_bytes, format_duration, format_rate, format_share

PROFILE_PNG: Final = "timeline.png"
PROFILE_HTML: Final = "timeline.html"
PROFILE_JSON: Final = "profile.json"
_OF_WHOM: Final = (
    "Budget and projection are of the loaders. Measured is the peak of the process while they were open, above what it "
    "held before: training loop and allocator included."
)
_MOST_COLUMNS: Final = 6
_MOST_ROWS: Final = 200


def profile_figures(timeline: Timeline) -> dict[str, Any]:
    """Everything by name, in bytes and seconds."""
    watched = timeline.watched
    held = {kind: max(values, default=0) for kind, values in timeline.held.items()}
    return {
        "command": list(watched.command),
        "exit_code": watched.exit_code,
        "seconds": timeline.seconds,
        "readings": len(watched.samples),
        "peak": {
            "held": timeline.peak_bytes,
            **held,
            "file": max(timeline.file, default=0),
            "cgroup": watched.group_peak_bytes,
        },
        "killed_for_memory": watched.n_killed_for_memory,
        "memory": [
            {
                "pid": kept.pid,
                "budget": kept.budget_bytes,
                "projected": kept.projected_bytes,
                "measured": kept.measured_bytes,
                "before": kept.held_bytes,
                "ratio": kept.ratio,
            }
            for kept in timeline.kept
        ],
        "loaders": [
            {
                "pid": loader.pid,
                "dataset": loader.opened.dataset,
                "samples": loader.opened.n_samples,
                "batch_size": loader.opened.batch_size,
                "budget": loader.opened.budget_bytes,
                "projected": loader.projected_bytes,
                "terms": loader.opened.terms,
                "start": loader.start,
                "stop": loader.stop,
            }
            for loader in timeline.loaders
        ],
        "epochs": [
            {
                "epoch": ended.epoch,
                "samples": ended.n_samples,
                "seconds": ended.seconds,
                "wait_seconds": ended.wait_seconds,
                "thread_seconds": ended.work.named(),
            }
            for ended in timeline.ended_epochs()
        ],
    }


def profile_lines(timeline: Timeline) -> list[str]:
    """The figures for people.

    Budget, projection and measured peak have a line for each time that a process had loaders open.
    """
    watched = timeline.watched
    code = f"exit code {watched.exit_code}"
    found = [
        f"command {short_command(watched.command)}",
        f"ended   {code} after {format_duration(timeline.seconds)}",
        f"peak    {_peak(timeline)}",
        *(f"memory  {budget_line(kept)}{_when(timeline, kept)}" for kept in timeline.kept),
        *_epochs(timeline),
        *_deaths(timeline),
    ]
    if not timeline.kept:
        found.append("memory  no streamtrain loader reported its memory, so there is no budget to compare with")
    return found


def _peak(timeline: Timeline) -> str:
    if not timeline.was_seen:
        return f"unknown: {NOT_SEEN}"
    kinds = {kind: max(values, default=0) for kind, values in timeline.held.items()}
    parts = ", ".join(f"{kind} {format_bytes(n_bytes)}" for kind, n_bytes in kinds.items() if n_bytes)
    files = f"{format_bytes(max(timeline.file, default=0))} mapped from files"
    looked = counted(len(timeline.watched.samples), "time")
    text = f"{format_bytes(timeline.peak_bytes)} held ({parts}), {files}, measured {looked}"
    group = timeline.watched.group_peak_bytes
    return text if group is None else f"{text}; the whole cgroup {format_bytes(group)}, its page cache included"


def _when(timeline: Timeline, kept: BudgetSpan) -> str:
    """What tells it from the others, if there are any."""
    if len(timeline.kept) < 2:
        return ""
    process = f", process {kept.pid}" if len({other.pid for other in timeline.kept}) > 1 else ""
    return f"{process}, from {format_duration(kept.start)} to {format_duration(kept.stop)}"


def _epochs(timeline: Timeline) -> list[str]:
    ended = timeline.ended_epochs()
    seconds = sum(epoch.seconds for epoch in ended)
    if not seconds:
        return []
    rate = format_rate(sum(epoch.n_samples for epoch in ended), seconds, "samples")
    wait = sum(epoch.wait_seconds for epoch in ended) / seconds
    # Those of validation data are epochs of their loaders too, but not of the training.
    passes = f"{counted(len(ended), 'pass', 'passes')} by {counted(len(timeline.loaders), 'loader')}"
    found = [f"data    {passes} in {format_duration(seconds)}: {rate}, {format_share(wait)} waiting for data"]
    if total := timeline.work.total:
        shares = ", ".join(
            f"{kind} {format_share(part / total)}" for kind, part in timeline.work.named().items() if part
        )
        found.append(f"threads {format_duration(total)} of work: {shares}")
    return found


def _deaths(timeline: Timeline) -> list[str]:
    watched = timeline.watched
    if watched.was_killed_for_memory:
        return ["killed  by the kernel, which was out of memory. Fix: a smaller memory budget, or more for the cgroup"]
    if watched.n_killed_for_memory:
        return [f"killed  {watched.n_killed_for_memory} processes, by the kernel, which was out of memory"]
    return []


def write_profile(timeline: Timeline, folder: Path, *, png: bool = True) -> list[Path]:
    """Leave the files in a folder, and return where.

    Raises
    ------
    UsageError
        The PNG is wanted, and matplotlib is not installed.
    """
    if png:
        check_can_draw()
    files = Files()
    files.ensure_dir(folder)
    files.write_bytes(folder / PROFILE_JSON, (json.dumps(profile_figures(timeline), indent=2) + "\n").encode())
    files.write_bytes(folder / PROFILE_HTML, profile_page(timeline).encode())
    if png:
        write_png(timeline, folder / PROFILE_PNG)
    return [folder / name for name in (*([PROFILE_PNG] if png else []), PROFILE_HTML, PROFILE_JSON)]


def profile_page(timeline: Timeline) -> str:
    """Write the page: the drawing, then the figures, and tables of loaders and epochs."""
    command = shlex.join(timeline.watched.command)
    lines = [line.partition(" ") for line in profile_lines(timeline)[1:]]
    short = short_command(timeline.watched.command)
    figures = [("command", command), *((name, text.strip()) for name, _, text in lines)]
    sections = [
        PageSection(notes=[timeline_summary(timeline)]),
        PageSection(heading="Timeline", drawings=[draw_timeline(timeline)]),
        PageSection(heading="Figures", facts=figures, notes=[_OF_WHOM] if timeline.kept else []),
        *_tables(timeline),
    ]
    return page(f"Memory of {short}", short, sections)


def _tables(timeline: Timeline) -> list[PageSection]:
    tables: list[PageSection] = []
    if loaders := timeline.loaders[:_MOST_COLUMNS]:
        names = list(dict.fromkeys(name for loader in loaders for name in loader.opened.terms))
        terms = [
            [name, *(format_bytes(n) if (n := loader.opened.terms.get(name)) is not None else "" for loader in loaders)]
            for name in names
        ]
        head = ["term", *(PurePath(loader.opened.dataset).name for loader in loaders)]
        total = ["projected", *(format_bytes(loader.projected_bytes) for loader in loaders)]
        budget = ["budget", *(format_bytes(loader.opened.budget_bytes) for loader in loaders)]
        heading = "Projections of the loaders, in order of their opening"
        tables.append(PageSection(heading=heading, table=[head, budget, total, *terms]))
    told = [(loader, span.ended) for loader in timeline.loaders for span in loader.epochs if span.ended]
    rows = [
        [
            PurePath(loader.opened.dataset).name,
            f"{ended.epoch + 1}",
            f"{ended.n_samples:,}",
            format_duration(ended.seconds),
            format_share(ended.wait_seconds / ended.seconds) if ended.seconds else "",
            *map(format_duration, ended.work.named().values()),
        ]
        for loader, ended in told[:_MOST_ROWS]
    ]
    if rows:
        kinds = list(timeline.work.named())
        head = ["dataset", "epoch", "samples", "wall time", "waiting", *(f"threads: {kind}" for kind in kinds)]
        heading = "Epochs" if len(told) <= _MOST_ROWS else f"Epochs: the first {_MOST_ROWS} of {len(told):,}"
        tables.append(PageSection(heading=heading, table=[head, *rows]))
    return tables
