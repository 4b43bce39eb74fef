#!/usr/bin/env python3
"""The README's picture: the memory of a process that streams a dataset, beside that of one that loads it.

Both read the same dataset once, each in a process of its own, and read their own memory as they go: anonymous memory
above what the process held before, so without Python, PyTorch and the page cache. ``--svg FILE`` draws both curves and
the budget: ``scripts/proofs/picture.py --svg streamtrain/guide/memory.svg``.

Prints a line for each on stderr and one JSON line on stdout. Exits with code 1 where the budget did not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import streamtrain as st
from scripts.data.synthetic import LABEL_BYTES, Recipe, write_dataset
from scripts.runner import Result, new_parser, require_disk, run
from streamtrain.system.memory import MemoryMeter, held_bytes
from streamtrain.system.units import format_bytes, parse_bytes

ROW_BYTES: Final = 3072
BATCH_SIZE: Final = 256
N_POINTS: Final = 120
"""Points of a curve."""

WAYS: Final = ("streamed", "loaded")
PAPER, INK, LINE, LIMIT, FAINT = "#ffffff", "#1f2328", "#0969da", "#c1272d", "#6e7781"
DARK: Final = {PAPER: "#0d1117", INK: "#e6edf3", LINE: "#58a6ff", LIMIT: "#ff7b72", FAINT: "#9198a1"}
"""The picture's colors, and what each becomes where the reader prefers dark pages."""


def main() -> None:
    """Measure both ways, or the one that this process was started for."""
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(measure(arguments)))
        return
    results = run(arguments, measure_both, describe)
    if arguments.svg:
        arguments.svg.write_text(picture(results))
    raise SystemExit(1 if results[0]["peak_bytes"] > results[0]["budget_bytes"] else 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, size="2GB", memory="128MB", folder=None)
    parser.add_argument("--svg", type=Path, help="draw the curves into this file")
    parser.add_argument("--case", nargs=2, metavar=("DATASET", "WAY"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_both(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the dataset, and read it both ways."""
    n_samples = parse_bytes(arguments.size, name="--size") // (ROW_BYTES + LABEL_BYTES)
    recipe = Recipe(n_samples=n_samples, shape=(ROW_BYTES,), n_classes=10)
    require_disk(folder, recipe.n_bytes)
    path = folder / "d.zarr"
    write_dataset(recipe, path, codec="lz4", progress=False)
    for way in WAYS:
        words = [sys.executable, __file__, "--memory", arguments.memory, "--case", str(path), way]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        yield {"bench": "picture", "way": way, "decoded_bytes": recipe.n_bytes, **json.loads(done.stdout)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the dataset once in one of the ways, and note the memory from time to time."""
    path, way = arguments.case
    dataset = st.open(path)
    loader_class = st.StreamLoader  # Naming it imports torch, which is not the loader's memory.
    budget_bytes = parse_bytes(arguments.memory)
    points = [(0, 0)]
    apart = max(1, len(dataset) // N_POINTS)
    with MemoryMeter(0.005) as meter:
        for n_read in streamed(loader_class, dataset, budget_bytes) if way == "streamed" else loaded(dataset):
            if n_read - points[-1][0] >= apart or n_read == len(dataset):
                points.append((n_read, held_bytes() - meter.before_bytes))
    row_bytes = dataset.nbytes / len(dataset)
    return {
        "budget_bytes": budget_bytes,
        "peak_bytes": meter.peak_bytes,
        "read_bytes": [round(n_read * row_bytes) for n_read, _ in points],
        "held_bytes": [n_bytes for _, n_bytes in points],
    }


def streamed(loader_class: type[st.StreamLoader], dataset: st.Dataset, budget_bytes: int) -> Iterator[int]:
    """Take every batch of an epoch, and yield how many samples have come."""
    n_read = 0
    with loader_class(dataset, batch_size=BATCH_SIZE, memory=budget_bytes, device="cpu") as loader:
        for batch in loader:
            n_read += len(batch.y)
            yield n_read


def loaded(dataset: st.Dataset) -> Iterator[int]:
    """Read all samples into memory and keep them, and yield how many there are."""
    kept = []
    for first in range(0, len(dataset), 4 * BATCH_SIZE):
        kept.append(dataset[first : first + 4 * BATCH_SIZE])
        yield min(first + 4 * BATCH_SIZE, len(dataset))


def describe(result: Result) -> str:
    """One line for people."""
    decoded, peak = format_bytes(result["decoded_bytes"]), format_bytes(result["peak_bytes"])
    return f"{decoded} {result['way']:<8}  peak {peak:>8}  budget {format_bytes(result['budget_bytes'])}"


def picture(results: list[Result]) -> str:
    """Draw memory against bytes read, as an SVG with its own background, light or dark as the reader prefers."""
    import io

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream, load = results
    whole, budget = (stream[name] / 1e9 for name in ("decoded_bytes", "budget_bytes"))
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "picture", "font.family": "sans-serif", "font.size": 12}
    style |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with rc_context(style):
        figure = Figure(figsize=(5.6, 3.0), facecolor=PAPER, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor=PAPER)
        axes.plot(*curve(load), color=FAINT, linewidth=2)
        axes.axhline(budget, color=LIMIT, linewidth=1.5, linestyle="--")
        axes.plot(*curve(stream), color=LINE, linewidth=2.5)
        axes.text(whole / 2, whole * 0.58, "loaded into memory ", color=FAINT, ha="right")
        peak = format_bytes(stream["peak_bytes"])
        axes.text(
            whole, budget + whole * 0.02, f"budget {format_bytes(stream['budget_bytes'])}", color=LIMIT, ha="right"
        )
        axes.text(whole * 0.16, budget + whole * 0.02, f"streamed: at most {peak}", color=LINE)
        axes.set(xlabel="GB of the dataset read", ylabel="GB of memory taken")
        axes.set(xlim=(0, whole * 1.01), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    for light in DARK:
        text = text.replace(light, f"var(--c{light[1:]}, {light})")
    dark = "".join(f"--c{light[1:]}: {shade}; " for light, shade in DARK.items())
    head, svg, rest = text.partition("<svg ")
    opening, end, body = rest.partition(">")
    return (
        f"{head}{svg}{opening}{end}\n <style>@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}</style>{body}"
    )


def curve(result: Result) -> tuple[list[float], list[float]]:
    """Bytes read and bytes held, in GB."""
    return [n / 1e9 for n in result["read_bytes"]], [n / 1e9 for n in result["held_bytes"]]


if __name__ == "__main__":
    main()
