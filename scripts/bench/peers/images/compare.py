"""A peer of images.py: its environment, its form of the files, the best of its variants in turn with the loader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from scripts.bench.peers.measure import as_fields, is_right
from scripts.bench.peers.process import NotMeasured, Process, environment
from scripts.bench.peers.worker import Case, Variant
from scripts.runner import Result, median_ratio, rounds, timed

PEERS: Final = ("webdataset", "litdata")
DEADLINE_SECONDS: Final = 1800.0
"""For any one thing that is asked of a peer."""


def compare(peer: str, place: Path, case: Case, loader_epoch: Callable[[], object], repeats: int) -> Result:
    """Measure a peer in turn with an epoch of the loader; a failure of the peer's is its result."""
    record: Result = {"bench": "images peer", "peer": peer}
    same = (f"{name}=={metadata.version(name).split('+')[0]}" for name in ("torch", "numpy", "pillow"))
    try:
        python = environment(place / "environment", (*same, peer), DEADLINE_SECONDS)
        return record | measured(Worker(python, peer, place), case, loader_epoch, repeats)
    except NotMeasured as reason:
        return record | {"not_measured": str(reason)}
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Worker(Process):
    """A peer's worker over images."""

    def __init__(self, python: Path, peer: str, place: Path) -> None:
        self.python, self.peer, self.place = python, peer, place
        super().__init__(python, f"images.{peer}", place / "work")

    def again(self) -> Worker:
        """A fresh one."""
        return Worker(self.python, self.peer, self.place)

    def epoch(self, **request: Any) -> dict[str, Any]:
        """Go through an epoch."""
        return self.ask("epoch", within=DEADLINE_SECONDS, **request)


def measured(first: Worker, case: Case, loader_epoch: Callable[[], object], repeats: int) -> Result:
    """Write, choose the number of workers, and measure at length.

    Raises
    ------
    NotMeasured
        The peer failed or took too long, or its epoch is not the images, each once.
    """
    with first:
        described = first.ask("describe", within=DEADLINE_SECONDS, way="")
        written = first.ask("write", within=DEADLINE_SECONDS, case=as_fields(case))
    probes = [{**variant, "seconds": probe(first, case, variant)} for variant in described["variants"]]
    best = min(probes, key=lambda each: float(each["seconds"]))
    seconds: dict[str, list[float]] = {"loader": [], first.peer: []}
    with first.again() as worker:
        worker.ask("describe", within=DEADLINE_SECONDS, way="")
        idle_bytes = worker.held_bytes()
        worker.ask("start", within=DEADLINE_SECONDS, case=as_fields(case), variant={"num_workers": best["num_workers"]})
        check = worker.epoch(compare=True)
        if not is_right(check):
            raise NotMeasured(f"{first.name}: an epoch is not every image once, shuffled: {check}")
        for counts, order in rounds(list(seconds), repeats):
            for name in order:
                took = timed(loader_epoch) if name == "loader" else float(worker.epoch()["seconds"])
                seconds[name] += [took] if counts else []
        held = [worker.held_bytes()]
        # Looking costs speed: this epoch is not timed.
        worker.epoch(watch=lambda: held.append(worker.held_bytes()))
    return {
        "ratio": median_ratio(seconds[first.peer], seconds["loader"]),
        "images_s": round(case.n_samples / min(seconds[first.peer])),
        "loader images_s": round(case.n_samples / min(seconds["loader"])),
        "num_workers": best["num_workers"],
        "probes": probes,
        "memory_bytes": max(held),
        "idle_bytes": idle_bytes,
        "stored_bytes": written["stored_bytes"],
        "write_seconds": round(float(written["seconds"]), 2),
        "check": check,
        "peer_versions": described["versions"],
        "rounds": repeats,
    }


def probe(first: Worker, case: Case, variant: Variant) -> float:
    """Seconds of the faster of two epochs of a fresh worker: the first one starts its helpers, too."""
    with first.again() as worker:
        worker.ask("start", within=DEADLINE_SECONDS, case=as_fields(case), variant=variant)
        return round(min(float(worker.epoch()["seconds"]) for _ in range(2)), 3)
