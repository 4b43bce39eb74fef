#!/usr/bin/env python3
"""Faults while a dataset is written, at every call that changes the disk: what opens then, and what resuming makes.

A case is right if what opens is the old dataset or the new one to the last byte, or nothing does where nothing was
before; if resuming ends with exactly the files of an ingest that was not disturbed, and nothing beside them; and if no
shard of the journal was written again.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import streamtrain as st
from scripts.faults.stages import STAGES, Stage, Tree, make_stages, make_templates, tree_of
from scripts.faults.syscall_faults import Disk, Failing, Killing, Recording, Watched
from scripts.runner import memory_folder, new_parser, print_result, working_folder
from streamtrain.store import zarr_metadata
from streamtrain.store.dataset import open_dataset
from streamtrain.store.writing.journal import JOURNAL, read_journal
from streamtrain.store.writing.staging import destination_state, successor

FAULTS: Final = ("kill -9", "kill -9 in a write", "power loss", "ENOSPC", "EIO")
SURVIVORS: Final = ("least", "names", "garbage", "mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a stage starts from, and what it must end with."""

    old: Tree | None
    new: Tree


def reference(stage: Stage, folder: Path) -> Before:
    """Run a stage undisturbed, in a process of its own."""
    old = tree_of(stage.template / "d.zarr") if destination_state(stage.template / "d.zarr") == "committed" else None
    in_peace(lambda: stage.act(stage.begin(folder)))
    assert [entry.name for entry in folder.iterdir()] == ["d.zarr"], "an ingest leaves nothing beside its dataset"
    new = tree_of(folder / "d.zarr")
    shutil.rmtree(folder)
    return Before(old=old, new=new)


def in_peace(act: Callable[[], object]) -> str:
    status, text = in_child(lambda: f"done {act()}")
    assert status == 0, status
    assert text.startswith("done "), text
    return text.removeprefix("done ")


def check(stage: Stage, found: Before, folder: Path, *, was_power_lost: bool = False) -> str:
    """What is wrong after a fault; empty where nothing is."""
    path = folder / "d.zarr"
    opened = _opened(path)
    allowed = [found.new] + ([found.old] if found.old else [])
    if opened is None and found.old is not None:
        return "the old dataset does not open"
    if opened is not None and opened not in allowed:
        return "something opens that is neither the old dataset nor the new one"
    shards = {} if was_power_lost else _journalled(path)
    stage.act(folder, resume=True)
    made = tree_of(path)
    if made != found.new:
        differing = sorted(key for key in {*made, *found.new} if made.get(key) != found.new.get(key))
        return f"resuming does not end with the same files: {', '.join(differing[:5])}"
    left = sorted(entry.name for entry in folder.iterdir() if entry.name != "d.zarr")
    if left:
        return f"left beside the dataset: {', '.join(left)}"
    again = [key for key, seen in shards.items() if _identity(path / key) != seen]
    if again:
        return f"shards of the journal were written again: {', '.join(again[:3])}"
    if _opened(path) != found.new:
        return "the resumed dataset does not open"
    return ""


def _opened(path: Path) -> Tree | None:
    """The files of the dataset that opens, each sample read; None where it is refused."""
    try:
        dataset = open_dataset(path)
        for _ in dataset:
            pass
    except st.DatasetError:
        return None
    keys = {*dataset.manifest.files, zarr_metadata.MANIFEST, zarr_metadata.ROOT}
    return {key: (path / key).read_bytes() for key in keys}


def _journalled(path: Path) -> dict[str, tuple[int, int]]:
    """The files of every shard in the journal, and what tells whether they are written again."""
    for folder in (path, successor(path)):
        if (folder / JOURNAL).exists():
            found = read_journal(folder)
            assert found is not None
            header, shards = found
            keys = [zarr_metadata.shard_key(field, shard) for shard in shards for field in header.layout.fields]
            return {key: _identity(folder / key) for key in keys}
    return {}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def in_child(act: Callable[[], str]) -> tuple[int, str]:
    """Run a function in a process of its own; its exit status as `os.waitpid` gives it, and what it returned."""
    reading, writing = os.pipe()
    gc.freeze()  # a collection in the child would copy all that the parent holds
    child = os.fork()
    if not child:
        # Nothing of the parent's may run here, whatever happens: not its cleaning up above all.
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(reading)
            try:
                text = act()
            except BaseException:
                text = traceback.format_exc()
            os.write(writing, text.encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read().decode()
    return os.waitpid(child, 0)[1], text


def count_calls(stage: Stage, folder: Path) -> int:
    """The calls of an undisturbed run."""
    system = Watched()

    def count() -> int:
        stage.act(stage.begin(folder), system)
        return system.n_calls

    n_calls = int(in_peace(count))
    shutil.rmtree(folder)
    return n_calls


def killed(stage: Stage, found: Before, folder: Path, numbers: Sequence[int], *, is_torn: bool) -> Iterator[str]:
    """End the process at each of these calls."""
    for number in numbers:
        here = stage.begin(folder)

        def act(here: Path = here, number: int = number) -> str:
            stage.act(here, Killing(number, is_torn=is_torn))
            return "whole"

        status, text = in_child(act)
        # Threads make the calls in no fixed order and number, so a run may end before a late one comes.
        ended = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        wrong = "" if ended or text == "whole" else f"ended otherwise: {text}"
        yield wrong or in_child(partial(check, stage, found, here))[1]
        shutil.rmtree(here)


def failed(stage: Stage, found: Before, folder: Path, numbers: Sequence[int], code: int) -> Iterator[str]:
    """Fail each of these calls; with a full disk, all later ones that need room too."""
    for number in numbers:
        here = stage.begin(folder)
        wrong = ""
        try:
            stage.act(here, Failing(number, code))
        except st.ResourceError:
            pass
        except Exception:
            wrong = traceback.format_exc()
        yield wrong or check(stage, found, here)
        shutil.rmtree(here)


def powerless(stage: Stage, found: Before, folder: Path, every: int, first: int) -> Iterator[str]:
    """Lose power after each call: of what was not flushed, some or nothing survives."""
    here = stage.begin(folder)
    system = Recording()
    disk = Disk(here)
    stage.act(here, system)
    shutil.rmtree(here)
    for number, call in enumerate([None, *system.log]):
        if call is not None:
            disk.apply(call)
        for kind in SURVIVORS if number % every == first else ():
            disk.survivor(here, kind, number)
            try:
                wrong = check(stage, found, here, was_power_lost=True)
            except Exception:
                wrong = traceback.format_exc()
            yield wrong and f"{kind}: {wrong}"
            shutil.rmtree(here)


def try_fault(
    stage: Stage, found: Before, n_calls: int, fault: str, folder: Path, every: int, first: int | None
) -> dict[str, Any]:
    """Try a fault at every call of a stage, or at one of so many; in processes of its own, so that none has threads."""
    started = time.perf_counter()
    here = folder / "case"
    if first is None:
        # Each pair of stage and fault starts elsewhere, so that together a few cases see many calls.
        first = crc32(f"{stage.name} {fault}".encode()) % every
    numbers = range(1 + first, n_calls + 1, every)
    log = folder / "log"

    def work() -> None:
        match fault:
            case "power loss":
                results = powerless(stage, found, here, every, first)
            case "ENOSPC" | "EIO":
                results = failed(stage, found, here, numbers, getattr(errno, fault))
            case _:
                results = killed(stage, found, here, numbers, is_torn=fault != "kill -9")
        log.write_text(json.dumps(list(results)))

    in_peace(work)
    results = json.loads(log.read_text())
    return {
        "stage": stage.name,
        "fault": fault,
        "calls": n_calls,
        "cases": len(results),
        "wrong": sum(map(bool, results)),
        "first_wrong": next(filter(None, results), None),
        "seconds": round(time.perf_counter() - started, 1),
    }


def results(
    stages: Sequence[str], faults: Sequence[str], every: int, first: int | None, parent: Path | None
) -> Iterator[dict[str, Any]]:
    """Try faults at stages, one after another; everything is written below a directory that goes again."""
    with working_folder(parent) as folder:
        known = make_stages(folder)
        in_peace(lambda: make_templates(folder, known["create"]))
        for stage in map(known.__getitem__, stages):
            found, n_calls = reference(stage, folder / "case"), count_calls(stage, folder / "case")
            for fault in faults:
                yield try_fault(stage, found, n_calls, fault, folder, every, first)


def main() -> None:
    """Try everything that was asked for; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--stage", action="append", choices=STAGES, help="only these; all by default")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only these; all by default")
    parser.add_argument("--every", type=int, default=1, help="try one call of so many")
    parser.add_argument(
        "--first", type=int, help="of each run of so many calls, which: 0, 1, ... (by the stage's name)"
    )
    parser.add_argument("--folder", type=Path, help="where to write; memory by default, which kill -9 does not empty")
    arguments = parser.parse_args()
    if arguments.every < 1 or not 0 <= (arguments.first or 0) < arguments.every:
        parser.error("--every is at least 1, and --first less than that")
    parent = arguments.folder or memory_folder()
    n_wrong = 0
    print(f"{'stage':<26}{'fault':<20}{'calls':>6}{'cases':>7}{'wrong':>7}{'seconds':>9}", file=sys.stderr)
    for result in results(
        arguments.stage or STAGES, arguments.fault or FAULTS, arguments.every, arguments.first, parent
    ):
        n_wrong += result["wrong"]
        line = "{stage:<26}{fault:<20}{calls:>6}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
        print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
