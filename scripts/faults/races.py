#!/usr/bin/env python3
"""Races for the lock of a dataset, between processes that see each other otherwise than usual.

*Two writers* begin at one moment, half of the times on the lock file of a dead one; right is that each gets the lock
once, and never both at a time. *A writer and a taker-over*: one has the lock and is killed with SIGKILL, inside or at
any call by which it takes or leaves the lock, while the other tries all along; right is that the other gets it without
a person's help, and not before the first is dead. Where this machine does not let a process see the world as asked, a
line says so, and nothing is counted.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

from scripts.faults.stand_ins import Nfs, leave_namespace, on
from scripts.faults.syscall_faults import Killing
from scripts.runner import memory_folder, new_parser, print_result, working_folder
from streamtrain.errors import LockedError
from streamtrain.store.writing.lock import lock_path, writer_lock
from streamtrain.system.files import Files

SECONDS: Final = 30
NOBODY: Final = 65534
_CALLS: Final = 4  # by which a lock is taken and left: open, writev, and unlink once or twice
Act = Callable[[], None]


def _as_we_are(act: Act) -> None:
    act()


def _in_another_pid_namespace(act: Act) -> None:
    leave_namespace("pid")
    child = _fork(_as_we_are, act)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"ended with {code} in its namespace")


def _where_pids_are_hidden(act: Act) -> None:
    """As a user who does not see the processes of others."""
    leave_namespace("mount")
    for words in (["--make-rprivate", "/"], ["-t", "proc", "-o", "hidepid=2", "proc", "/proc"]):
        subprocess.run(["mount", *words], check=True, capture_output=True)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    act()


def _on_another_host(act: Act) -> None:
    leave_namespace("uts")
    socket.sethostname("elsewhere")
    act()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How the second process lives, and whether both have their files on a stand-in for NFS."""

    enter: Callable[[Act], None]
    is_nfs: bool = False


WORLDS: Final[Mapping[str, World]] = {
    "alike": World(enter=_as_we_are),
    "over NFS": World(enter=_as_we_are, is_nfs=True),
    "in another pid namespace": World(enter=_in_another_pid_namespace),
    "where pids are hidden": World(enter=_where_pids_are_hidden),
    "on another host over NFS": World(enter=_on_another_host, is_nfs=True),
}


def _fork(enter: Callable[[Act], None], act: Act, *, closed: int | None = None) -> int:
    """Begin an act in a process that lives in some way, without one of our descriptors."""
    gc.freeze()  # a collection in the child would copy all that the parent holds
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if closed is not None:
                os.close(closed)
            enter(act)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    return child


def _until_got(path: Path, inside: Act) -> None:
    """Try to get the lock until a deadline, and do something inside."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with writer_lock(path, Files()):
                inside()
            return
        except LockedError:
            if time.monotonic() > deadline:
                raise


def two_writers(world: World, folder: Path, chance: random.Random) -> None:
    """Both begin at one moment."""
    path = folder / "d"
    if chance.random() < 0.5:
        lock_path(path).write_text("{}")
    ready, go = os.pipe()

    def alone() -> None:
        (folder / "inside").mkdir()  # fails where another is inside
        time.sleep(0.001)  # in which the other tries
        (folder / "inside").rmdir()

    def act() -> None:
        os.read(ready, 1)  # nothing, as soon as no process can write any more
        _until_got(path, alone)

    children = [_fork(enter, act, closed=go) for enter in (_as_we_are, world.enter)]
    os.close(ready)
    os.close(go)
    _wait(children, [0, 0])


def taker_over(world: World, folder: Path, chance: random.Random) -> None:
    """The first has the lock and is killed; the second tries all along."""
    path, at = folder / "d", chance.randrange(_CALLS + 1)
    inside, told = os.pipe()

    def hold() -> None:
        with writer_lock(path, Files(system=Killing(at))):
            os.write(told, b".")
            if not at:
                signal.pause()
            _note(folder / "left")

    holder = _fork(_as_we_are, hold)
    os.close(told)
    os.read(inside, 1)  # it is inside, or gone
    os.close(inside)
    taker = _fork(world.enter, lambda: _until_got(path, lambda: _note(folder / "got")))
    if not at:
        time.sleep(chance.random() / 50)  # the taker is somewhere in its attempts
        _note(folder / "left")
        os.kill(holder, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the first ended with {status}")
    _wait([taker], [0])
    left, got = (int(file.read_text()) if file.exists() else 0 for file in (folder / "left", folder / "got"))
    if got < left:
        raise RuntimeError("both had the lock")


def _note(file: Path) -> None:
    """Write down the time, by the clock that all processes share."""
    file.write_text(str(time.monotonic_ns()))


def _wait(children: list[int], expected: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if codes != expected:
        raise RuntimeError(f"they ended with {codes}")


RACES: Final = {"two writers": two_writers, "a writer and a taker-over": taker_over}


def results(rounds: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Run all races in all worlds; a result for each pair that this machine can show."""
    for name, world in WORLDS.items():
        if why := _why_not(world):
            print(f"{name}: not tried, {why}", file=sys.stderr)
            continue
        for race, run in RACES.items():
            wrong, started = [], time.perf_counter()
            for number in range(rounds):
                here = folder / str(number)
                here.mkdir()
                here.chmod(0o777)
                try:
                    with on(Nfs()) if world.is_nfs else nullcontext():
                        run(world, here, random.Random(f"{seed} {name} {race} {number}"))
                    left = [path.name for path in here.iterdir()]
                    wrong += [f"left: {left}"] if left and race == "two writers" else []
                except RuntimeError as error:
                    wrong.append(str(error))
                shutil.rmtree(here)
            yield {
                "stage": f"{race}, {name}",
                "fault": "race",
                "cases": rounds,
                "wrong": len(wrong),
                "first_wrong": next(iter(wrong), None),
                "seconds": round(time.perf_counter() - started, 1),
            }


def _why_not(world: World) -> str:
    if world.enter is not _as_we_are and os.geteuid() != 0:
        return "which takes root"
    gc.freeze()  # a collection in the child would copy all that the parent holds
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the process ends
            world.enter(lambda: None)
            code = 0
        finally:
            os._exit(code)
    return "as this system refuses it" if os.waitpid(child, 0)[1] else ""


def main() -> None:
    """Run the races; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__, seed=0)
    parser.add_argument("--rounds", type=int, default=200, help="races of each kind (default 200)")
    arguments = parser.parse_args()
    n_wrong = 0
    with working_folder(memory_folder()) as folder:
        folder.chmod(0o711)
        for result in results(arguments.rounds, arguments.seed, folder):
            n_wrong += result["wrong"]
            line = "{stage:<54}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
            print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
