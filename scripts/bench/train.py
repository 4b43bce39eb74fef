#!/usr/bin/env python3
"""The cost of training from the store: epoch time from the store ÷ epoch time of an ideal loop in memory.

Three ways to train on the very same batches in the same order. ``store`` is `Trainer.fit` on a loader. ``ready`` is
`Trainer.fit` on a list in which those batches lie ready as tensors, the best that any loader could be: against it
stands what the loader alone costs. ``ideal`` is what one writes by hand over that list, with nothing but forward,
loss, backward and step: no metrics, no checks. Each timed pass has a loader of its own, so that all reading falls
inside the time. They take turns; a ratio is the median of the rounds' ratios. All must end with the same weights.

The data are 28 × 28 gray images, bytes, ten classes, sorted by class, and larger than the loader's budget, so that it
must stream. Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import torch
from torch import nn

import streamtrain as st
from scripts.data.synthetic import Recipe, arrays_of
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.models.factory import build_model
from streamtrain.training.batch_stream import normalize_fields

SHAPE: Final = (28, 28)
MODELS: Final = {"linear": "linear", "mlp": "mlp:256,128", "cnn": "cnn"}
N_CLASSES: Final = 10
LESS: Final = "fewer --samples, or another --folder"
WAYS: Final = ("store", "ready", "ideal")
BARS: Final = {"ratio_to_ideal": 1.05, "stall_fraction": 0.02}
"""At most; for the models that compute something."""


def main() -> None:
    """Measure, and print each result."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments, measure, describe, fix=LESS)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every model."""
    dataset = write_images(folder, arguments)
    for name in arguments.models:
        yield bench(name, dataset, arguments)


def write_images(folder: Path, arguments: argparse.Namespace) -> st.Dataset:
    """Write the images, where there is room for them."""
    n_classes = min(N_CLASSES, arguments.samples)
    recipe = Recipe(n_samples=arguments.samples, shape=SHAPE, compressibility=2.0, n_classes=n_classes)
    require_disk(folder, recipe.n_bytes, fix=LESS)
    return st.ingest(arrays_of(recipe), folder / "images.zarr", codec=arguments.codec)


def bench(name: str, dataset: st.Dataset, arguments: argparse.Namespace) -> Result:
    """Measure one model."""
    trainers = {way: new_trainer(name) for way in ("store", "ready")}
    plain = PlainLoop(name, dataset)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    stalls: list[float] = []
    last = 0
    for counts, order in rounds(WAYS, arguments.repeats):
        first, last = last, last + arguments.epochs
        ready = ReadyBatches(dataset, arguments, range(first, last))
        for way in order:
            gc.collect()
            if way == "store":
                with new_loader(dataset, arguments) as loader:
                    took = timed(fit, trainers[way], loader, last)
                    stalls += [loader.wait_seconds / took] if counts else []
            else:
                took = timed(plain.run, ready) if way == "ideal" else timed(fit, trainers[way], ready, last)
            seconds[way] += [took] if counts else []
    check_same([trainers["store"].model, trainers["ready"].model, plain.model])
    n_seen = len(dataset) * arguments.epochs
    return {
        "bench": "train",
        "model": MODELS[name],
        "optimizer": "adam",
        "samples": len(dataset),
        "sample": "28x28 uint8, normalized by mean and std",
        "codec": dataset.layout.codec,
        "cache": "warm",
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
        "epochs_a_pass": arguments.epochs,
        "rounds": arguments.repeats,
        "torch_threads": torch.get_num_threads(),
        **{f"{way}_epoch_s": round(statistics.median(took) / arguments.epochs, 4) for way, took in seconds.items()},
        "samples_s": round(n_seen / statistics.median(seconds["store"])),
        "ratio_to_ideal": median_ratio(seconds["store"], seconds["ideal"]),
        "ratio_to_ready": median_ratio(seconds["store"], seconds["ready"]),
        "ratios_to_ideal": [round(a / b, 3) for a, b in zip(seconds["store"], seconds["ideal"], strict=True)],
        "stall_fraction": round(statistics.median(stalls), 4),
        "bars": BARS if name != "linear" else None,
    }


def new_trainer(name: str) -> st.Trainer:
    """A trainer whose model begins with the same weights each time."""
    return st.Trainer(new_model(name), loss="cross_entropy", optimizer="adam", normalize="auto", device="cpu")


def new_model(name: str) -> nn.Module:
    """A model with the same weights each time."""
    return build_model(MODELS[name], input_shape=SHAPE, n_outputs=N_CLASSES, seed=0)


def new_loader(dataset: st.Dataset, arguments: argparse.Namespace, *, shuffle: bool = True) -> st.StreamLoader:
    """A loader that has read nothing yet."""
    return st.StreamLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory, shuffle=shuffle)


def fit(trainer: st.Trainer, stream: Any, max_epochs: int) -> None:
    """Train on up to a total of epochs."""
    trainer.fit(stream, max_epochs=max_epochs, progress=False)


class PlainLoop:
    """The loop one writes by hand over batches in memory, and the model it trains."""

    def __init__(self, name: str, dataset: st.Dataset) -> None:
        self.model = new_model(name)
        self._whole = nn.Sequential(normalize_fields(dataset, ("x",))["x"], self.model)
        self._optimizer = torch.optim.Adam(self.model.parameters())

    def run(self, ready: ReadyBatches) -> None:
        """Train on every batch of every epoch."""
        for batch in ready.all_batches():
            loss = nn.functional.cross_entropy(self._whole(batch.x), batch.y)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()


class ReadyBatches:
    """A stream whose batches are all in memory before it starts: those that the loader gives.

    Parameters
    ----------
    dataset : Dataset
        What they are from.
    arguments : argparse.Namespace
        ``batch_size`` and ``memory`` of the loader.
    epochs : range
        Which epochs are held.
    shuffle : bool
        Whether the loader shuffles; else they are in stored order.
    """

    drop_last = False
    wait_seconds = 0.0

    def __init__(
        self, dataset: st.Dataset, arguments: argparse.Namespace, epochs: range, *, shuffle: bool = True
    ) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.batch_size: int = arguments.batch_size
        self._batches: dict[int, list[Any]] = {}
        self._epoch = epochs.start
        with new_loader(dataset, arguments, shuffle=shuffle) as loader:
            self.seed = loader.seed
            for epoch in epochs:
                loader.set_epoch(epoch)
                # Copies: each batch in memory of its own, as a list of tensors has it.
                self._batches[epoch] = [type(batch)(*(tensor.clone() for tensor in batch)) for batch in loader]

    def __len__(self) -> int:
        return len(self._batches[self._epoch])

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches[self._epoch]
        self._epoch = min(self._epoch + 1, max(self._batches))
        return iter(batches)

    def all_batches(self) -> Iterator[Any]:
        """Those of every epoch, one after another."""
        return itertools.chain.from_iterable(self._batches.values())

    def set_epoch(self, epoch: int) -> None:
        """Name the next epoch."""
        self._epoch = epoch

    def sequential(self) -> ReadyBatches:
        """These: they lie in the one order they have."""
        return self

    def close(self) -> None:
        """Nothing is open."""


def check_same(models: list[nn.Module]) -> None:
    """Stop where they were not trained on the same batches."""
    first, *others = (model.state_dict() for model in models)
    for other in others:
        different = [name for name in first if not torch.allclose(first[name], other[name], rtol=1e-3, atol=1e-4)]
        if different:
            raise SystemExit(f"error: after the same batches the models differ in {', '.join(different)}")


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    times = "  ".join(f"{way} {result[f'{way}_epoch_s']:>7.3f}" for way in WAYS)
    return (
        f"{result['model']:<12} seconds an epoch: {times}  store/ideal {result['ratio_to_ideal']:.3f}  "
        f"store/ready {result['ratio_to_ready']:.3f}  stalled {result['stall_fraction']:.1%}  "
        f"{result['samples_s']:>9,} samples/s"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        __doc__,
        samples=60_000,
        codec="auto",
        memory="32MB",
        batch_size=128,
        repeats=5,
        threads=None,
        folder=None,
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="models (all)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a timed pass (default 3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
