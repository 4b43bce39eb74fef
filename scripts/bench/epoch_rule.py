#!/usr/bin/env python3
"""The exact gradient of a whole dataset: its cost, and its rounding.

**Cost.** A pass of the rule ``epoch`` from the store ÷ the bare forward and backward of the same batches in memory,
with no sum, no measuring and no checks. ``ready`` is the rule over those batches in memory: against it stands what the
loader alone costs. Each timed pass has a loader of its own, so that all reading falls inside the time. They take turns;
a ratio is the median of the rounds' ratios. The learning rate is too small to move a weight, so every pass is at the
same weights, and all gradients are held against the float64 sum of the bare ones.

**Exactness.** Sums of float32 gradients against the float64 sum of the same gradients, in units in the last place of
float32, the largest over all components whose sum is at least 1e-3 of the sum of their magnitudes. The gradients are
those of a small network at the batches of made-up data, drawn ones, and drawn ones that first rise and then cancel.

The data are 28 × 28 gray images, bytes, ten classes, and larger than the loader's budget, so that it must stream.
Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import torch
from torch import Tensor, nn

import streamtrain as st
from scripts.bench.train import LESS, MODELS, ReadyBatches, fit, new_loader, new_model, write_images
from scripts.runner import Result, median_ratio, new_parser, rounds, run, timed
from streamtrain.optim.gradient_sum import GRAD_SUM_DTYPES, GradientSum
from streamtrain.training.batch_stream import normalize_fields

WAYS: Final = ("store", "ready", "bare")
BARS: Final = {"ratio_to_bare": 1.05}
ULP_BAR: Final = 4
LEAST_SHARE: Final = 1e-3
UNMOVED_LR: Final = 1e-30
TOLERANCE: Final = 1e-4
"""Of the gradients against one another: backward rounds in float32, and in another order with other shapes."""


def main() -> None:
    """Measure, and print each result."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments, measure, describe, fix=LESS)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure what it costs for every model and dtype, and then how exact it is."""
    if arguments.models:
        dataset = write_images(folder, arguments)
        for name, dtype in itertools.product(arguments.models, arguments.dtypes):
            yield bench(name, dtype, dataset, arguments)
    for kind in GRADIENTS if arguments.gradients else ():
        yield exactness(kind, arguments.gradients)


def bench(name: str, dtype: str, dataset: st.Dataset, arguments: argparse.Namespace) -> Result:
    """Measure one model with one dtype of the sums."""
    trainers = {way: new_trainer(name, dtype) for way in ("store", "ready")}
    bare = BareLoop(name, dataset)
    ready = StoredOrder(dataset, arguments, range(1), shuffle=False)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    last = 0
    for counts, order in rounds(WAYS, arguments.repeats):
        last += arguments.passes
        for way in order:
            gc.collect()
            if way == "store":
                with new_loader(dataset, arguments, shuffle=False) as loader:
                    took = timed(fit, trainers[way], loader, last)
            else:
                act = (bare.run, ready, arguments.passes) if way == "bare" else (fit, trainers[way], ready, last)
                took = timed(*act)
            seconds[way] += [took] if counts else []
    expected = bare.whole_gradient(ready)
    error = max(relative_error(gradient_of(trainer.model), expected) for trainer in trainers.values())
    if not error <= TOLERANCE:
        raise SystemExit(f"error: the gradient of {name} is off by {error:.2g} of its norm")
    return {
        "bench": "epoch_rule",
        "model": MODELS[name],
        "grad_sum_dtype": dtype,
        "samples": len(dataset),
        "sample": "28x28 uint8, normalized by mean and std",
        "codec": dataset.layout.codec,
        "cache": "warm",
        "decoded_bytes": dataset.nbytes,
        "memory": arguments.memory,
        "batch_size": arguments.batch_size,
        "passes_a_turn": arguments.passes,
        "rounds": arguments.repeats,
        "torch_threads": torch.get_num_threads(),
        **{f"{way}_pass_s": round(statistics.median(took) / arguments.passes, 4) for way, took in seconds.items()},
        "ratio_to_bare": median_ratio(seconds["store"], seconds["bare"]),
        "ready_to_bare": median_ratio(seconds["ready"], seconds["bare"]),
        "ratios_to_bare": [round(a / b, 3) for a, b in zip(seconds["store"], seconds["bare"], strict=True)],
        "error_of_gradient": error,
        "bars": BARS,
    }


def new_trainer(name: str, dtype: str) -> st.Trainer:
    """A trainer whose model begins with the same weights each time, and keeps them."""
    return st.Trainer(
        new_model(name),
        loss="cross_entropy",
        optimizer="sgd",
        lr=UNMOVED_LR,
        update="epoch",
        grad_sum_dtype=dtype,
        normalize="auto",
        device="cpu",
    )


class StoredOrder(ReadyBatches):
    """Batches in memory that are the same in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: there is one order."""


class BareLoop:
    """Forward and backward over batches in memory, and nothing else."""

    def __init__(self, name: str, dataset: st.Dataset) -> None:
        self.model = new_model(name)
        self._whole = nn.Sequential(normalize_fields(dataset, ("x",))["x"], self.model)

    def run(self, ready: ReadyBatches, passes: int) -> None:
        """Go over every batch."""
        for _ in range(passes):
            for batch in ready.all_batches():
                self._backward(batch)

    def _backward(self, batch: Any) -> None:
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(nn.functional.cross_entropy(self._whole(batch.x), batch.y))

    def whole_gradient(self, ready: ReadyBatches) -> Tensor:
        """The gradient of the mean over all samples: the batches' gradients by their sizes, in float64."""
        total, n_samples = torch.zeros(()), 0
        for batch in ready.all_batches():
            self._backward(batch)
            total = total + gradient_of(self.model) * len(batch.y)
            n_samples += len(batch.y)
        return total / n_samples


def gradient_of(model: nn.Module) -> Tensor:
    """All gradients of a model as one float64 vector."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())


def network_gradients(n: int) -> Iterator[Tensor]:
    """The batch gradients of a small network, near a minimum, where they cancel most."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 4, generator=generator)
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    for _ in range(n):
        x = torch.randn(7, 12, generator=generator)
        net.zero_grad(set_to_none=True)
        torch.autograd.backward(nn.functional.cross_entropy(net(x), (x @ weight).argmax(1), reduction="sum"))
        yield torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def drawn_gradients(n: int) -> Iterator[Tensor]:
    """Normal numbers about means of all sizes."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.logspace(-3, 1, 2048)
    for _ in range(n):
        yield torch.randn(2048, generator=generator) + mean


def cancelling_gradients(n: int) -> Iterator[Tensor]:
    """Normal numbers about 1 and, in the second half, about almost -1: the sum rises far above its end."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.linspace(0.004, 0.1, 2048)
    for i in range(n):
        yield torch.randn(2048, generator=generator) / 4 + (1.0 if i < n // 2 else rest - 1.0)


GRADIENTS: Final[dict[str, Callable[[int], Iterator[Tensor]]]] = {
    "network": network_gradients,
    "drawn": drawn_gradients,
    "cancelling": cancelling_gradients,
}


def exactness(kind: str, n: int) -> Result:
    """Sum gradients of a kind in both forms of float32, and hold the sums against the float64 sum."""
    sums: dict[str, tuple[nn.Parameter, GradientSum]] = {}
    for dtype in ("compensated", "float32"):
        parameter = nn.Parameter(torch.zeros(0))
        sums[dtype] = parameter, GradientSum(dtype)
    total, magnitudes = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for gradient in GRADIENTS[kind](n):
        # Widened first: a scalar of float64 and a vector of float32 make a vector of float32.
        total = total + gradient.double()
        magnitudes = magnitudes + gradient.double().abs()
        for parameter, found in sums.values():
            parameter.data = torch.empty_like(gradient) if parameter.shape != gradient.shape else parameter.data
            parameter.grad = gradient
            found.add([parameter], 1.0)
    held = total.abs() >= LEAST_SHARE * magnitudes
    errors: dict[str, float] = {}
    for dtype, (parameter, found) in sums.items():
        found.put([parameter])
        assert parameter.grad is not None
        errors[dtype] = round(float(ulps(parameter.grad, total)[held].max()), 3)
    return {
        "bench": "gradient_sum",
        "gradients": kind,
        "n": n,
        "components": total.numel(),
        "components_held": int(held.sum()),
        "least_share": LEAST_SHARE,
        **{f"{dtype}_ulp": error for dtype, error in errors.items()},
        "bars": {"compensated_ulp": ULP_BAR},
    }


def ulps(found: Tensor, expected: Tensor) -> Tensor:
    """How far float32 numbers are from float64 ones, in units in the last place of float32."""
    rounded = expected.to(torch.float32).abs()
    unit = torch.nextafter(rounded, torch.full_like(rounded, torch.inf)) - rounded
    return (found.double() - expected).abs() / unit


def describe(result: Result) -> str:
    """One line for people."""
    if result["bench"] == "gradient_sum":
        return describe_exactness(result)
    times = "  ".join(f"{way} {result[f'{way}_pass_s']:>7.3f}" for way in WAYS)
    return (
        f"{result['model']:<12} {result['grad_sum_dtype']:<12} seconds a pass: {times}  store/bare "
        f"{result['ratio_to_bare']:.3f}  ready/bare {result['ready_to_bare']:.3f}"
    )


def describe_exactness(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['n']:,} {result['gradients']} gradients, {result['components_held']:,} of {result['components']:,} "
        f"components: compensated {result['compensated_ulp']:.2f} ulp, float32 {result['float32_ulp']:,.2f} ulp"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        __doc__,
        samples=60_000,
        codec="auto",
        memory="32MB",
        batch_size=1024,
        repeats=5,
        threads=None,
        folder=None,
    )
    parser.add_argument("--models", nargs="*", default=["mlp", "cnn"], choices=list(MODELS), help="models (mlp cnn)")
    parser.add_argument("--dtypes", nargs="+", default=list(GRAD_SUM_DTYPES), choices=GRAD_SUM_DTYPES, help="all")
    parser.add_argument("--passes", type=int, default=3, help="passes of a turn (default 3)")
    parser.add_argument("--gradients", type=int, default=100_000, help="gradients of a sum (default 100000; 0 none)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
