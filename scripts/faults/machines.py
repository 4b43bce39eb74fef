#!/usr/bin/env python3
"""kill -9 at and inside every call of an ingest, an append and an overwrite, on stand-ins for other machines.

A case is right as in `writing.py`: what opens is the old dataset or the new one, or nothing where nothing was; and
resuming on that machine ends with the files of an ingest that was not disturbed, and nothing beside them. "Inside" is
half of a write, and each step of a call that the machine makes in several. The stages marked "read" write over files
that somebody reads; where the machine then refuses to replace them, the ingest ends with that reason, and resuming is
tried when the reader has gone.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import streamtrain as st
from scripts.faults.stages import Stage, make_stages, make_templates
from scripts.faults.stand_ins import MACHINES, MACOS_EOPNOTSUPP, MACOS_ERRNOS, Machine
from scripts.faults.syscall_faults import Killing, Watched
from scripts.faults.writing import Before, check, in_child, in_peace, reference
from scripts.runner import memory_folder, new_parser, parse_sampled, print_result, working_folder

MODES: Final = ("create", "append", "overwrite")
READ: Final = ("NFS", "NFS, lost answers", "SMB", "FUSE")
"""Machines on which it matters that somebody reads what is replaced."""
_PART: Final = 4  # of the rows that `writing.py` takes
_REFUSED: Final = "refused"


class Naming(Watched):
    """Lists the names of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def before(self, name: str, number: int, *arguments: Any) -> None:
        self.made.append(name)


def stages_on(name: str, folder: Path) -> Iterator[Stage]:
    """The stages that are tried on a machine."""
    machine: Machine = MACHINES[name]()
    known = make_stages(folder)
    for mode in MODES:
        # An image's dataset cannot be replaced, which is refused before any work; its unfinished one can be resumed.
        stage = known["resume" if name == "overlay" and mode != "create" else mode]
        yield replace(stage, machine=machine)
        if name in READ and mode != "create":
            yield replace(stage, name=f"{mode}, read", machine=machine, is_read=True)
        if name == "overlay" and mode == "append":
            return


def write(stage: Stage, folder: Path, system: Watched) -> str:
    """Write until the end, or until the machine refuses to."""
    try:
        stage.act(folder, system)
    except st.ResourceError as error:
        return f"{_REFUSED}: {error}"
    return "whole"


def calls_of(stage: Stage, folder: Path) -> list[str]:
    """The names of the calls of an undisturbed run."""

    def names() -> str:
        system = Naming()
        write(stage, stage.begin(folder), system)
        return " ".join(system.made)

    found = in_peace(names).split()
    shutil.rmtree(folder)
    return found


def cases(calls: Sequence[str], every: int, first: int) -> list[tuple[int, bool]]:
    """List the ends: the number of the call, and whether it is a write that is torn."""
    ends = [(number, False) for number in range(1, len(calls) + 1)]
    ends += [(number, True) for number, name in enumerate(calls, 1) if name == "writev"]
    return ends[first::every]


def kill(stage: Stage, found: Before, folder: Path, number: int, *, is_torn: bool) -> str:
    """End the process at a call, and say what is wrong then."""
    here = stage.begin(folder)
    status, text = in_child(lambda: write(stage, here, Killing(number, is_torn=is_torn)))
    # Threads make the calls in no fixed order and number, so a run may end before a late one comes.
    wrong = "" if status else {"whole": "", _REFUSED: "" if stage.is_read else text}.get(text.split(":")[0], text)
    wrong = wrong or in_child(partial(check, stage, found, here))[1]
    shutil.rmtree(here)
    return wrong


def results(names: Sequence[str], every: int, first: int, parent: Path | None) -> Iterator[dict[str, Any]]:
    """Try machines one after another; a result for each stage."""
    with working_folder(parent) as folder:
        in_peace(lambda: make_templates(folder, make_stages(folder)["create"], part=_PART))
        for name in names:
            for stage in stages_on(name, folder):
                started = time.perf_counter()
                # What must come of it, a machine like any other says.
                found = reference(replace(stage, machine=None), folder / "case")
                calls = calls_of(stage, folder / "case")
                ends = cases(calls, every, first)
                wrongs = [kill(stage, found, folder / "case", number, is_torn=torn) for number, torn in ends]
                yield {
                    "stage": f"{stage.name} on {name}",
                    "fault": "kill -9 at and inside calls",
                    "calls": len(calls),
                    "cases": len(ends),
                    "wrong": sum(map(bool, wrongs)),
                    "first_wrong": next(filter(None, wrongs), None),
                    "seconds": round(time.perf_counter() - started, 1),
                }


def main() -> None:
    """Try everything that was asked for; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--machine", action="append", choices=MACHINES, help="only these; all by default")
    arguments = parse_sampled(parser, "end")
    names = arguments.machine or list(MACHINES)
    here = [name for name in names if name != "macOS" or errno.EOPNOTSUPP == MACOS_EOPNOTSUPP]
    is_wrong = _here(arguments, here)
    raise SystemExit(is_wrong if here == names else max(is_wrong, _on_macos(arguments)))


def _here(arguments: Any, names: Sequence[str]) -> int:
    n_wrong = 0
    for result in results(names, arguments.every, arguments.first, memory_folder()):
        n_wrong += result["wrong"]
        line = "{stage:<36}{calls:>6}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
        print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    return int(n_wrong > 0)


def _on_macos(arguments: Any) -> int:
    """Begin anew with the error numbers of macOS."""
    words = ["--machine", "macOS", "--every", str(arguments.every), "--first", str(arguments.first)]
    begin = f"import runpy; {MACOS_ERRNOS}; runpy.run_path({__file__!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", begin, *words], check=False).returncode


if __name__ == "__main__":
    main()
