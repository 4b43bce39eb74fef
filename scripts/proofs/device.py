#!/usr/bin/env python3
"""Proof of the device path, in eleven steps and at most six minutes: on a GPU, or as far as a simulated one shows.

Each step is a process of its own with a limit of its own; one that fails does not stop the next. Steps that show that
nothing is wrong also put a fault in on purpose, and fail unless that is found. Without a GPU the steps that a simulated
device can show are run on that, from the tests; the others are told as not run.

Prints a table on stderr and one JSON line per step on stdout. Ends with exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import torch

from scripts.runner import Result, new_parser, run

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = "tests/loader/device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step: how long it may take, and the tests that show the same on a simulated device."""

    name: str
    seconds: float
    about: str
    tests: tuple[str, ...] = ()
    simulated_seconds: float = 120.0


STEPS: Final = (
    Step(name="facts", seconds=40, about="what torch and the driver do as the loader takes for granted"),
    Step(
        name="hand-over",
        seconds=40,
        about="every span is handed over once, and nothing waits for the device",
        tests=(
            f"{TESTS}/test_cuda.py::test_every_span_is_handed_over_once",
            f"{TESTS}/test_cuda.py::test_streams_compare",
        ),
    ),
    Step(name="tests", seconds=200, about="the tests of the device path", tests=(TESTS,), simulated_seconds=300),
    Step(
        name="races",
        seconds=90,
        about="no tensor is wrong, whoever is late; with a guard out of action some are",
        tests=(f"{TESTS}/test_transfer.py::test_no_tensor", f"{TESTS}/test_transfer.py::test_this_device"),
    ),
    Step(
        name="fork",
        seconds=40,
        about="a child beside the loader changes nothing, and touches nothing of the device's",
        tests=(f"{TESTS}/test_cuda.py::test_after_a_fork", f"{TESTS}/test_failures.py::test_a_forked_child"),
    ),
    Step(
        name="memory",
        seconds=60,
        about="memory stays within the projection, and does not grow with loaders or epochs",
        tests=(
            f"{TESTS}/test_transfer.py::test_the_same_batches",
            f"{TESTS}/test_cuda.py::test_forty_loaders",
            f"{TESTS}/test_cuda.py::test_validation_after",
        ),
    ),
    Step(
        name="failures",
        seconds=90,
        about="what fails is told, first things first, and nothing hangs",
        tests=(f"{TESTS}/test_failures.py",),
    ),
    Step(
        name="parity",
        seconds=60,
        about="training is what it is without device=, bit for bit",
        tests=(f"{TESTS}/test_training.py::test_a_model_learns_the_same",),
    ),
    Step(name="speed", seconds=150, about="batches ÷ the bare bus, and the stall that the trainer tells"),
    Step(
        name="step",
        seconds=60,
        about="launches and waits of a step",
        tests=("tests/optim/test_step_waits.py",),
    ),
    Step(
        name="graphs",
        seconds=40,
        about="a capture beside the loader",
        tests=(f"{TESTS}/test_cuda.py::test_a_capture",),
    ),
)


def main() -> None:
    """Take every step, or be the process of one."""
    arguments = parse_arguments()
    if arguments.child:
        from scripts.proofs.device_steps import take

        print(json.dumps(take(arguments.child)))
        return
    if not arguments.simulated and not torch.cuda.is_available():
        print("NO CUDA DEVICE: what follows is shown on a simulated one, or not at all.", file=sys.stderr)
    results = run(arguments, take_all, describe)
    raise SystemExit(1 if any(result["outcome"] == "failed" for result in results) else 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS], help="default all")
    parser.add_argument("--simulated", action="store_true", help="on the simulated device even where there is a GPU")
    parser.add_argument("--child", choices=[step.name for step in STEPS], help=argparse.SUPPRESS)
    return parser.parse_args()


def take_all(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Take the steps one after another."""
    on_gpu = torch.cuda.is_available() and not arguments.simulated
    for step in STEPS:
        if arguments.steps is None or step.name in arguments.steps:
            started = time.perf_counter()
            taken = on_a_gpu(step) if on_gpu else on_a_simulated_one(step)
            about = {"proof": "device", "step": step.name, "about": step.about}
            about["device"] = torch.cuda.get_device_name() if on_gpu else "simulated"
            yield about | taken | {"seconds": round(time.perf_counter() - started, 1)}


def on_a_gpu(step: Step) -> dict[str, Any]:
    """Take a step in a process of its own."""
    if step.name == "tests":
        judged = judged_by_tests(step, step.seconds)
        skipped = judged["figures"].get("skipped", 0)
        return judged | ({"outcome": "failed", "failures": [f"{skipped} tests skipped"]} if skipped else {})
    ended = ended_within([sys.executable, __file__, "--child", step.name], step.seconds)
    if isinstance(ended, str):
        return {"outcome": "failed", "figures": {}, "failures": [ended]}
    try:
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (ended.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"outcome": "failed", "figures": {}, "failures": [f"exit code {ended.returncode}: {last}"]}
    if ended.returncode:
        found["failures"].append(f"exit code {ended.returncode} after its result")
    return {"outcome": "failed" if found["failures"] else "passed", **found}


def on_a_simulated_one(step: Step) -> dict[str, Any]:
    """Run the tests that show the same on a simulated device."""
    if not step.tests:
        return {"outcome": "not run", "figures": {}, "failures": []}
    return judged_by_tests(step, step.simulated_seconds)


def judged_by_tests(step: Step, seconds: float) -> dict[str, Any]:
    """Run tests by the beginnings of their names; one that fails, or none at all, fails the step."""
    files = sorted({test.partition("::")[0] for test in step.tests})
    names = [name for test in step.tests if (name := test.partition("::")[2])]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    ended = ended_within([*command, *(["-k", " or ".join(names)] if names else [])], seconds)
    if isinstance(ended, str):
        return {"outcome": "failed", "figures": {}, "failures": [ended]}
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", ended.stdout)}
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    if ended.returncode or not counts.get("passed"):
        failures = failures or [f"exit code {ended.returncode}"]
    return {"outcome": "failed" if failures else "passed", "figures": counts, "failures": failures}


def ended_within(command: list[str], seconds: float) -> subprocess.CompletedProcess[str] | str:
    """Run a command in the project's folder; what it came to, or that it took too long."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    how: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True, "start_new_session": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # With whatever it has started.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"it had not ended after {seconds:g} seconds"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def describe(result: Result) -> str:
    """One line for people, and one for each failure."""
    figures = ", ".join(f"{name} {value}" for name, value in result["figures"].items())
    line = f"{result['step']:<10} {result['outcome']:<8} {result['device']}, {result['seconds']:>5.1f} s  {figures}"
    return "\n".join([line, *(f"           {failure}" for failure in result["failures"])])


if __name__ == "__main__":
    main()
