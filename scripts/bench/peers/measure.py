"""The measuring of a peer: its variants briefly, the best at length in turn with streamtrain; one epoch checked."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench.peers.process import NotMeasured, Process
from scripts.bench.peers.worker import Case, Variant
from scripts.runner import median_ratio

N_CHECKED = 5003
"""Samples of the epoch that is compared row by row: no multiple of anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take.

    Parameters
    ----------
    seconds : float
        Of one measured stretch.
    rounds : int
        How many of them, in turn with streamtrain.
    warm_seconds : float
        Before each stretch.
    probe_seconds : float
        Of the stretch that chooses between variants.
    deadline : float
        For anything else: installing, writing, opening, checking.
    peer_deadline : float
        For all that is asked of one library's workers.
    """

    seconds: float
    rounds: int
    warm_seconds: float
    probe_seconds: float
    deadline: float
    peer_deadline: float = math.inf


class Runner:
    """Workers of one peer over one case.

    Parameters
    ----------
    python : Path
        The peer's interpreter.
    module : str
        The peer's worker.
    folder : Path
        Where it works; the case's own folder lies in it.
    case : Case
        What is loaded.
    timing : Timing
        How long.
    cgroup : Path, optional
        A control group for all its workers.
    """

    def __init__(
        self, python: Path, module: str, folder: Path, case: Case, timing: Timing, cgroup: Path | None = None
    ) -> None:
        self.python, self.module, self.folder, self.timing, self.cgroup = python, module, folder, timing, cgroup
        self.ends = time.monotonic() + timing.peer_deadline
        self.case = replace(case, folder=folder / "rows")
        self.small = replace(case, folder=folder / "few", n_samples=min(N_CHECKED, case.n_samples))

    def worker(self) -> Process:
        """A fresh worker."""
        return Process(self.python, self.module, self.folder, self.cgroup)

    def within(self, seconds: float = 0) -> float:
        """How long a request may take that is to last some seconds.

        Raises
        ------
        NotMeasured
            The time for all requests is over.
        """
        left = self.ends - time.monotonic()
        if left <= 0:
            raise NotMeasured(f"{self.module}: not done within {self.timing.peer_deadline:.0f} s in all")
        return min(seconds + self.timing.deadline, left)

    def write(self, *ways: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Store the rows, and a few apart for the check: seconds and bytes; and the variants and versions of ways."""
        with self.worker() as worker:
            described = [worker.ask("describe", within=self.within(), way=way) for way in ways]
            written = worker.ask("write", within=self.within(), case=as_fields(self.case))
            worker.ask("write", within=self.within(), case=as_fields(self.small))
        return {"write_seconds": round(written["seconds"], 2), "stored_bytes": written["stored_bytes"]}, described

    def open(self, worker: Process, variant: Variant) -> float:
        """Seconds to the first batch."""
        answer = worker.ask("open", within=self.within(), case=as_fields(self.case), variant=variant)
        return round(float(answer["seconds"]), 3)

    def run(self, worker: Process, seconds: float) -> float:
        """Samples a second over a stretch."""
        warm = self.timing.warm_seconds
        answer = worker.ask("run", within=self.within(warm + seconds), warm_seconds=warm, seconds=seconds)
        return float(answer["samples"] / answer["seconds"])

    def idle(self, worker: Process) -> int:
        """Bytes that a worker holds before it has opened anything: Python and what it imports."""
        worker.ask("describe", within=self.within(), way="")
        return worker.held_bytes()

    def peak(self, worker: Process) -> int:
        """Bytes that an open worker holds at most over a stretch that is not timed, so that looking costs no speed."""
        held = [worker.held_bytes()]
        worker.ask(
            "run",
            within=self.within(self.timing.probe_seconds),
            watch=lambda: held.append(worker.held_bytes()),
            warm_seconds=0,
            seconds=self.timing.probe_seconds,
        )
        return max(held)

    def probe(self, variant: Variant) -> dict[str, Any]:
        """A variant's speed over a short stretch, or why it has none."""
        try:
            with self.worker() as worker:
                self.open(worker, variant)
                return {**variant, "samples_s": round(self.run(worker, self.timing.probe_seconds))}
        except NotMeasured as reason:
            return {**variant, "not_measured": str(reason)}

    def best(self, variants: list[Variant]) -> dict[str, Any]:
        """The fastest variant, and what goes into the record about all of them.

        Raises
        ------
        NotMeasured
            There is none, or none gave a figure.
        """
        if not variants:
            raise NotMeasured("no variant has a number of workers that is asked for")
        if len(variants) == 1:
            return {"variant": variants[0], "probes": [], "as_documented": None}
        probes = [self.probe(variant) for variant in variants]
        measured = [probe for probe in probes if "samples_s" in probe]
        if not measured:
            raise NotMeasured(probes[-1]["not_measured"])
        documented = [probe for probe in measured if not probe.get("by_hand")]
        fastest = max(measured, key=speed)
        return {
            "variant": variants[probes.index(fastest)],
            "probes": probes,
            "as_documented": max(documented, key=speed, default=None),
        }

    def mixing(self, worker: Process) -> float | None:
        """How far apart a batch's rows lie, 1 being as far as random ones."""
        mixing: float | None = worker.ask("mixing", within=self.within(), case=as_fields(self.case))["mixing"]
        return mixing

    def check(self, worker: Process, variant: Variant) -> dict[str, Any]:
        """One whole epoch of a few rows, compared with the source."""
        return worker.ask("check", within=self.within(), case=as_fields(self.small), variant=variant)

    def remove(self) -> None:
        """Remove what it stored."""
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(variants: list[Variant], runner: Runner, own: Runner, own_worker: Process) -> dict[str, Any]:
    """A peer's record: the best of its variants in turn with streamtrain's open loader.

    Raises
    ------
    NotMeasured
        No variant gave a figure.
    """
    record = runner.best(variants)
    variant = record["variant"]
    speeds: list[float] = []
    own_speeds: list[float] = []
    with runner.worker() as worker:
        idle_bytes = runner.idle(worker)
        check = runner.check(worker, variant)
        first_batch = runner.open(worker, variant)
        for _ in range(runner.timing.rounds):
            own_speeds.append(own.run(own_worker, own.timing.seconds))
            speeds.append(runner.run(worker, runner.timing.seconds))
        mixing = runner.mixing(worker)
        memory_bytes = runner.peak(worker)
    return {
        **record,
        "samples_s": round(statistics.median(speeds)),
        "streamtrain_samples_s": round(statistics.median(own_speeds)),
        "ratio": median_ratio(own_speeds, speeds),
        "rounds": [[round(own_speed), round(speed)] for own_speed, speed in zip(own_speeds, speeds, strict=True)],
        "mixing": mixing,
        "first_batch_seconds": first_batch,
        "idle_bytes": idle_bytes,
        "memory_bytes": memory_bytes,
        "check": check,
    }


def speed(probe: dict[str, Any]) -> int:
    """A probe's samples a second."""
    return int(probe["samples_s"])


def as_fields(case: Case) -> dict[str, Any]:
    """A case as it goes over the channel."""
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


def is_right(check: dict[str, Any]) -> bool:
    """Whether an epoch had every sample exactly once, with its own row, and not in the stored order."""
    counts = {check["samples"], check["yielded"], check["distinct"]}
    return len(counts) == 1 and not check["wrong"] and bool(check["shuffled"])
