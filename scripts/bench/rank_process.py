"""A process of ``ranks.py``: it makes a loader, and where it is asked for a trainer, waits for its turn, and measures.

Its job is one JSON object; ``RANK`` and the other variables of a process group are set where it shares the batches with
others. It prints a line when it is ready, starts at a line on its stdin, and ends with a line of results.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from typing import Any, Final

import torch
import torch.distributed as dist

import streamtrain as st
from streamtrain.models.factory import build_model

MODELS: Final = {"mlp": "mlp:256,128", "cnn": "cnn"}
N_CLASSES: Final = 10


def work() -> None:
    """Do the job that the command line names."""
    job = json.loads(sys.argv[1])
    if job["core"] is not None:
        os.sched_setaffinity(0, {job["core"]})
    torch.set_num_threads(1)
    dataset = st.open(job["data"])
    trainer = None
    if job["way"] in MODELS:
        shape = dataset.layout.field("x").shape
        model = build_model(MODELS[job["way"]], input_shape=shape, n_outputs=N_CLASSES, seed=0)
        trainer = st.Trainer(model, loss="cross_entropy", optimizer="sgd", normalize="auto", device="cpu")
    with ExitStack() as stack:
        if job["shared"]:
            dist.init_process_group("gloo")
            stack.callback(dist.destroy_process_group)
        batches = {"batch_size": job["batch_size"], "memory": job["memory"], "seed": 0}
        loader = stack.enter_context(st.StreamLoader(dataset, **batches))
        print(json.dumps(measure(job, loader, trainer)), flush=True)


def measure(job: dict[str, Any], loader: st.StreamLoader, trainer: st.Trainer | None) -> dict[str, Any]:
    """Go through the data once, unmeasured, and then as often as the job says."""
    began = time.time()
    first = next(iter(loader))
    of_start = {"first_batch_s": time.time() - job["launched"], "loader_s": time.time() - began}
    loader.set_epoch(0)
    once(loader, trainer, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    waited, started = loader.wait_seconds, time.perf_counter()
    for epoch in range(job["epochs"]):
        once(loader, trainer, epoch + 2)
    seconds = time.perf_counter() - started
    n_samples = job["epochs"] * len(loader) * len(first.x)
    return {"seconds": seconds, "samples": n_samples, "waited": loader.wait_seconds - waited, **of_start}


def once(loader: st.StreamLoader, trainer: st.Trainer | None, n_epochs: int) -> None:
    """Read an epoch, or train on it, up to a number of epochs in all."""
    if trainer is None:
        for _ in loader:
            pass
    else:
        trainer.fit(loader, max_epochs=n_epochs, progress=False)
