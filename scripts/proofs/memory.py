#!/usr/bin/env python3
"""The loader's memory: measured ÷ budget, over budgets, dataset sizes and codecs.

*Measured* is the peak of the process's anonymous, pinned and device memory while a loader is made, two epochs are read
and every batch is taken, less the value just before the loader was made. Each case runs in a process of its own, after
all imports. The budgets are smaller than, near, and larger than the datasets. A case whose loader is refused by its
budget is told as refused; one that takes more than its budget makes the script end with exit code 1.

``--rules sample batch epoch`` adds runs of ``streamtrain train`` on the smallest datasets. There *measured* is the
peak above what the process held with model, gradients and optimizer state but without the loader, so that what a step
takes and gives back is in it.

Prints a table on stderr and one JSON line per case on stdout; ``--png FILE`` draws them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import streamtrain as st
from scripts.data.synthetic import LABEL_BYTES, Recipe, write_dataset
from scripts.runner import Result, new_parser, require_disk, run
from streamtrain.system.memory import MemoryMeter
from streamtrain.system.units import format_bytes, parse_bytes

ROOT: Final = Path(__file__).resolve().parents[2]
BAR: Final = 1.0
LESS: Final = "smaller --sizes, or another --folder"
SAMPLING_SECONDS: Final = 0.002
RULES: Final = ("sample", "batch", "epoch")


def main() -> None:
    """Run every case, or the one that this process was started for."""
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(measure(arguments)))
        return
    results = run(arguments, measure_all, describe, fix=LESS)
    if arguments.png:
        draw([result for result in results if "rule" not in result], arguments.png)
    over = [result for result in results if result["ratio"] is not None and result["ratio"] > BAR]
    for result in over:
        print(f"over the budget: {describe(result)}", file=sys.stderr)
    raise SystemExit(1 if over else 0)


def measure_all(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Measure every case on every dataset, one after another."""
    for row_bytes, size, codec in itertools.product(arguments.row_bytes, arguments.sizes, arguments.codecs):
        yield from cases(folder / "d.zarr", row_bytes, size, codec, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        __doc__,
        row_bytes=[64, 3072, 150_528],
        codecs=["none", "lz4", "zstd"],
        batch_size=256,
        folder=None,
    )
    parser.add_argument("--budgets", nargs="+", default=["64MB", "256MB", "1GB"], help="(default 64MB 256MB 1GB)")
    parser.add_argument("--sizes", nargs="+", default=["200MB", "1GB", "4GB"], help="decoded bytes of the datasets")
    parser.add_argument("--rules", nargs="+", default=[], choices=RULES, help="also train by these update rules")
    parser.add_argument("--model", default="mlp:128", help="what --rules train (default mlp:128)")
    parser.add_argument("--max-steps", type=int, default=2000, help="steps of a training at most (default 2000)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to read in each case (default 2)")
    parser.add_argument("--sequential", action="store_true", help="read in stored order instead")
    parser.add_argument("--png", type=Path, help="draw the cases into this file")
    parser.add_argument("--case", nargs=2, metavar=("DATASET", "BUDGET"), help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(path: Path, row_bytes: int, size: str, codec: str, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make a dataset, measure it with every budget, and remove it."""
    n_samples = max(1, parse_bytes(size, name="--sizes") // (row_bytes + LABEL_BYTES))
    recipe = Recipe(n_samples=n_samples, shape=(row_bytes,), n_classes=min(10, n_samples))
    require_disk(path.parent, recipe.n_bytes, fix=LESS)
    stored_bytes = write_dataset(recipe, path, codec=codec, progress=False)
    for budget in arguments.budgets:
        yield {
            "bench": "memory",
            "row_bytes": row_bytes,
            "size": size,
            "decoded_bytes": recipe.n_bytes,
            "stored_bytes": stored_bytes,
            "codec": codec,
            "batch_size": arguments.batch_size,
            "order": "sequential" if arguments.sequential else "shuffled",
            "budget": budget,
            **in_a_fresh_process(path, budget, arguments),
        }
    if size == arguments.sizes[0]:
        yield from trainings(path, row_bytes, size, codec, arguments)
    shutil.rmtree(path)


def trainings(path: Path, row_bytes: int, size: str, codec: str, arguments: argparse.Namespace) -> Iterator[Result]:
    """Train on the dataset by each rule with every budget, each in a process of its own."""
    for rule in arguments.rules:
        for budget in arguments.budgets:
            yield {
                "bench": "memory of train",
                "row_bytes": row_bytes,
                "size": size,
                "codec": codec,
                "batch_size": arguments.batch_size,
                "rule": rule,
                "model": arguments.model,
                "budget": budget,
                **train(path, rule, budget, arguments),
            }


def train(path: Path, rule: str, budget: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ``streamtrain train``, and take the memory from what it prints."""
    run = path.with_name("run")
    words = [sys.executable, "-m", "streamtrain", "train", str(path), "--model", arguments.model, "--update", rule]
    words += ["--memory", budget, "--batch-size", str(arguments.batch_size), "--epochs", "1", "--out", str(run)]
    words += ["--max-steps", str(arguments.max_steps), "--json"]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    shutil.rmtree(run, ignore_errors=True)
    if ended.returncode == st.BudgetError.exit_code:
        refused = ended.stderr.strip().removeprefix("error: ")
        return {"budget_bytes": parse_bytes(budget), "measured_bytes": None, "ratio": None, "refused": refused}
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}\n{ended.stderr}")
    memory = json.loads(ended.stdout)["memory"]
    return {
        "budget_bytes": memory["budget"],
        "projected_bytes": memory["projected"],
        "measured_bytes": memory["measured"],
        "ratio": round(memory["measured"] / memory["budget"], 4),
        "ratio_to_projected": round(memory["measured"] / memory["projected"], 4),
    }


def in_a_fresh_process(path: Path, budget: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one case in a process that has done nothing else."""
    words = [sys.executable, __file__, "--case", str(path), budget]
    words += ["--batch-size", str(arguments.batch_size), "--epochs", str(arguments.epochs)]
    words += ["--sequential"] if arguments.sequential else []
    run = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the loader, read its epochs, and compare."""
    path, budget = arguments.case
    dataset = st.open(path)
    budget_bytes = parse_bytes(budget)
    loader_class = st.StreamLoader  # Naming it imports torch, which is none of the loader's memory.
    with MemoryMeter(SAMPLING_SECONDS) as meter:
        started = time.perf_counter()
        try:
            loader = loader_class(
                dataset, batch_size=arguments.batch_size, memory=budget_bytes, shuffle=not arguments.sequential
            )
        except st.BudgetError as error:
            return {"budget_bytes": budget_bytes, "measured_bytes": None, "ratio": None, "refused": error.what}
        with loader:
            for _ in range(arguments.epochs):
                for _ in loader:
                    pass
            projection = loader.projection
    seconds = time.perf_counter() - started
    return {
        "budget_bytes": budget_bytes,
        "projected_bytes": projection.total_bytes,
        "terms": projection.terms,
        "before_bytes": meter.before_bytes,
        "measured_bytes": meter.peak_bytes,
        "ratio": round(meter.peak_bytes / budget_bytes, 4),
        "ratio_to_projected": round(meter.peak_bytes / projection.total_bytes, 4),
        "mb_s": round(arguments.epochs * dataset.nbytes / 1e6 / seconds),
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    head = f"{result['row_bytes']:>7} B rows, {result['size']:>6} {result['codec']:<4}  budget {result['budget']:>6}"
    head += f"  {result['model']} by {result['rule']}" if "rule" in result else ""
    if result["ratio"] is None:
        return f"{head}  refused: {result['refused']}"
    return (
        f"{head}  projected {format_bytes(result['projected_bytes']):>9}  "
        f"measured {format_bytes(result['measured_bytes']):>9}  measured/budget {result['ratio']:.3f}  "
        f"measured/projected {result['ratio_to_projected']:.3f}"
    )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw measured ÷ budget of every case as bars, a panel for each budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(result["budget"] for result in results))
    kinds = list(dict.fromkeys((result["codec"], result["row_bytes"]) for result in results))
    sizes = list(dict.fromkeys(result["size"] for result in results))
    figure = Figure(
        figsize=(max(5.0, 1.1 * len(kinds) + 1), 2.6 * len(budgets) + 1), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(budgets), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    colours = ["#4c78a8", "#7ba6d0", "#a0cbe8", "#3f8a3a", "#66b35c", "#a5d99a", "#c98212", "#f2a93b", "#ffd49a"]
    width = 0.8 / len(kinds)
    for panel, budget in zip(panels, budgets, strict=True):
        for i, (codec, row_bytes) in enumerate(kinds):
            case = (budget, codec, row_bytes)
            found = {r["size"]: r["ratio"] for r in results if (r["budget"], r["codec"], r["row_bytes"]) == case}
            heights = [found.get(size) or 0.0 for size in sizes]
            places = [place + (i - (len(kinds) - 1) / 2) * width for place in range(len(sizes))]
            label = f"{codec}, {row_bytes} B rows"
            bars = panel.bar(places, heights, width, color=colours[i % len(colours)], label=label)
            words = [f"{height:.2f}" if height else "" for height in heights]
            panel.bar_label(bars, words, padding=-24, rotation=90, fontsize=8)
            for place, size in zip(places, sizes, strict=True):
                if size in found and found[size] is None:
                    panel.text(place, 0.02, "refused", rotation=90, ha="center", va="bottom", fontsize=8)
        panel.axhline(BAR, color="#c1272d", linewidth=1.4)
        panel.set_title(f"budget {budget}", fontsize=10)
        panel.set_xticks(range(len(sizes)), sizes)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, max([1.2, *(1.2 * (result["ratio"] or 0) for result in results)]))
    panels[len(panels) // 2].set_ylabel("measured ÷ budget")
    panels[-1].set_xlabel("decoded size of the dataset")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
