"""A hard memory limit for a process: a cgroup of its own, version 1 or 2; the kernel kills what exceeds it.

The group is a child of our own, so that every limit above us holds too. Where version 2 forbids that (a group that
holds processes gives no controller to its children), it stands beside our own. Swap counts as memory, or is off.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_GRACE_SECONDS: Final = 5.0
# The shell enters the group before it becomes the command, so that nothing of the command is counted elsewhere.
_ENTER: Final = 'echo $$ > "$0" && exec "$@"'
_FIX: Final = "run it as root, or on a desktop inside: systemd-run --user --scope"


class NoGroup(Exception):
    """No memory limit can be set here; the text says why and what helps."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no cgroup with a memory limit: {reason}\nFix: {_FIX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command in a group ended.

    Parameters
    ----------
    code : int
        Its exit status; negative for a signal.
    output, errors : str
        What it wrote to stdout and stderr.
    peak_bytes : int, optional
        The most that the group was charged for, page cache included; None where the kernel does not tell.
    was_killed : bool
        Whether the kernel killed it for its memory.
    """

    code: int
    output: str
    errors: str
    peak_bytes: int | None
    was_killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """A cgroup with a memory limit; made by `memory_group`."""

    path: Path
    version: int

    @property
    def peak_bytes(self) -> int | None:
        """The most that was charged so far, page cache included."""
        try:
            return int((self.path / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")).read_text())
        except OSError:
            return None

    @property
    def n_killed(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        text = (self.path / ("memory.events" if self.version == 2 else "memory.oom_control")).read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def run(self, command: Sequence[str], *, timeout: float) -> Ended:
        """Run a command in the group; one that takes longer than ``timeout`` seconds is killed.

        Raises
        ------
        subprocess.TimeoutExpired
            It took longer.
        """
        entered = ["/bin/sh", "-c", _ENTER, str(self.path / "cgroup.procs"), *command]
        # A session of its own: Ctrl-C reaches us alone, and we end it.
        process = subprocess.Popen(
            entered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            self.end_processes()
            if process.poll() is None:
                process.kill()
            # Closes the pipes also of one that was ended.
            process.communicate()
        killed = self.n_killed > 0
        return Ended(
            code=process.returncode, output=output, errors=errors, peak_bytes=self.peak_bytes, was_killed=killed
        )

    def end_processes(self) -> None:
        """Kill what is still in the group."""
        for word in (self.path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)


def run_within(command: Sequence[str], limit_bytes: int | None, *, timeout: float) -> Ended:
    """Run a command in a group of its own, or in none where there is no limit; one that takes too long is killed.

    Raises
    ------
    NoGroup
        The group cannot be made.
    """
    try:
        if limit_bytes is not None:
            with memory_group(limit_bytes) as group:
                return group.run(command, timeout=timeout)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        errors = f"it took longer than {timeout:g} s"
        return Ended(code=-signal.SIGKILL, output="", errors=errors, peak_bytes=None, was_killed=False)
    return Ended(code=done.returncode, output=done.stdout, errors=done.stderr, peak_bytes=None, was_killed=False)


@contextmanager
def memory_group(limit_bytes: int, *, root: Path = Path("/")) -> Iterator[MemoryGroup]:
    """Make a group with a hard limit; at the end what still runs in it is killed, and it is removed.

    Parameters
    ----------
    limit_bytes : int
        Of memory and swap together.
    root : Path
        Where ``proc`` is; a test has another one.

    Raises
    ------
    NoGroup
        The system has no such groups, or we may not make one.
    """
    group = _make(limit_bytes, root)
    try:
        yield group
    finally:
        _remove(group)


def _make(limit_bytes: int, root: Path) -> MemoryGroup:
    version, mount, own = own_group(root)
    refused = []
    for parent in [own] if version == 1 or own == mount else [own.parent, own]:
        group = MemoryGroup(path=parent / f"streamtrain-{os.getpid()}-{secrets.token_hex(4)}", version=version)
        try:
            if version == 2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                (parent / "cgroup.subtree_control").write_text("+memory")
            group.path.mkdir()
        except OSError as error:
            refused.append(f"{parent}: {error.strerror}")
            continue
        try:
            _limit(group, limit_bytes)
        except OSError as error:
            refused.append(f"{group.path}: {error.strerror}")
            _remove(group)
            continue
        return group
    raise NoGroup("; ".join(refused))


def _limit(group: MemoryGroup, limit_bytes: int) -> None:
    if group.version == 2:
        (group.path / "memory.max").write_text(str(limit_bytes))
        swap, most = group.path / "memory.swap.max", 0
    else:
        (group.path / "memory.limit_in_bytes").write_text(str(limit_bytes))
        swap, most = group.path / "memory.memsw.limit_in_bytes", limit_bytes
    # Absent where the kernel does not account for swap.
    if swap.exists():
        swap.write_text(str(most))


def _remove(group: MemoryGroup) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        group.end_processes()
        try:
            group.path.rmdir()
            return
        except OSError:
            # Those killed leave the group when the kernel gets to it.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def own_group(root: Path = Path("/")) -> tuple[int, Path, Path]:
    """The version, the mount point and our own group of the hierarchy that accounts for memory.

    Raises
    ------
    NoGroup
        There is none.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError as error:
        raise NoGroup(f"{error.filename}: {error.strerror}") from None
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in groups)}
    version = 1 if any("memory" in kind.split(",") for kind in paths) else 2
    inside = paths.get("") if version == 2 else next(paths[kind] for kind in paths if "memory" in kind.split(","))
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if inside is not None and (kind == "cgroup2" if version == 2 else "memory" in options.split(",")):
            point = root / before.split(" ")[4].lstrip("/")
            own = point / inside.lstrip("/")
            # In a container the path may be the host's, of which only the end is mounted.
            return version, point, own if own.is_dir() else point
    raise NoGroup("none is mounted that accounts for memory")
