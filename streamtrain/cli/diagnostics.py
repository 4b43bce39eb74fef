"""``streamtrain profile``, ``doctor`` and ``report``: explain a command, a machine, or a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.output import emit, json_option
from streamtrain.errors import UsageError
from streamtrain.system.files import local_path
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from streamtrain.diagnostics.doctor import Checkup, DirectReadSupport

PROFILES: Final = Path("profiles")


@click.command("profile", context_settings={"show_default": True, "allow_interspersed_args": False})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The profile's folder; by default profiles/N, N the next free number.",
)
@click.option("--interval", type=float, default=0.05, metavar="SECONDS", help="Between two readings, at least.")
@click.option("--no-png", is_flag=True, help="Leave the PNG out, which needs matplotlib.")
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@json_option
def profile_command(out: Path | None, interval: float, no_png: bool, words: tuple[str, ...], as_json: bool) -> None:
    """Run COMMAND, and draw its memory over time beside the budgets of its loaders.

    All its processes are counted: what they hold for themselves (anonymous, shared, pinned and device memory), and
    apart from that what is mapped from files. The folder holds timeline.png, timeline.html and profile.json (bytes and
    seconds). The exit code is the command's own. With --json the command's output goes to stderr, so that stdout has
    the one object.
    """
    from streamtrain.diagnostics.profile_charts import check_can_draw
    from streamtrain.diagnostics.profile_command import record_command
    from streamtrain.diagnostics.profile_report import profile_figures, profile_lines, write_profile
    from streamtrain.diagnostics.profile_timeline import build_timeline

    if not interval > 0:
        raise UsageError(f"interval is {interval} s; it must be positive", fix="--interval 0.05")
    if not no_png:
        check_can_draw()
    folder = out or _next_folder()
    _make(folder)
    try:
        watched = record_command(words, interval_seconds=interval, stdout=sys.stderr if as_json else None)
    except BaseException:
        _remove_empty(folder)
        raise
    found = build_timeline(watched)
    files = write_profile(found, folder, png=not no_png)
    result = profile_figures(found) | {"files": files}
    emit(as_json, result, "\n".join([*profile_lines(found), f"files   {', '.join(map(str, files))}"]))
    raise click.exceptions.Exit(found.watched.exit_code)


def _next_folder() -> Path:
    names = [entry.name for entry in PROFILES.iterdir()] if PROFILES.is_dir() else []
    return PROFILES / str(1 + max((int(name) for name in names if name.isdecimal()), default=0))


def _make(folder: Path) -> None:
    """Make the profile's folder before the command runs, so that nothing is run whose profile has no place."""
    local_path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            "the profile's folder is taken", where=str(folder), fix="an --out that does not exist, or is empty"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    if not usable:
        raise _unusable(folder, "Permission denied")


def _unusable(folder: Path, why: str) -> UsageError:
    return UsageError("the profile's folder cannot be made", where=str(folder), why=why, fix="another --out")


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        if folder.parent == PROFILES:
            PROFILES.rmdir()


@click.command("doctor")
@click.argument("path", type=click.Path(path_type=Path), default=".")
@json_option
def doctor_command(path: Path, as_json: bool) -> None:
    """Check this machine, and the disk of the folder PATH, within a few seconds.

    PATH is where the data lies or will lie, by default the current folder; for a dataset it is the folder that holds
    it. The rates are limits measured just now: of reading one file in a row and of decoding made-up blocks. Nothing is
    left on the disk.
    """
    from streamtrain.diagnostics.doctor import check_up

    found = check_up(path)
    emit(as_json, _result(found), _text(found))


def _result(found: Checkup) -> dict[str, Any]:
    return {
        "versions": found.versions,
        "system": found.system,
        "cores": found.cores,
        "threads": found.n_threads,
        "memory": {
            "ram": found.ram_bytes,
            "limit": found.limit.limit_bytes,
            "free": found.limit.free_bytes,
            "source": found.limit.source,
        },
        "disk": {
            "folder": found.disk.folder,
            "free": found.disk.free_bytes,
            "total": found.disk.total_bytes,
            "write_bytes_per_second": found.disk.write_rate,
            "cold_read_bytes_per_second": found.disk.cold_rate,
            "warm_read_bytes_per_second": found.disk.warm_rate,
            "problem": found.disk.problem,
        },
        "decode_bytes_per_second": {
            each.codec: {"one_thread": each.one_thread, "all_threads": each.all_threads} for each in found.decoding
        },
        "fast_path": {
            "direct_reads": found.fast_path.direct_reads,
            "cache_control": found.fast_path.cache_control,
            "huge_pages": found.fast_path.huge_pages,
        },
        "devices": [{"name": device.name, "bytes": device.total_bytes} for device in found.devices],
        "devices_problem": found.devices_problem,
    }


def _text(found: Checkup) -> str:
    facts = [
        ("system", f"{found.system}, {found.cores} core{'s' * (found.cores != 1)}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items() if version)),
        ("absent", ", ".join(name for name, version in found.versions.items() if version is None)),
        ("memory", _memory(found)),
        (
            "disk",
            f"{found.disk.folder}: {format_bytes(found.disk.free_bytes)} free of "
            f"{format_bytes(found.disk.total_bytes)}",
        ),
        ("", _disk_rates(found)),
        *_decoding(found),
        *_fast_path(found.fast_path, found.n_threads),
        ("devices", _devices(found)),
    ]
    return "\n".join(f"{name:<9}{text}" for name, text in facts if text)


def _memory(found: Checkup) -> str:
    limit = found.limit
    ram = f"{format_bytes(found.ram_bytes)} RAM"
    free = f"{format_bytes(limit.free_bytes)} free"
    if limit.source == "RAM":
        return f"{ram}, {free}, no tighter limit of a cgroup"
    return f"{format_bytes(limit.limit_bytes)}, the limit in {limit.source} ({ram}), {free}"


def _disk_rates(found: Checkup) -> str:
    disk = found.disk
    if disk.problem:
        return f"not measured: {disk.problem}"
    named = {"cold": disk.cold_rate, "warm": disk.warm_rate}
    reads = ", ".join(f"{name} {_rate(rate)}" for name, rate in named.items() if rate)
    return f"reads {reads} with one thread; writes {_rate(disk.write_rate or 0)}"


def _decoding(found: Checkup) -> list[tuple[str, str]]:
    """A line for each codec, the first with the heading."""
    lines = [
        f"{each.codec:<5} {_rate(each.one_thread):>10} with one thread, {_rate(each.all_threads):>10} "
        f"with {_threads(found.n_threads)}{', which is checking alone' if each.codec == 'none' else ''}"
        for each in found.decoding
    ]
    return [("" if i else "decoding", line) for i, line in enumerate(lines)]


def _fast_path(path: DirectReadSupport, n_threads: int) -> list[tuple[str, str]]:
    return [
        (
            "reading",
            f"straight from the shards' files (preadv), up to {_threads(n_threads)} at a time"
            if path.direct_reads
            else "by seek and read, one thread of a file at a time: this system has no preadv",
        ),
        (
            "",
            "drops what it has read from the page cache where the data exceeds the free memory"
            if path.cache_control
            else "leaves the page cache alone: this system has no posix_fadvise",
        ),
        ("", "the pool is in huge pages" if path.huge_pages else "the pool is in small pages: no huge ones here"),
    ]


def _devices(found: Checkup) -> str:
    if found.devices_problem:
        return f"torch does not work: {found.devices_problem}"
    named = [f"cuda:{i} {each.name}, {format_bytes(each.total_bytes)}" for i, each in enumerate(found.devices)]
    return "; ".join(named) or "no CUDA device, training is on the CPU"


def _threads(n_threads: int) -> str:
    return f"{n_threads} thread{'s' * (n_threads != 1)}"


def _rate(bytes_per_second: float) -> str:
    return f"{format_bytes(bytes_per_second)}/s"


_path = click.Path(path_type=Path)


@click.command("report")
@click.argument("run", type=_path)
@click.option("--dataset", type=_path, help="The run's training data, where it lies elsewhere than it did.")
@click.option("--out", type=_path, help="The file; by default report.html in the run's folder.")
@json_option
def report_command(run: Path, dataset: Path | None, out: Path | None, as_json: bool) -> None:
    """Write the report of the folder RUN: one HTML file that needs nothing else.

    Configuration, curves, memory against budget, where the time went, how well the data was shuffled, and its
    statistics. What is of the dataset is left out, with the reason, where the dataset is gone.
    """
    from streamtrain.diagnostics.run_report import write_report

    file, told = write_report(run, dataset=dataset, out=out)
    last = told.epochs[-1] if told.epochs else {}
    result = {"report": file, "run": run, "epochs": told.n_epochs, "last": last}
    emit(as_json, result, f"report  {file}")
