#!/usr/bin/env python3
"""L-BFGS over the stream beside scikit-learn in RAM: softmax regression, float64, to the same J.

Images as bytes from the store, cast to float64 in [0, 1] before the model; J is the mean cross-entropy plus l2/2 times
the sum of the squared weights, biases left out. Scikit-learn runs in a virtual environment of its own, made for the
run and removed after it, with every input in RAM. Both minimize until the Euclidean norm of J's gradient is small; both
results are then put into one formula for J and its gradient, written out in NumPy float64.

Trains on Fashion-MNIST as scripts/data/fashion_mnist.py leaves it, or with ``--samples`` on that many made ones. Prints
one JSON line on stdout and a table on stderr. Exits with 1 where the two J differ by more than ``--tolerance``, and
where the norm of J's gradient at streamtrain's result is above 1.001 times ``--grad-tolerance``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import streamtrain as st
from scripts.data.fashion_mnist import TARGET
from scripts.data.ingest_sorted import read_idx
from scripts.runner import Result, new_parser, run

PEER_SECONDS: Final = 3600

PEER: Final = """
import json, sys, time
import numpy as np
from sklearn import __version__
from sklearn.linear_model import LogisticRegression
folder, l2, tolerance = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
x = np.load(folder + "/x.npy").astype(np.float64) / 255
y = np.load(folder + "/y.npy")
started = time.perf_counter()
model = LogisticRegression(C=1 / (l2 * len(x)), solver="lbfgs", tol=tolerance, max_iter=100_000)
model.fit(x, y)
seconds = time.perf_counter() - started
np.savez(folder + "/peer.npz", weight=model.coef_, bias=model.intercept_)
print(json.dumps({"version": __version__, "iterations": int(model.n_iter_[0]), "seconds": seconds}))
"""

Array = npt.NDArray[Any]


class Scale(nn.Module):
    """Bytes to float64 in [0, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) to (B, ...)."""
        return x.to(torch.float64) / 255


def main() -> None:
    """Minimize J twice, print how the two compare, and end with 1 where they differ."""
    (result,) = run(parse_arguments(), measure, describe, fix="fewer --samples, or another --folder")
    raise SystemExit(not result["ok"])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, memory="64MB", batch_size=1024, folder=None)
    add = parser.add_argument
    add("--samples", type=int, help="made samples in place of Fashion-MNIST")
    add("--data", type=Path, default=TARGET, help="folder of Fashion-MNIST (default: data/fashion-mnist)")
    add("--l2", type=float, default=1e-3, help="of the penalty (default 0.001)")
    add("--grad-tolerance", type=float, default=1e-6, help="norm of J's gradient to reach (default 1e-6)")
    add("--tolerance", type=float, default=1e-6, help="how far apart the two J may be (default 1e-6)")
    add("--optimizer", choices=("lbfgs", "cg"), default="lbfgs", help="of streamtrain (default lbfgs)")
    add("--max-passes", type=int, default=5000, help="over the data (default 5000)")
    add("--peer", choices=("scikit-learn", "none"), default="scikit-learn", help="none compares with nothing")
    return parser.parse_args()


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Minimize J over the stream and in RAM."""
    x, y = made(arguments.samples) if arguments.samples else fashion_mnist(arguments.data)
    ours, weight, bias = streamed(arguments, folder, x, y)
    ours |= measured(x, y, weight, bias, arguments.l2)
    print(f"streamtrain: {ours}", file=sys.stderr, flush=True)
    result: Result = {
        "check": "lbfgs",
        "optimizer": arguments.optimizer,
        "data": f"{arguments.samples} made samples" if arguments.samples else "Fashion-MNIST",
        "n_samples": len(x),
        "l2": arguments.l2,
        "grad_tolerance": arguments.grad_tolerance,
        "streamtrain": ours,
    }
    fits = ours["grad_norm"] <= 1.001 * arguments.grad_tolerance
    if arguments.peer != "none":
        peer, weight, bias = in_ram(arguments, folder, x, y)
        peer |= measured(x, y, weight, bias, arguments.l2)
        difference = ours["objective"] - peer["objective"]
        fits = fits and abs(difference) <= arguments.tolerance
        result |= {"scikit-learn": peer, "difference": difference}
    yield result | {"ok": fits}


def describe(result: Result) -> str:
    """A line for each of the two, and their difference."""
    ours = result["streamtrain"]
    lines = [f"streamtrain   J {ours['objective']:.12f}  |gradient| {ours['grad_norm']:.2e}  {ours['passes']} passes"]
    if peer := result.get("scikit-learn"):
        found = f"J {peer['objective']:.12f}  |gradient| {peer['grad_norm']:.2e}  {peer['iterations']} iterations"
        lines += [f"scikit-learn  {found}", f"difference    {result['difference']:.1e}"]
    return "\n".join(lines)


def fashion_mnist(folder: Path) -> tuple[Array, Array]:
    """The training images, (60000, 784) bytes, and labels."""
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    if not images.exists():
        raise st.StreamtrainError(f"{images} is missing", fix="python scripts/data/fashion_mnist.py")
    return read_idx(images).reshape(-1, 784), read_idx(labels).astype(np.int64)


def made(n_samples: int) -> tuple[Array, Array]:
    """Ten classes of noisy bytes in 20 columns."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n_samples)
    centers = rng.uniform(60, 200, (10, 20))
    return np.clip(centers[y] + rng.normal(0, 60, (n_samples, 20)), 0, 255).astype(np.uint8), y


def streamed(arguments: argparse.Namespace, folder: Path, x: Array, y: Array) -> tuple[dict[str, Any], Array, Array]:
    """Ingest and train; return what it took, and the weights (classes, features) and biases."""
    dataset = st.ingest({"x": x, "y": y}, folder / "d.zarr")
    model = nn.Linear(x.shape[1], 10, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    trainer = st.Trainer(
        model,
        loss="cross_entropy",
        optimizer=arguments.optimizer,
        update="epoch",
        l2=arguments.l2,
        grad_tolerance=arguments.grad_tolerance,
        normalize={"x": Scale()},
        device="cpu",
    )
    started = time.perf_counter()
    with st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory, shuffle=False) as loader:
        history = trainer.fit(loader, max_epochs=arguments.max_passes)
    took = {
        "passes": history.counts.n_epochs,
        "steps": history.counts.n_steps,
        "stopped_by": history.stopped_by,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return took, model.weight.detach().numpy(), model.bias.detach().numpy()


def in_ram(arguments: argparse.Namespace, folder: Path, x: Array, y: Array) -> tuple[dict[str, Any], Array, Array]:
    """Scikit-learn's result, from an environment of its own."""
    import json

    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    python = folder / "venv" / "bin" / "python"
    call([sys.executable, "-m", "venv", folder / "venv"])
    call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "scikit-learn"])
    # Its criterion is the largest component, which may be far below the norm.
    tolerance = arguments.grad_tolerance / 10
    found = json.loads(call([python, "-c", PEER, folder, arguments.l2, tolerance]))
    with np.load(folder / "peer.npz") as arrays:
        return found | {"seconds": round(found["seconds"], 1)}, arrays["weight"], arrays["bias"]


def call(command: list[Any]) -> str:
    """Run a command and return what it printed; what it complained of ends the script."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PEER_SECONDS)
    if done.returncode:
        raise st.StreamtrainError(f"{words[0]} failed: {done.stderr.strip()[-500:]}", fix="--peer none")
    return done.stdout


def measured(x: Array, y: Array, weight: Array, bias: Array, l2: float) -> dict[str, float]:
    """J and the norm of its gradient by one formula, in float64."""
    rows = x.astype(np.float64) / 255
    scores = rows @ weight.T + bias
    scores -= scores.max(axis=1, keepdims=True)
    exponentials = np.exp(scores)
    sums = exponentials.sum(axis=1)
    each = np.log(sums) - scores[np.arange(len(y)), y]
    error = exponentials / sums[:, None]
    error[np.arange(len(y)), y] -= 1
    gradient = np.hstack([(error.T @ rows / len(y) + l2 * weight).ravel(), error.mean(axis=0)])
    return {
        "objective": float(each.mean() + l2 / 2 * np.square(weight).sum()),
        "grad_norm": float(np.linalg.norm(gradient)),
    }


if __name__ == "__main__":
    main()
