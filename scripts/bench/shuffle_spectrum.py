#!/usr/bin/env python3
"""The spectrum of the loader's order, over many shapes: no labels may make batches worse than a full reshuffle.

A batch's samples are marked with 1; the power of that at every frequency, in the mean of many batches and divided by
a full reshuffle's, is how much more the batches vary for sinusoidal labels of that period. Its mean over frequencies is
1. *power* is its largest value in the whole epoch and in the first and last 2 % of it, each beside that of as many
batches of full reshuffles: of thousands of frequencies one is always large by chance.

Shapes are drawn from a seed: samples, block rows, batch size; a third held in memory whole, a third with the lanes and
groups that follow where a quarter of the blocks fit in memory, a third where a thirtieth or a two-hundredth do. With
fewer lanes than a batch has samples, some of these come from one block: so many times more power is allowed.

Prints a line for people on stderr and one JSON line on stdout per shape. Exit code 1 where a power is too large.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.bench.shuffle_budget import smallest_memory
from scripts.bench.shuffle_orders import I64
from scripts.runner import Result, new_parser, run
from streamtrain.loader.budget import LoaderSizes, solve
from streamtrain.store.layout import Field, Layout

PARTS: Final = {"whole": (0.0, 1.0), "first 2 %": (0.0, 0.02), "last 2 %": (0.98, 1.0)}
"""Parts of an epoch that are looked at alone: what is wrong in few batches does not show among all."""
_MARKS_AT_ONCE: Final = 1 << 24
MOST: Final = {"whole": 1.25, "first 2 %": 1.75, "last 2 %": 1.75}
"""The most power, in that of reshuffles; the ends have few batches."""
LEAST_SAMPLES: Final = 5_000
MOST_SAMPLES: Final = 200_000
SHARES: Final = (1, 4, 30, 200)
"""Blocks of the dataset ÷ blocks in memory."""
_ROW_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an order follows from; ``lanes`` and ``groups`` are None where the data is held whole."""

    n_samples: int
    block_rows: int
    batch_size: int
    share: int
    lanes: int | None
    groups: int | None

    @property
    def samples_of_a_block(self) -> float:
        """How many samples of a batch come from one block."""
        return max(1.0, self.batch_size / self.lanes) if self.lanes else 1.0


def main() -> None:
    """Draw the shapes, and measure them."""
    arguments = parse_arguments()
    if arguments.list:
        for shape in draw_shapes(arguments.shapes, arguments.seed, arguments.samples):
            words = (shape.n_samples, shape.block_rows, shape.batch_size, shape.lanes, shape.groups)
            print(*(word for word in words if word is not None))
        return
    results = run(arguments, measure_shapes, describe, fix="another --folder")
    sys.exit(any(result["bar_met"] is False for result in results))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, samples=MOST_SAMPLES, seed=0, folder=None)
    parser.add_argument("--shapes", type=int, default=40, help="how many shapes (default 40)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each (default 12)")
    parser.add_argument("--most-batches", type=int, default=4000, help="batches of each part, at most (default 4000)")
    parser.add_argument(
        "--list", action="store_true", help="only print them: samples, block rows, batch size, lanes, groups"
    )
    return parser.parse_args()


def draw_shapes(n_shapes: int, seed: int, most_samples: int = MOST_SAMPLES) -> list[Shape]:
    """Shapes from a seed, evenly on a scale of magnitudes, of so many samples at the most."""
    rng = np.random.default_rng(seed)
    drawn: list[Shape] = []
    while len(drawn) < n_shapes:
        n_samples = int(np.exp(rng.uniform(np.log(LEAST_SAMPLES), np.log(most_samples + 1))))
        block_rows = int(np.exp(rng.uniform(0, np.log(501))))
        batch_size = int(np.exp(rng.uniform(0, np.log(4_097))))
        share = (SHARES[0], SHARES[1], int(rng.choice(SHARES[2:])))[len(drawn) % 3]
        # Of one sample there is no batch to vary, and of fewer than three full ones none that could be compared.
        if batch_size == 1 or n_samples < 3 * batch_size:
            continue
        sizes = sizes_for(n_samples, block_rows, batch_size, share) if share > 1 else None
        if share == 1 or sizes:
            drawn.append(
                Shape(
                    n_samples=n_samples,
                    block_rows=block_rows,
                    batch_size=batch_size,
                    share=share,
                    lanes=sizes.lanes if sizes else None,
                    groups=sizes.groups if sizes else None,
                )
            )
    return drawn


def sizes_for(n_samples: int, block_rows: int, batch_size: int, share: int) -> LoaderSizes | None:
    """The sizes of the smallest budget that holds one block of so many; None where the least that works holds more."""
    field = Field(name="x", dtype=np.dtype("u1"), shape=(_ROW_BYTES,))
    layout = Layout(fields=(field,), n_samples=n_samples, block_rows=block_rows, shard_blocks=1000, codec="none")
    wanted = layout.n_blocks // share
    memory = smallest_memory(layout, batch_size, is_enough=lambda sizes: sizes.slots >= wanted)
    sizes, _ = solve(layout, batch_size=batch_size, memory=memory)
    return sizes if sizes.slots <= max(wanted, 1) * 1.1 else None


def measure_shapes(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure each shape through the real loader, on row numbers."""
    for place, shape in enumerate(draw_shapes(arguments.shapes, arguments.seed, arguments.samples)):
        ours = loader_orders(folder / f"{place}.zarr", shape, arguments.epochs)
        rng = np.random.default_rng(7)
        reshuffles = [rng.permutation(shape.n_samples) for _ in range(arguments.epochs)]
        power = {
            part: [
                largest_power(orders, shape.batch_size, part=part, most_batches=arguments.most_batches)
                for orders in (ours, reshuffles)
            ]
            for part in PARTS
        }
        yield {
            "bench": "shuffle-spectrum",
            "samples": shape.n_samples,
            "block_rows": shape.block_rows,
            "batch_size": shape.batch_size,
            "blocks_of_which_one_is_held": shape.share,
            "lanes": shape.lanes,
            "groups": shape.groups,
            "epochs": arguments.epochs,
            "power": {part: round(mine, 3) for part, (mine, _) in power.items()},
            "reference": {"power": {part: round(chance, 3) for part, (_, chance) in power.items()}},
            "bar": MOST,
            "bar_met": all(
                mine <= MOST[part] * shape.samples_of_a_block * chance for part, (mine, chance) in power.items()
            ),
        }


def loader_orders(path: Path, shape: Shape, n_epochs: int) -> Sequence[I64]:
    """The samples of some epochs as the loader yields them."""
    rows = np.arange(shape.n_samples)
    dataset = st.ingest({"row": rows}, path, block=8 * shape.block_rows, codec="none", progress=False)
    given: dict[str, Any] = {"lanes": shape.lanes, "groups": shape.groups} if shape.lanes else {}
    with st.StreamLoader(dataset, batch_size=shape.batch_size, seed=1, **given) as loader:
        orders = [np.concatenate([batch.row.numpy() for batch in loader]) for _ in range(n_epochs)]
    assert all(np.array_equal(np.sort(order), rows) for order in orders), "not every sample once"
    return orders


def largest_power(orders: Sequence[I64], batch_size: int, *, part: str = "whole", most_batches: int = 4000) -> float:
    """The largest value of the spectrum of full batches, over all frequencies; 1 is a full reshuffle's expectation.

    Parameters
    ----------
    orders : sequence of (n_samples,) int64
        Epochs.
    part : str
        One of ``PARTS``.
    most_batches : int
        So many batches at the most, evenly from all there are.
    """
    n_samples = len(orders[0])
    n_full = n_samples // batch_size
    first, end = (int(share * n_full) for share in PARTS[part])
    batches = np.concatenate(
        [order[: n_full * batch_size].reshape(n_full, -1)[first : max(end, first + 1)] for order in orders]
    )
    batches = batches[np.linspace(0, len(batches) - 1, min(most_batches, len(batches))).astype(int)]
    total = np.zeros(n_samples // 2 + 1)
    for some in np.array_split(batches, max(1, len(batches) * n_samples // _MARKS_AT_ONCE)):
        marks = np.zeros((len(some), n_samples), np.float32)
        np.put_along_axis(marks, some, 1, axis=1)
        total += (np.abs(np.fft.rfft(marks, axis=1)) ** 2).sum(axis=0)
    expected = batch_size * (n_samples - batch_size) / (n_samples - 1)
    return float(total[1:].max() / len(batches) / expected)


def describe(result: Result) -> str:
    """One line for people."""
    lanes = f"{result['lanes']:>5} lanes {result['groups']:>3} groups" if result["lanes"] else f"{'held whole':>22}"
    parts = "  ".join(
        f"{part} {power:.2f} / {result['reference']['power'][part]:.2f}" for part, power in result["power"].items()
    )
    return (
        f"{result['samples']:>7} samples, blocks of {result['block_rows']:>3}, batches of {result['batch_size']:>4}, "
        f"{lanes}  {parts}{'' if result['bar_met'] else '  TOO MUCH'}"
    )


if __name__ == "__main__":
    main()
