#!/usr/bin/env python3
"""Ingest, append, overwrite, verify, train, resume and evaluate on file systems and under limits that are made here.

Right is, on every machine: each command works and the resumed run is measured as on this machine's own disk; or it
ends as is expected there, with that exit code (a dataset in an image's layer is not replaced: 5). What cannot be made
here, without root say or without the program or the kernel's part, is not tried, and the table has the reason. Mounts
and control groups go again at the end. Prints a table on stderr and one JSON line a machine; ends with 1 if any was
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

from scripts.runner import Result, new_parser, require_disk, run

N_SAMPLES: Final = 2_000
SECONDS: Final = 300
NOBODY: Final = 65534
_IMAGE_BYTES: Final = 320 << 20  # xfs takes no less than 300 MiB
_SMALL: Final = "--block 4KB --shard 16KB --codec lz4"
_TRAIN: Final = "train d.zarr --out run --model mlp:8 --memory 16MB --threads 1 --device cpu --json --epochs"
STEPS: Final[Mapping[str, str]] = {
    "ingest": f"ingest {{raw}}/x.npy d.zarr --labels {{raw}}/y.npy {_SMALL}",
    "append": "ingest {raw}/x.npy d.zarr --labels {raw}/y.npy --append",
    "overwrite": f"ingest {{raw}}/x.npy d.zarr --labels {{raw}}/y.npy --overwrite {_SMALL}",
    "verify": "verify d.zarr --full",
    "train": f"{_TRAIN} 1",
    "resume": f"{_TRAIN} 2 --resume",
    "evaluate": "evaluate run d.zarr --device cpu --memory 16MB --json",
}


class NotHereError(Exception):
    """A machine cannot be made here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where commands run, in front of which words, with what in their environment, and how some of them end."""

    folder: Path
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)


Machine = Callable[[Path], AbstractContextManager[Place]]


def _system(*words: object) -> None:
    """Run a program of the system, or say why the machine cannot be made."""
    try:
        subprocess.run([*map(str, words)], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotHereError(f"there is no {words[0]}") from None
    except subprocess.CalledProcessError as error:
        raise NotHereError(f"{words[0]}: {' '.join(error.stderr.split())[:120]}") from None


@contextmanager
def _mounted(folder: Path, *words: object) -> Iterator[Path]:
    """Mount something at a new folder; the last word of the command is the folder."""
    if os.geteuid() != 0:
        raise NotHereError("mounting takes root")
    here = folder / "mounted"
    here.mkdir()
    _system(*words, here)
    try:
        yield here
    finally:
        _system("umount", here)


def _image(folder: Path, *words: object) -> Path:
    """Make an image of a file system; the last word of the command is the file."""
    file = folder / "image"
    with file.open("wb") as out:
        out.truncate(_IMAGE_BYTES)
    _system(*words, file)
    return file


@contextmanager
def on_disk(folder: Path, *, of: Sequence[str], mount: Sequence[str]) -> Iterator[Place]:
    """A file system in an image, made and mounted by these commands."""
    with _mounted(folder, *mount, _image(folder, *of)) as here:
        yield Place(folder=here)


@contextmanager
def on_tmpfs(folder: Path) -> Iterator[Place]:
    """A file system in memory."""
    with _mounted(folder, "mount", "-t", "tmpfs", "-o", "size=64m", "none") as here:
        yield Place(folder=here)


@contextmanager
def on_bindfs(folder: Path) -> Iterator[Place]:
    """A folder of this disk through a process in user space."""
    (folder / "behind").mkdir()
    with _mounted(folder, "bindfs", folder / "behind") as here:
        yield Place(folder=here)


@contextmanager
def on_overlay(folder: Path, *, of_image: bool) -> Iterator[Place]:
    """A container's file system, with the dataset in its own layer or in that of its image."""
    for name in ("lower", "upper", "work"):
        (folder / name).mkdir()
    if of_image:
        make(folder, Place(folder=folder / "lower"))
    layers = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    with _mounted(folder, "mount", "-t", "overlay", "overlay", "-o", layers) as here:
        refused = {"ingest": 2, "append": 5, "overwrite": 5} if of_image else {}
        yield Place(folder=here, expected=refused)


@contextmanager
def on_readonly(folder: Path) -> Iterator[Place]:
    """A dataset that can only be read; the run lies beside it."""
    (folder / "data").mkdir()
    make(folder, Place(folder=folder / "data"))
    with _mounted(folder, "mount", "--bind", folder / "data") as here:
        _system("mount", "-o", "remount,bind,ro", here)
        (folder / "d.zarr").symlink_to(here / "d.zarr")
        yield Place(folder=folder, expected={"ingest": 2, "append": 5, "overwrite": 5})


@contextmanager
def under(folder: Path, *words: str, **environment: str) -> Iterator[Place]:
    """A folder of our own disk, with a command in front of ours."""
    if shutil.which(words[0]) is None:
        raise NotHereError(f"there is no {words[0]}")
    yield Place(folder=folder, before=words, environment=environment)


@contextmanager
def without_rights(folder: Path) -> Iterator[Place]:
    """A user who owns nothing but the folder, without a name and a home."""
    if os.geteuid() != 0:
        raise NotHereError("becoming another user takes root")
    os.chown(folder, NOBODY, NOBODY)
    words = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    with under(folder, *words, HOME="/nonexistent") as place:
        yield place


@contextmanager
def in_namespaces(folder: Path, *words: str) -> Iterator[Place]:
    """Processes that see other pids, or another host's name."""
    if os.geteuid() != 0:
        raise NotHereError("new namespaces take root")
    with under(folder, *words) as place:
        yield place


@contextmanager
def under_quota(folder: Path) -> Iterator[Place]:
    """A control group, of either version, that gets half a core's time."""
    own, name = Path("/sys/fs/cgroup"), f"streamtrain-{secrets.token_hex(4)}"
    first, second = own / "cpu" / name, own / name
    group = first if (own / "cpu/cpu.cfs_quota_us").exists() else second
    try:
        group.mkdir()
        file = "cpu.cfs_quota_us" if group == first else "cpu.max"
        (group / file).write_text("50000" if group == first else "50000 100000")
    except OSError as error:
        shutil.rmtree(group, ignore_errors=True)
        raise NotHereError(f"{error.filename}: {error.strerror}") from None
    try:
        enter = f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
        yield Place(folder=folder, before=("sh", "-c", enter))
    finally:
        group.rmdir()


def _limited(what: str, value: str) -> Machine:
    return partial(under_words, words=("sh", "-c", f'ulimit {what} {value} && exec "$0" "$@"'))


def under_words(folder: Path, *, words: tuple[str, ...], **environment: str) -> AbstractContextManager[Place]:
    """See `under`."""
    return under(folder, *words, **environment)


def _loop(kind: str, *options: str) -> Machine:
    return partial(on_disk, of=(f"mkfs.{kind}", *options), mount=("mount", "-o", "loop"))


MACHINES: Final[Mapping[str, Machine]] = {
    "own disk": lambda folder: nullcontext(Place(folder=folder)),
    "ext4": _loop("ext4", "-q"),
    "xfs": _loop("xfs", "-q"),
    "btrfs": _loop("btrfs", "-q"),
    "vfat": _loop("vfat"),
    "exFAT (FUSE)": partial(on_disk, of=("mkfs.exfat",), mount=("mount.exfat-fuse",)),
    "NTFS (FUSE)": partial(on_disk, of=("mkntfs", "-F", "-Q"), mount=("ntfs-3g",)),
    "bindfs (FUSE)": on_bindfs,
    "tmpfs": on_tmpfs,
    "overlay": partial(on_overlay, of_image=False),
    "overlay, data of the image": partial(on_overlay, of_image=True),
    "read-only mount": on_readonly,
    "ulimit -v 6 GB": _limited("-v", "6000000"),
    "ulimit -n 64": _limited("-n", "64"),
    "another user": without_rights,
    "umask 077": partial(under_words, words=("sh", "-c", 'umask 077 && exec "$0" "$@"')),
    "LC_ALL=C": partial(under_words, words=("env",), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "one core": partial(under_words, words=("taskset", "-c", "0")),
    "half a core by quota": under_quota,
    "pid namespace": lambda folder: in_namespaces(folder, "unshare", "--pid", "--fork", "--mount-proc"),
    "another host's name": lambda folder: in_namespaces(folder, "unshare", "--uts", "sh", "-c", _RENAMED),
}
_RENAMED: Final = 'hostname elsewhere && exec "$0" "$@"'


def make(folder: Path, place: Place) -> None:
    """Ingest a dataset that is there from the start."""
    done = call(place, STEPS["ingest"], folder)
    if done.returncode:
        raise NotHereError(done.stderr)


def call(place: Place, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of streamtrain in a place."""
    command = [*place.before, sys.executable, "-m", "streamtrain", *words.format(raw=folder.parent / "raw").split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **place.environment}
    return subprocess.run(
        command, cwd=place.folder, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Try the machines one after another."""
    require_disk(folder, 2 * _IMAGE_BYTES, fix="another --folder")
    folder.chmod(0o755)
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "raw/x.npy", rng.normal(size=(N_SAMPLES, 8)).astype(np.float32))
    np.save(folder / "raw/y.npy", rng.integers(0, 3, N_SAMPLES))
    own_loss = None
    for name in ["own disk", *(name for name in arguments.machine or MACHINES if name != "own disk")]:
        here = folder / "here"
        here.mkdir()
        try:
            with MACHINES[name](here) as place:
                steps, said, loss = try_steps(place, here)
        except NotHereError as error:
            yield {"bench": "machines", "on": name, "not_tried": str(error), "wrong": 0}
        else:
            own_loss = loss if name == "own disk" else own_loss
            right = {step: place.expected.get(step, 0) for step in STEPS}
            wrong = [step for step in STEPS if steps[step] != right[step]]
            wrong += ["loss"] if loss != own_loss else []
            yield {"bench": "machines", "on": name, "steps": steps, "loss": loss, "wrong": len(wrong), "said": said}
        shutil.rmtree(here)


def try_steps(place: Place, folder: Path) -> tuple[dict[str, int], dict[str, str], float | None]:
    """Run every command; return the exit codes, what the failed ones said, and the loss of the resumed run."""
    codes, said, loss = {}, {}, None
    for step, words in STEPS.items():
        done = call(place, words, folder)
        codes[step] = done.returncode
        if done.returncode:
            said[step] = done.stderr.strip()[-600:]
        elif step == "evaluate":
            loss = json.loads(done.stdout)["loss"]
    return codes, said, loss


def describe(result: Result) -> str:
    """One line for people."""
    if "not_tried" in result:
        return f"{result['on']:<28}not tried: {result['not_tried']}"
    codes: Mapping[str, Any] = result["steps"]
    shown = " ".join(f"{name} {code or 'ok'}".ljust(len(name) + 3) for name, code in codes.items())
    return f"{result['on']:<28}{shown}{'  WRONG' if result['wrong'] else ''}"


def main() -> None:
    """Try the machines, and end with 1 if anything was wrong on one."""
    parser = new_parser(__doc__, folder=None)
    parser.add_argument("--machine", action="append", choices=MACHINES, help="only these; all by default")
    results = run(parser.parse_args(), measure, describe, fix="another --folder")
    raise SystemExit(any(result["wrong"] for result in results))


if __name__ == "__main__":
    main()
