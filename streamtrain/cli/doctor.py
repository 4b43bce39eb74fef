"""``streamtrain doctor``: what this machine has, and how fast it reads and decodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamtrain.cli.common import emit, json_option
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from streamtrain.diagnostics.doctor import Checkup, FastPath


@click.command("doctor")
@click.argument("path", type=click.Path(path_type=Path), default=".")
@json_option
def command(path: Path, as_json: bool) -> None:
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


def _fast_path(path: FastPath, n_threads: int) -> list[tuple[str, str]]:
    return [
        (
            "reading",
            f"straight from the shards' files (preadv), up to {_threads(n_threads)} at a time"
            if path.direct_reads
            else "through zarr: this system has no preadv, so it is slower",
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
