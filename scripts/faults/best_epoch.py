#!/usr/bin/env python3
"""Trainings killed at every call that changes the disk: the best epoch is there then, and is found again on resume.

A case is right if right after the kill the best of the newest whole checkpoint can be read, with the weights that the
epoch had in a run that nobody killed, and with its scores; and if the run, resumed, ends with the same best epoch,
value and weights, and the same last weights, bit for bit, and with the scores of both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch
from torch import nn

import streamtrain as st
from scripts.faults.syscall_faults import Killing, Watched, WithoutExchange
from scripts.faults.writing import in_child, in_peace
from scripts.runner import memory_folder, new_parser, parse_sampled, print_result, tallied, working_folder
from streamtrain.system.files import Files
from streamtrain.training.best.chosen_checkpoint import BEST, LAST, ChosenCheckpoint, checkpoint_of
from streamtrain.training.run.checkpoint import MODEL
from streamtrain.training.run.run_folder import SCORES, RunFolder

FAULTS: Final = ("kill -9", "kill -9 in a write", "kill -9 without exchange")
KINDS: Final[dict[str, dict[str, Any]]] = {
    "batch": {"optimizer": "adam", "lr": 0.2},
    "sample": {"optimizer": "sgd", "lr": 0.3, "update": "sample"},
    "epoch": {"optimizer": "adam", "lr": 0.3, "update": "epoch"},
    "lbfgs": {"optimizer": "lbfgs", "update": "epoch"},
}
N_EPOCHS: Final = 7
_EVERY: Final = 4  # batches between checkpoints; an epoch has six

Weights = str
"""The digest of a model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a run that nobody killed came to: the weights of each epoch, its best, and its last weights."""

    of_epochs: dict[int, Weights]
    best: dict[str, Any]
    last: Weights
    n_calls: int


def make_files(folder: Path) -> None:
    """Write data to train on and data to measure on, unlike it so that the best epoch is not the last."""
    chance = np.random.default_rng(1)
    for name, n_rows, noise in (("train", 120, 0.1), ("val", 40, 0.25)):
        x = chance.normal(size=(n_rows, 4)).astype(np.float32)
        y = ((x[:, 0] + x[:, 1] > 0) ^ (chance.random(n_rows) < noise)).astype(np.int64)
        st.ingest({"x": x, "y": y}, folder / name, block=320, codec="lz4", progress=False)


def train(folder: Path, kind: str, system: Watched | None = None) -> str:
    """Train, or resume what is there; return what came of it, as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # A checkpoint that a kill left unfinished is warned of.
    warnings.simplefilter("ignore", st.StreamtrainWarning)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    trainer = st.Trainer(model, loss="cross_entropy", device="cpu", **KINDS[kind])
    of_epochs: dict[int, Weights] = {}
    how = {"batch_size": 20, "memory": "16MB"}
    with (
        st.StreamLoader(folder / "train", **how, shuffle=not trainer.reads_in_order) as loader,  # type: ignore[arg-type]
        st.StreamLoader(folder / "val", **how, shuffle=False) as val,  # type: ignore[arg-type]
        RunFolder(folder / "run", trainer.describe(loader), resumes=True, files=Files(system=system)) as run,
    ):
        history = trainer.fit(
            loader,
            val=val,
            max_epochs=N_EPOCHS,
            checkpoint=run,
            checkpoint_every=_EVERY,
            resume="auto",
            progress=False,
            on_epoch=lambda summary: of_epochs.update({summary.number: digest(model.state_dict())}),
        )
    assert history.best is not None
    best = {"epoch": history.best.epoch, "value": history.best.value, "step": history.best.step}
    return json.dumps({"of_epochs": of_epochs, "best": best, "last": digest(model.state_dict())})


def digest(weights: dict[str, torch.Tensor]) -> Weights:
    """Take the digest of weights by their names."""
    return sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def weights_of(chosen: ChosenCheckpoint) -> Weights:
    """Take the digest of a checkpoint's weights."""
    return digest(chosen.checkpoint.tensors(MODEL))


def undisturbed(folder: Path, kind: str) -> Undisturbed:
    """Run a kind to its end, and count its calls."""

    def count() -> str:
        system = Watched()
        return json.dumps({**json.loads(train(folder, kind, system)), "n_calls": system.n_calls})

    found = json.loads(in_peace(count))
    shutil.rmtree(folder / "run")
    found["of_epochs"] = {int(epoch): weights for epoch, weights in found["of_epochs"].items()}
    return Undisturbed(**found)


def check(folder: Path, kind: str, whole: Undisturbed) -> str:
    """Say what is wrong after a kill; empty where nothing is."""
    if (folder / "run").exists() and any((folder / "run").glob("checkpoints/*/manifest.json")):
        found = checkpoint_of(folder / "run", BEST)
        if found.doubt:
            return f"the best is not there: {found.doubt}"
        if found.best and weights_of(found) != whole.of_epochs[found.best.epoch]:
            return f"the weights of epoch {found.best.epoch} are others"
        if found.best and losses_kept(folder / "run").get(found.best.epoch) != found.best.value:
            return f"the scores of epoch {found.best.epoch} are not there"
    resumed = json.loads(train(folder, kind))
    if resumed["best"] != whole.best:
        return f"the best is {resumed['best']}, not {whole.best}"
    if resumed["last"] != whole.last:
        return "the last weights are others"
    best, last = (checkpoint_of(folder / "run", which) for which in (BEST, LAST))
    if best.doubt or weights_of(best) != whole.of_epochs[whole.best["epoch"]] or weights_of(last) != whole.last:
        return "the checkpoints of the resumed run hold other weights"
    scores = json.loads((folder / "run" / SCORES).read_text())
    if (scores["epoch"], scores["best"]["epoch"], scores["best"]["loss"]) != (
        N_EPOCHS,
        whole.best["epoch"],
        whole.best["value"],
    ):
        return "the scores are of other epochs"
    return ""


def losses_kept(run: Path) -> dict[int, float]:
    """Read the losses in the file of scores by their epochs."""
    found = json.loads((run / SCORES).read_text())
    kept = [found, found.get("best"), *found.get("before", [])]
    return {each["epoch"]: each["loss"] for each in kept if each and "epoch" in each}


def killed(folder: Path, kind: str, whole: Undisturbed, fault: str, numbers: Sequence[int]) -> Iterator[str]:
    """End a training at each of these calls."""
    for number in numbers:
        killing: Watched = Killing(number, is_torn=fault.endswith("in a write"))
        system = WithoutExchange(killing) if fault.endswith("exchange") else killing
        status, text = in_child(partial(train, folder, kind, system))
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            yield f"call {number}: ended otherwise: {text}"
        elif wrong := in_child(partial(check, folder, kind, whole))[1]:
            yield f"call {number}: {wrong}"
        else:
            yield ""
        shutil.rmtree(folder / "run", ignore_errors=True)


def results(kinds: Sequence[str], faults: Sequence[str], every: int, first: int) -> Iterator[dict[str, Any]]:
    """Try every fault on every kind of training, at every call or at one of so many."""
    with working_folder(memory_folder()) as folder:
        in_peace(partial(make_files, folder))
        # What torch imports at a first step is then there in every child.
        train(folder, kinds[0])
        shutil.rmtree(folder / "run")
        for kind in kinds:
            whole = undisturbed(folder, kind)
            for fault in faults:
                started = time.perf_counter()
                numbers = range(1 + first, whole.n_calls + 1, every)
                wrongs = list(killed(folder, kind, whole, fault, numbers))
                yield {
                    "stage": f"the best epoch, {kind}",
                    "fault": fault,
                    "best": whole.best["epoch"],
                    "calls": whole.n_calls,
                    **tallied(wrongs),
                    "seconds": round(time.perf_counter() - started, 1),
                }


def main() -> None:
    """Try everything that was asked for; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only these; all by default")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only these; all by default")
    arguments = parse_sampled(parser, "call")
    n_wrong = 0
    for result in results(arguments.kind or list(KINDS), arguments.fault or FAULTS, arguments.every, arguments.first):
        n_wrong += result["wrong"]
        line = "{stage:<26}{fault:<26}{calls:>6}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
        print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
