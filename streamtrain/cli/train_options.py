"""The options of ``streamtrain train``: what the words of a command line are, and what they are kept as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from streamtrain.arguments import ON_BAD_BLOCK
from streamtrain.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command, as given."""

    dest: Path
    model: str
    val: Path | None
    loss: str | None
    update: str
    optimizer: str
    lr: float | None
    momentum: float | None
    betas: tuple[float, ...] | None
    eps: float | None
    weight_decay: float | None
    nesterov: bool
    epochs: int
    max_steps: int | None
    batch_size: int
    memory: str | None
    max_memory: str | None
    lanes: int | None
    drop_last: bool
    on_bad_block: str
    seed: int
    device: str
    normalize: str
    threads: int | None
    out: Path | None
    checkpoint_every: int | None
    resume: bool
    log_every: int
    headspace: bool


def _parse_betas(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise UsageError(f"betas {value!r} are not numbers", fix="--betas 0.9,0.999, say") from None


_PATH: Final = click.Path(path_type=Path)

_DATA_AND_MODEL: Final = (
    click.argument("dest", type=_PATH),
    click.option("--model", required=True, help="linear, mlp:256,128 (hidden widths), cnn, or FILE.py:FACTORY."),
    click.option(
        "--val", type=_PATH, help="A dataset to measure on after every epoch; its loader has 1/4 of --memory."
    ),
    click.option(
        "--loss", help="cross_entropy (default for class labels), nll, bce_with_logits, mse (default for floats), l1."
    ),
)
_STEP: Final = (
    click.option("--update", default="batch", help="The update rule: one step per batch, sample or epoch."),
    click.option("--optimizer", default="adam", help="Any of torch.optim by name: sgd, adam, adamw, rmsprop, ..."),
    click.option(
        "--lr", type=float, help="By default torch's own (adam 0.001), for sgd 0.1, or 0.01 with --update sample."
    ),
    click.option("--momentum", type=float, help="For optimizers that have it."),
    click.option("--betas", callback=_parse_betas, metavar="B1,B2", help="For adam and its kin."),
    click.option("--eps", type=float, help="For adam and its kin."),
    click.option("--weight-decay", type=float),
    click.option("--nesterov", is_flag=True, help="For sgd with momentum."),
)
_END: Final = (
    click.option("--epochs", type=int, default=5),
    click.option("--max-steps", type=int, help="End at this many steps, if they come before the epochs do."),
)
_READING: Final = (
    click.option("--batch-size", type=int, default=256, help="Samples of a batch; for other update rules, of a read."),
    click.option(
        "--memory", help="Budget for all that the loaders own; 512MB by default, or what --max-memory leaves."
    ),
    click.option("--max-memory", help="Budget for the whole process; auto is the control group's limit, or the RAM."),
    click.option("--lanes", type=int, help="Lanes of the shuffle; solved from --memory by default."),
    click.option("--drop-last", is_flag=True, help="Leave out a short last batch."),
    click.option(
        "--on-bad-block", type=click.Choice(ON_BAD_BLOCK), default="error", help="End, or leave its samples out."
    ),
)
_PLACE: Final = (
    click.option("--seed", type=int, default=0, help="Of the order, the initial weights, and dropout."),
    click.option("--device", default="auto", help="auto (cuda where there is any, else cpu), cpu, cuda, cuda:1, ..."),
    click.option(
        "--normalize",
        type=click.Choice(["auto", "none"]),
        default="auto",
        help="auto: (x - mean) / std from the stored statistics, per column for tables; saved with the run.",
    ),
    click.option("--threads", type=int, help="Threads of torch on the CPU."),
)
_RUN: Final = (
    click.option("--out", type=_PATH, help="The run's folder; by default runs/N, N being the next free number."),
    click.option(
        "--checkpoint-every", type=int, metavar="BATCHES", help="Save between epochs, and every so many batches."
    ),
    click.option(
        "--resume", is_flag=True, help="Go on with the run in --out from its newest checkpoint, if it has one."
    ),
    click.option(
        "--log-every", type=int, default=50, metavar="BATCHES", help="Batches between two lines of metrics.jsonl."
    ),
    click.option("--headspace", is_flag=True, help="Measure at the end how much faster a perfect loader would be."),
)


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument DEST and all the options of ``train``."""
    for add in reversed((*_DATA_AND_MODEL, *_STEP, *_END, *_READING, *_PLACE, *_RUN)):
        command = add(command)
    return command
