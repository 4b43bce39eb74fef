"""What the golden files were made of: rows by arithmetic, orders, and the command lines of the runs.

`tests/golden/make.py` makes the files with it, the tests beside them make the same again and compare. Of the package it
knows the public face and the command line alone, so that it stays as it is while modules move.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
import torch
from numcodecs import blosc
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden"
DATASETS: Final = ("none", "lz4", "zstd", "appended", "classes")
Rows = dict[str, Any]

# Rows ----------------------------------------------------------------------------------------------------------------

N_SAMPLES: Final = {"none": 400, "lz4": 230, "zstd": 130, "appended": 170, "classes": 90}
APPENDED_AT: Final = 101
SPECIES: Final = ("setosa", "virginica", "versicolor")
CSV: Final = "sources/flowers.csv"
CSV_TIME: Final = 1_700_000_000
"""The file's time of change, which an ingest keeps in the manifest, and git does not."""


def plain_rows(start: int, stop: int) -> Rows:
    """Four features, a label, a weight and the sample's number; all are binary fractions, so that sums are exact."""
    i = np.arange(start, stop)
    y = i // 20 % 3
    x = (i[:, None] * np.array([7, 11, 13, 17]) + np.array([0, 3, 5, 1])) % 32 / 8.0 - 2
    x[:, 0] += y
    x[:, 1] -= y
    return {"x": x.astype(np.float32), "y": y, "w": i % 4 / 4 + 0.25, "i": i.astype(np.int32)}


def many_kinds(n: int) -> Rows:
    """A field of every kind of number; zero with a sign, the smallest and a large one among them."""
    i = np.arange(n)
    level = i / 4 - 10
    level[3::40], level[7::40], level[9::40] = -0.0, 2.0**-1074, -(2.0**300)
    return {
        "image": ((i[:, None, None] * 5 + np.arange(6).reshape(3, 2) * 40) % 256).astype(np.uint8),
        "flag": i % 3 == 0,
        "half": (i % 16 / 8 - 1).astype(np.float16),
        "code": (i * 509 % 65_536).astype(np.uint16),
        "small": (i % 256 - 128).astype(np.int8),
        "large": i * 2**55 - 2**61,
        "level": level,
        "i": i.astype(np.int32),
    }


def flowers(n: int) -> Rows:
    """What the CSV file holds: two columns and the name of a class."""
    i = np.arange(n)
    x = np.stack([i % 8 / 4, (i * 3 % 16) / 2 - 1], axis=1)
    return {"x": x, "species": [SPECIES[k] for k in i * 5 // 7 % 3]}


def csv_text(n: int) -> str:
    """The CSV file itself."""
    rows = flowers(n)
    lines = [f"{width},{height},{name}" for (width, height), name in zip(rows["x"], rows["species"], strict=True)]
    return "\n".join(["width,height,species", *lines]) + "\n"


def rows_of(name: str) -> Rows:
    """What a golden dataset holds, worked out without it."""
    n = N_SAMPLES[name]
    if name == "zstd":
        return many_kinds(n)
    if name == "classes":
        rows = flowers(n)
        # Text is sorted and numbered.
        y = np.array([sorted(SPECIES).index(species) for species in rows["species"]])
        return {"x": rows["x"], "y": y}
    return plain_rows(0, n)


def ingest(name: str) -> None:
    """Make a golden dataset anew at ``datasets/NAME.zarr``, below the current folder."""
    dest = f"datasets/{name}.zarr"
    how: dict[str, Any] = {"codec": name if name in ("none", "lz4", "zstd") else "none", "progress": False}
    match name:
        case "none":
            st.ingest(rows_of(name), dest, block=2 * 36, shard=100 * 16, **how)
        case "lz4":
            st.ingest(rows_of(name), dest, block=16 * 36, shard=64 * 16, **how)
        case "zstd":
            st.ingest(rows_of(name), dest, block=16 * 32, shard=64 * 8, **how)
        case "appended":
            st.ingest(plain_rows(0, APPENDED_AT), dest, block=8 * 36, shard=32 * 16, **how)
            st.ingest(plain_rows(APPENDED_AT, N_SAMPLES[name]), dest, append=True, **how)
        case "classes":
            os.utime(CSV, (CSV_TIME, CSV_TIME))
            sizes = ("--block", "192B", "--shard", "512B")
            run_command("ingest", CSV, dest, "--label-column", "species", *sizes, "--codec", "none")


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# Orders --------------------------------------------------------------------------------------------------------------

N_EPOCHS: Final = 3
ORDERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "spare memory": ("none", {"batch_size": 16, "memory": "64MB", "seed": 0}),
    "tight memory": ("none", {"batch_size": 16, "memory": "3312KB", "seed": 0}),
    "few lanes": ("none", {"batch_size": 25, "memory": "8MB", "seed": 7, "lanes": 6}),
    "many groups": ("none", {"batch_size": 64, "memory": "8MB", "seed": 1, "lanes": 128}),
    "drop last": ("lz4", {"batch_size": 50, "memory": "8MB", "seed": 2**40, "drop_last": True}),
    "never anew": ("appended", {"batch_size": 32, "memory": "8MB", "seed": 3, "reshuffle": "never"}),
    "one sample": ("zstd", {"batch_size": 1, "memory": "8MB", "seed": 4}),
    "all settings default": ("appended", {}),
    "as stored": ("lz4", {"batch_size": 48, "memory": "8MB", "shuffle": False}),
}
"""Dataset and settings of the loaders whose orders are kept."""
STOPPED_IN: Final = (1, 3)
"""Epoch and batch of the place at which a loader's state is kept."""
KEYED_EPOCHS: Final = (0, 5)
N_KEYS: Final = 20


def open_golden(name: str) -> st.Dataset:
    """A dataset below the current folder."""
    return st.open(f"datasets/{name}.zarr")


def read_orders(dataset: st.Dataset, how: dict[str, Any], n_epochs: int = N_EPOCHS) -> list[list[list[int]]]:
    """The numbers of the samples: epoch by epoch, batch by batch."""
    with st.StreamLoader(dataset, **how) as loader:
        return [[batch.i.tolist() for batch in loader] for _ in range(n_epochs)]


def state_inside(dataset: st.Dataset, how: dict[str, Any]) -> dict[str, Any]:
    """A loader's state at the place where it is kept."""
    epoch, n_batches = STOPPED_IN
    with st.StreamLoader(dataset, **how) as loader:
        loader.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(n_batches):
            next(batches)
        return loader.state_dict()


def keys_of(dataset: st.Dataset, epoch: int) -> dict[str, list[Any]]:
    """The first samples' keys in an epoch, and what is drawn from them: by sample, whatever the epoch's order is."""
    found: dict[int, tuple[int, list[float], list[float]]] = {}

    def draw(batch: Any, keys: torch.Tensor) -> Any:
        uniform, normal = st.uniform(keys, (2,)), st.normal(keys, (2,), draw=1)
        drawn = zip(keys.tolist(), uniform.tolist(), normal.tolist(), strict=True)
        found.update(zip(batch.i.tolist(), drawn, strict=True))
        return batch

    with st.StreamLoader(dataset, batch_size=32, memory="8MB", seed=11, transform=draw) as loader:
        loader.set_epoch(epoch)
        for _ in loader:
            pass
    columns = zip(*(found[i] for i in range(N_KEYS)), strict=True)
    return dict(zip(("keys", "uniform", "normal"), map(list, columns), strict=True))


# Runs ----------------------------------------------------------------------------------------------------------------

TRAINED_ON: Final = "lz4"
EPOCH_BATCHES: Final = 15
Told = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is kept.

    Parameters
    ----------
    options : tuple of str
        Of its command line; there is none for what Python trains.
    stop_after : int, optional
        The batch after which the interrupted one of the pair got Ctrl-C; a run without is kept finished alone.
    """

    options: tuple[str, ...] = ()
    stop_after: int | None = None


_COMMON: Final = (
    *("--model", "mlp:4", "--epochs", "3", "--batch-size", "16", "--memory", "16MB", "--seed", "5", "--device", "cpu"),
    *("--log-every", "6", "--checkpoint-every", "7"),
)
PYTHON: Final = "python"
RUNS: Final[dict[str, Run]] = {
    "batch": Run(options=(*_COMMON, "--lr", "0.05", "--weight", "w", "--val", "datasets/none.zarr"), stop_after=20),
    "sample": Run(options=(*_COMMON, "--update", "sample"), stop_after=20),
    "sample-plain": Run(
        options=(*_COMMON, "--update", "sample", "--sample-path", "plain", "--optimizer", "sgd", "--momentum", "0.5")
    ),
    "epoch": Run(
        options=(*_COMMON, "--update", "epoch", "--optimizer", "sgd", "--lr", "0.5", "--momentum", "0.9"), stop_after=20
    ),
    "lbfgs": Run(options=(*_COMMON, "--update", "epoch", "--optimizer", "lbfgs", "--l2", "0.01"), stop_after=38),
    PYTHON: Run(stop_after=17),
}
INTERRUPTED: Final = tuple(name for name, run in RUNS.items() if run.stop_after)
TIMES: Final = ("seconds", "samples_per_second", "stall_fraction")


def run_command(*words: str, exit_code: int = 0) -> str:
    """Run the command line in this process; what it printed on stdout."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(words)
    assert code == exit_code, f"streamtrain {' '.join(words)}: exit code {code}"
    return out.getvalue()


def train(name: str, out: str) -> Told:
    """Train a golden run in the current folder, or resume it; what is told of it."""
    if name == PYTHON:
        return _train_in_python(out)
    told: Told = json.loads(run_command(*_words(name, out)))
    return told


def _words(name: str, out: str) -> tuple[str, ...]:
    return ("train", f"datasets/{TRAINED_ON}.zarr", *RUNS[name].options, "--out", out, "--resume", "--json")


def make_trainer() -> st.Trainer:
    """The trainer of the run that Python trains: dropout, accumulated batches, and a schedule."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.25), nn.Linear(6, 3))
    sgd = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    how = {"accumulate_grad_batches": 4, "clip_grad_norm": 1.0, "normalize": "auto", "device": "cpu"}
    return st.Trainer(model, loss="cross_entropy", schedule="cosine", **sgd, **how)


def make_loader() -> st.StreamLoader:
    """The loader of the run that Python trains."""
    return st.StreamLoader(open_golden(TRAINED_ON), batch_size=16, memory="8MB", seed=9)


def _train_in_python(out: str) -> Told:
    with make_loader() as loader:
        history = make_trainer().fit(
            loader, max_epochs=3, checkpoint=out, checkpoint_every=5, resume="auto", log_every=6, progress=False
        )
    last = history.last
    return {
        "steps": history.counts.n_steps,
        "samples": history.counts.n_samples,
        "epochs": [summary.named() for summary in history],
        "resumed_from_batch": history.resumed_from_batch,
    } | (last.train.named() if last else {})


@contextmanager
def ctrl_c_after(n_batches: int) -> Iterator[None]:
    """Press Ctrl-C while the training data's batch of that number is on its way; the run ends behind its step."""
    seen = [0]
    plain: Callable[[st.StreamLoader], Iterator[Any]] = st.StreamLoader.__iter__

    def counted(loader: st.StreamLoader) -> Iterator[Any]:
        for batch in plain(loader):
            if loader.dataset.path.stem == TRAINED_ON:
                seen[0] += 1
                if seen[0] == n_batches:
                    signal.raise_signal(signal.SIGINT)
            yield batch

    st.StreamLoader.__iter__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        st.StreamLoader.__iter__ = plain  # type: ignore[method-assign]


def train_until_ctrl_c(name: str, out: str) -> None:
    """Train a golden run, and interrupt it at its place."""
    stop_after = RUNS[name].stop_after
    assert stop_after is not None
    with ctrl_c_after(stop_after), suppress(KeyboardInterrupt):
        # The command line answers with the exit code, Python with the exception.
        if name == PYTHON:
            _train_in_python(out)
        else:
            run_command(*_words(name, out), exit_code=130)
            return
        raise AssertionError(f"{name} was not interrupted")


def evaluate(name: str, run: str) -> dict[str, float]:
    """Loss and score of a finished run's weights on another dataset than it was trained on."""
    told = json.loads(run_command("evaluate", run, "datasets/none.zarr", "--batch-size", "64", "--json"))
    return {measure: told[measure] for measure in ("loss", "accuracy")}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` but what a clock said."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines]


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((run / "checkpoints").iterdir())


def weights(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's weights, as NumPy has them."""
    found: dict[str, Any] = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    return found


# What the bytes depend on beside this package ------------------------------------------------------------------------


def writers() -> dict[str, str]:
    """The versions of what puts the bytes of a dataset together."""
    import zarr

    return {"zarr": zarr.__version__, "blosc": blosc.VERSION_STRING}


def arithmetic() -> str:
    """A digest of a few steps of stock torch and NumPy: who computes the same here computes the same in a run.

    Matrix products and exponentials may differ in their last bits between processors and versions of torch.
    """
    x = torch.arange(64 * 4, dtype=torch.float32).reshape(64, 4).remainder(13) / 7 - 0.9
    y = torch.arange(64) % 3
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape).remainder(5) / 11 - 0.17)
    optimizer = torch.optim.Adam(model.parameters())
    for rows in (slice(0, 16), slice(16, 32), slice(5, 6), slice(0, 64), slice(7, 13)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    digest = hashlib.sha256(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {np.__version__}".encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    digest.update(np.exp(x.double().numpy() @ x.double().numpy().T / 64).tobytes())
    return digest.hexdigest()
