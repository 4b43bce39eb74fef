"""The options and the help of ``streamtrain train`` and ``compare``, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from streamtrain.cli.commands import values
from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import DATASET, SIZE, SIZE_OR_AUTO, Choice, Code, Names, Suggestion
from streamtrain.cli.options import (
    DEVICE_HELP,
    FIELD_OPTIONS,
    GRID,
    MODEL_HELP,
    MODEL_OPTIONS,
    options_of_train,
    train_options,
)
from streamtrain.cli.output import json_option
from streamtrain.errors import UsageError

EVERY_OPTIMIZER: Final = "every"
"""The library's name of a rate that is not of one optimizer."""

_FIRST_WEEK: Final = ("Model", "Data", "Task and loss", "Steps", "Stopping and best", "Memory", "Output")


@command(
    "train",
    context_settings={"show_default": True},
    first=_FIRST_WEEK,
    examples=(
        "streamtrain train flights --model mlp --patience 3",
        "streamtrain train flights --model linear --optimizer sgd --lr 0.03 --epochs 2",
        "streamtrain train flights --model mlp:64 --out runs/wide --memory 256MB",
    ),
    page="train",
)
@train_options
@json_option
def train_command(as_json: bool, **given: Any) -> None:
    """Train a model on the dataset DEST.

    The run's folder holds its configuration, metrics and checkpoints. Ctrl-C saves the run before it ends; a second
    one ends it at once.
    """
    from streamtrain.cli.train import run_train

    run_train(as_json=as_json, **given)


def _parse_rates(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, tuple[float, ...]]:
    """Parse ``0.3,0.1`` or ``sgd=0.1,adam=0.001``; each rate of a name is a run."""
    rates: dict[str, tuple[float, ...]] = {}
    for word in (value or "").split(","):
        if not word.strip():
            continue
        name, _, number = word.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            what = f"{number.strip()!r} is not a learning rate"
            raise UsageError(what, where=f"--lr {value}", fix="--lr 0.1,0.03 or --lr sgd=0.1,adam=0.001, say") from None
        name = name.strip() or EVERY_OPTIMIZER
        rates[name] = (*rates.get(name, ()), rate)
    return rates


@command(
    "compare",
    context_settings={"show_default": True},
    first=("Model", "Data", "Task and loss", "Runs", "Memory", "Output"),
    examples=(
        "streamtrain compare flights --epochs 1",
        "streamtrain compare flights --rules batch --lr sgd=0.03,adam=0.001 --epochs 1",
    ),
    page="update-rules",
)
@click.argument("dest", type=DATASET)
@option("--model", default="mlp:128", type=Code(), section="Model", help=MODEL_HELP)
@MODEL_OPTIONS[0]
@MODEL_OPTIONS[1]
@MODEL_OPTIONS[2]
@FIELD_OPTIONS[0]
@FIELD_OPTIONS[1]
@option(
    "--val",
    type=DATASET,
    section="Data",
    help="Validation data, measured after every epoch; by default split val of DEST, if there is one.",
)
@options_of_train("images", "image_scale", "normalize", "normalize_target", "class_weight")
@option(
    "--batch-size",
    type=int,
    default=256,
    section="Data",
    help="Samples per batch; for other update rules, per read.",
)
@option("--task", type=Choice(values.TASKS), section="Task and loss", help=f"{', '.join(values.TASKS)}; as for train.")
@option(
    "--loss",
    type=Choice(values.LOSSES),
    section="Task and loss",
    help=f"{', '.join(values.LOSSES)}; by default the task's.",
)
@option(
    "--ignore-label",
    type=int,
    metavar="LABEL",
    section="Task and loss",
    help="A label that is not a class; as for train.",
)
@option(
    "--rules",
    default="sample,batch,epoch",
    type=Names(values.UPDATES, "update rule"),
    section="Runs",
    help="Update rules to compare: any of sample, batch and epoch.",
)
@option(
    "--optimizers",
    default="sgd,adam",
    type=Names(values.OPTIMIZERS),
    section="Runs",
    help="Optimizers; each runs with every rule.",
)
@option(
    "--lr",
    callback=_parse_rates,
    metavar="LR,...|NAME=LR,...",
    section="Runs",
    help="Learning rates: of all, 0.3,0.1; by optimizer, sgd=0.1,adam=0.001; or by both, sample:sgd=0.01; else as "
    "for train. Each of several rates is a run.",
)
@option("--epochs", type=int, section="Runs", help="Epochs of each run; 3, unless --seconds is given.")
@option(
    "--seconds",
    type=float,
    section="Runs",
    help="Training time of each run; the epoch rule ends the pass it is in.",
)
@option(
    "--target-loss",
    type=float,
    section="Figures",
    help="Training loss that each run is timed to; by default half the first one.",
)
@option("--seed", type=int, default=0, section="Runs", help="Seed of the order and the initial weights of every run.")
@option("--surface", is_flag=True, section="Figures", help="Measure the error surface around the paths of the weights.")
@option(
    "--grid",
    type=int,
    metavar="N",
    section="Figures",
    help=f"With --surface: measure it at N by N points, with a pass over the data for each.  [default: {GRID}]",
)
@option(
    "--memory",
    type=SIZE,
    section="Memory",
    help="Budget for the loaders; by default 512MB, or the rest of --max-memory.",
)
@option(
    "--max-memory",
    type=SIZE_OR_AUTO,
    section="Memory",
    help="Budget for the whole process; auto: its control group's limit, or the RAM.",
)
@option(
    "--device",
    default="auto",
    type=Suggestion(values.DEVICES),
    metavar="DEVICE",
    section="Memory",
    help=DEVICE_HELP,
)
@option("--threads", type=int, section="Memory", help="Torch's threads on the CPU; by default one per core.")
@option(
    "--out",
    type=click.Path(path_type=Path),
    section="Output",
    help="The comparison's folder; by default comparisons/N, the next free N.",
)
@option(
    "--resume",
    is_flag=True,
    section="Output",
    help="Resume the comparison in --out: read its finished runs, and resume the unfinished one.",
)
@json_option
def compare_command(as_json: bool, **given: Any) -> None:
    """Train a model on the dataset DEST by several update rules and optimizers, and put the runs side by side.

    Every run begins with the same weights and takes the data in the order of the same seed. After every epoch the loss
    of the weights is measured over the whole training data; that pass does not count as training time. The folder holds
    comparison.html with the table and the curves, comparison.json, and a run's folder for each run. Page and JSON are
    written after each run; Ctrl-C saves the comparison before it ends, for --resume.
    """
    from streamtrain.cli.compare import run_compare

    run_compare(as_json=as_json, **given)
