#!/usr/bin/env python3
"""The sample rule's fast path against the plain one-sample loop: samples a second, each on the same samples in turn.

A model with one hidden layer (784-128-10 unless told otherwise) learns ten classes of made images from batches in
memory, by SGD and by Adam. ``fast`` and ``plain`` are the rule's two paths; ``hand`` is the loop one writes by hand,
with nothing but forward, loss, backward and step, and the ratio is against it. All start with the same weights and are
handed the same batches; the first ones are left out. A ratio is the median of the rounds' ratios, and the weights are
compared at the end.

Beside them stands the floor: the matrix-vector products of a step and the passes over the weights, and nothing else.
For Adam that is two products, the gradient written down, and one fused pass over weights, gradient and both moments.

Plain Adam meets subnormal numbers: the moments of a unit that is off shrink, and end there. The processor takes long
over them; the fast path takes them as 0. How many there are at the end of the plain loop is a figure, too.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import torch
from torch import Tensor, nn

from scripts.runner import Result, median_ratio, new_parser, rounds, run, timed
from streamtrain.models.factory import build_model
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.optimizers import build_optimizer
from streamtrain.optim.sample_rule import SampleRule

WAYS: Final = ("fast", "plain", "hand")
OPTIMIZERS: Final = ("sgd", "adam")
RATES: Final = {"sgd": 0.01, "adam": 1e-3}
N_CLASSES: Final = 10
BAR: Final = 4.0
"""At least: the fast path's speed ÷ that of the loop by hand."""


def main() -> None:
    """Measure, and print each result."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments, measure, describe)


def measure(_: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every optimizer."""
    for optimizer in arguments.optimizers:
        yield bench(optimizer, arguments)


def bench(optimizer: str, arguments: argparse.Namespace) -> Result:
    """Measure one optimizer."""
    batches = make_batches(arguments.warmup + arguments.repeats, arguments)
    rules = {way: new_rule("fast" if way == "fast" else "plain", optimizer, arguments) for way in WAYS}
    acts = {way: learn_by_hand if way == "hand" else learn for way in WAYS}
    first = {way: timed(acts[way], rules[way], batches[0]) for way in WAYS}
    steady = {way: timed(acts[way], rules[way], batches[0]) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    turns = rounds(WAYS, len(batches) - 1)
    for i, (batch, (_, order)) in enumerate(zip(batches, turns, strict=True)):
        for way in order:
            took = timed(acts[way], rules[way], batch)
            seconds[way] += [took] if i >= arguments.warmup else []
    speeds = {way: arguments.batch_size / statistics.median(seconds[way]) for way in WAYS}
    floor_seconds = floor(rules["fast"].learner, batches[0][0][0], arguments.repeats)
    return {
        "bench": "sample_rule",
        "model": f"{arguments.inputs}-{arguments.hidden}-{N_CLASSES}",
        "optimizer": optimizer,
        "batch_size": arguments.batch_size,
        "rounds": arguments.repeats,
        "samples_before": (arguments.warmup + 2) * arguments.batch_size,
        "torch_threads": torch.get_num_threads(),
        **{f"{way}_samples_s": round(speeds[way]) for way in WAYS},
        "floor_samples_s": round(1 / floor_seconds),
        "ratio": median_ratio(seconds["hand"], seconds["fast"]),
        "ratio_to_plain": median_ratio(seconds["plain"], seconds["fast"]),
        "fast_to_floor": round(speeds["fast"] * floor_seconds, 3),
        **{f"{way}_startup_s": round(max(0.0, first[way] - steady[way]), 4) for way in WAYS},
        "hand_subnormal_fraction": round(subnormal_fraction(rules["hand"].learner), 4),
        "largest_difference": difference(rules["fast"].learner.model, rules["hand"].learner.model),
        "bars": {"ratio": BAR},
    }


def make_batches(n_batches: int, arguments: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Noisy images of ten classes, float32, and their labels."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(N_CLASSES, arguments.inputs, generator=generator)
    batches = []
    for _ in range(n_batches):
        labels = torch.randint(0, N_CLASSES, (arguments.batch_size,), generator=generator)
        noise = torch.randn(arguments.batch_size, arguments.inputs, generator=generator)
        batches.append((0.1 * classes[labels] + noise, labels))
    return batches


def new_rule(path: str, optimizer: str, arguments: argparse.Namespace) -> SampleRule:
    """The sample rule at work on a model with the same weights each time."""
    model = build_model(f"mlp:{arguments.hidden}", input_shape=(arguments.inputs,), n_outputs=N_CLASSES, seed=0)
    made = build_optimizer(optimizer, model.parameters(), lr=RATES[optimizer])
    return SampleRule(Learner(model=model, loss=resolve_loss("cross_entropy"), optimizer=made), path=path)


def learn(rule: SampleRule, batch: tuple[Tensor, Tensor]) -> None:
    """Take in a batch, a step a sample."""
    rule.learn(TrainingBatch(inputs=(batch[0],), target=batch[1]))


def learn_by_hand(rule: SampleRule, batch: tuple[Tensor, Tensor]) -> None:
    """The same by the loop that one writes by hand."""
    model, optimizer = rule.learner.model, rule.learner.optimizer
    for x, label in zip(batch[0].split(1), batch[1].split(1), strict=True):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), label))
        optimizer.step()


def floor(learner: Learner, x: Tensor, repeats: int) -> float:
    """The seconds of what no step on one sample can do without: the median over some rounds."""
    weights = [module.weight.detach() for module in learner.model.modules() if isinstance(module, nn.Linear)]
    step = bare_adam(weights, x) if isinstance(learner.optimizer, torch.optim.Adam) else bare_sgd(weights, x)
    n_steps = 200

    def run() -> None:
        for _ in range(n_steps):
            step()

    with torch.inference_mode():
        run()
        return statistics.median(timed(run) / n_steps for _ in range(max(3, repeats)))


def bare_sgd(weights: list[Tensor], x: Tensor) -> Callable[[], None]:
    """Forward, back to the hidden layer, and both layers' update in one pass each."""
    first, second = (weight.clone() for weight in weights)
    hidden, out = first.new_zeros(len(first)), second.new_zeros(len(second))

    def step() -> None:
        torch.mv(first, x, out=hidden)
        torch.mv(second, hidden, out=out)
        torch.mv(second.t(), out, out=hidden)
        second.addmm_(out[:, None], hidden[None], alpha=0.0)
        first.addmm_(hidden[:, None], x[None], alpha=0.0)

    return step


def bare_adam(weights: list[Tensor], x: Tensor) -> Callable[[], None]:
    """Forward, back to the hidden layer, the gradient written down, and one fused pass."""
    own = [weight.clone() for weight in weights]
    first, second = own
    hidden, out = first.new_zeros(len(first)), second.new_zeros(len(second))
    gradients = [torch.empty_like(weight) for weight in own]
    counts = [torch.tensor(10.0)] * len(own)
    options: dict[str, Any] = {"lr": 0.0, "beta1": 1.0, "beta2": 1.0, "weight_decay": 0.0, "eps": 1e-8}
    options |= {"amsgrad": False, "maximize": False}
    means, squares = ([torch.full_like(weight, 0.01) for weight in own] for _ in range(2))

    def step() -> None:
        torch.mv(first, x, out=hidden)
        torch.mv(second, hidden, out=out)
        torch.mv(second.t(), out, out=hidden)
        torch.mm(out[:, None], hidden[None], out=gradients[1])
        torch.mm(hidden[:, None], x[None], out=gradients[0])
        torch._fused_adam_(own, gradients, means, squares, [], counts, **options)

    return step


def subnormal_fraction(learner: Learner) -> float:
    """How much of Adam's moments is subnormal."""
    moments = [state[name] for state in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    if not moments:
        return 0.0
    n_subnormal = sum(int(((m != 0) & (m.abs() < torch.finfo(m.dtype).tiny)).sum()) for m in moments)
    return n_subnormal / sum(int(m.numel()) for m in moments)


def difference(fast: nn.Module, plain: nn.Module) -> float:
    """The largest difference between their weights; stop where it is no rounding."""
    pairs = list(zip(fast.parameters(), plain.parameters(), strict=True))
    if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs):
        raise SystemExit("error: after the same samples the two paths' weights differ")
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{result['model']} {result['optimizer']:<5} samples/s: "
        + "".join(f"{name} {result[f'{name}_samples_s']:>6,}  " for name in (*WAYS, "floor"))
        + f"fast/hand {result['ratio']:.2f} (bar {BAR:g})  starts in {result['fast_startup_s']:.3f} s"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, batch_size=256, repeats=15, threads=None)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS, help="(sgd and adam)")
    parser.add_argument("--inputs", type=int, default=784, help="numbers of a sample (default 784)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layer (default 128)")
    parser.add_argument("--warmup", type=int, default=16, help="rounds that are left out (default 16)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
