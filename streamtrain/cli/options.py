"""The options of ``streamtrain train``, and those that commands share, such as ``--threads``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch

from streamtrain.errors import UsageError
from streamtrain.optim.schedules import Schedule
from streamtrain.system.arguments import ON_BAD_BLOCK, RESHUFFLE
from streamtrain.training.run_state import ON_CHECKPOINT_FAILURE


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of the command, as given."""

    dest: Path
    model: str
    inputs: tuple[str, ...]
    target: str
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
    weight: str | None
    accumulate_grad_batches: int
    grad_sum_dtype: str
    l2: float
    grad_tolerance: float | None
    loss_tolerance: float | None
    sample_path: str
    clip_grad_norm: float | None
    clip_grad_value: float | None
    schedule: str | None
    schedule_every: str | None
    schedule_option: tuple[tuple[str, object], ...]
    beta1: str | None
    autocast: str | None
    compile: bool
    epochs: int
    max_steps: int | None
    until_loss: float | None
    patience: int | None
    batch_size: int
    memory: str | None
    max_memory: str | None
    lanes: int | None
    groups: int | None
    reshuffle: str
    drop_last: bool
    on_bad_block: str
    seed: int
    device: str
    normalize: str
    threads: int | None
    out: Path | None
    checkpoint_every: int | None
    on_checkpoint_failure: str
    resume: bool
    log_every: int
    headspace: bool

    def check(self) -> None:
        """Refuse what has no meaning beside another option.

        Raises
        ------
        UsageError
            There are lanes or groups, and no shuffle to have them.
        """
        for name in ("lanes", "groups"):
            if getattr(self, name) is not None and self.update == "epoch":
                raise UsageError(
                    f"--{name} with --update epoch",
                    why="Its passes read in stored order, and nothing is shuffled",
                    fix="leave it out",
                )

    def resolved_schedule(self) -> Schedule | None:
        """The schedule of the learning rate, if one is named.

        Raises
        ------
        UsageError
            It is unknown, or does not take the options; or there are options and it is not named.
        """
        if self.schedule is not None:
            return Schedule(name=self.schedule, every=self.schedule_every, options=dict(self.schedule_option))
        if self.schedule_option or self.schedule_every:
            raise UsageError("--schedule-option or --schedule-every without --schedule", fix="--schedule cosine, say")
        return None


def _parse_betas(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise UsageError(f"betas {value!r} are not numbers", fix="--betas 0.9,0.999, say") from None


def _parse_pairs(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, object], ...]:
    """``gamma=0.5`` as a name and a JSON value, or a text where it is none."""
    pairs = []
    for word in value:
        name, is_pair, text = word.partition("=")
        if not is_pair:
            raise UsageError(f"--schedule-option {word!r} is no NAME=VALUE", fix="--schedule-option step_size=10, say")
        try:
            pairs.append((name, json.loads(text)))
        except ValueError:
            pairs.append((name, text))
    return tuple(pairs)


def parse_names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """``a,b`` as names."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


_PATH: Final = click.Path(path_type=Path)

FIELD_OPTIONS: Final = (
    click.option(
        "--inputs", default="x", callback=parse_names, metavar="A,B", help="The fields that the model takes, in order."
    ),
    click.option("--target", default="y", metavar="FIELD", help="The field that the loss compares with."),
)
"""Which fields are learnt from, for every command that trains."""

_DATA_AND_MODEL: Final = (
    click.argument("dest", type=_PATH),
    click.option("--model", required=True, help="linear, mlp:256,128 (hidden widths), cnn, or FILE.py:FACTORY."),
    *FIELD_OPTIONS,
    click.option(
        "--val", type=_PATH, help="A dataset to measure on after every epoch; its loader has 1/4 of --memory."
    ),
    click.option(
        "--loss", help="cross_entropy (default for class labels), nll, bce_with_logits, mse (default for floats), l1."
    ),
)
_STEP: Final = (
    click.option("--update", default="batch", help="The update rule: one step per batch, sample or epoch."),
    click.option("--optimizer", default="adam", help="Any of torch.optim by name: sgd, adam, ..., lbfgs; or cg."),
    click.option(
        "--lr", type=float, help="By default torch's own (adam 0.001), for sgd 0.1, or 0.01 with --update sample."
    ),
    click.option("--momentum", type=float, help="For optimizers that have it."),
    click.option("--betas", callback=_parse_betas, metavar="B1,B2", help="For adam and its kin."),
    click.option("--eps", type=float, help="For adam and its kin."),
    click.option("--weight-decay", type=float),
    click.option("--nesterov", is_flag=True, help="For sgd with momentum."),
    click.option("--weight", metavar="FIELD", help="A field of weights, one a sample: means are weighted by it."),
    click.option(
        "--accumulate-grad-batches", type=int, default=1, metavar="K", help="Batches of a step, with --update batch."
    ),
    click.option(
        "--grad-sum-dtype",
        default="float64",
        help="What gradients are summed in over batches: float64, compensated (two float32), or float32.",
    ),
    click.option(
        "--sample-path",
        default="auto",
        help="With --update sample: plain, fast (the same to rounding), or auto: fast for models that it knows.",
    ),
)
_EVERY_STEP: Final = (
    click.option("--clip-grad-norm", type=float, metavar="NORM", help="The most a gradient's Euclidean norm may be."),
    click.option("--clip-grad-value", type=float, metavar="VALUE", help="The most a component of a gradient may be."),
    click.option(
        "--schedule", help="Of the learning rate: cosine, onecycle, step, plateau, ... of torch's schedulers."
    ),
    click.option(
        "--schedule-every", help="step or epoch; by default epoch, and step for onecycle and cyclic.", metavar="WHAT"
    ),
    click.option(
        "--schedule-option",
        multiple=True,
        callback=_parse_pairs,
        metavar="NAME=VALUE",
        help="What torch's scheduler takes: step_size=10, milestones=[30,80], ...",
    ),
    click.option("--beta1", help="How Adam's beta1 goes on: linear:LAST over the run, or exponential:FACTOR a step."),
    click.option("--autocast", metavar="bf16", help="Compute in bfloat16 where that is good enough."),
    click.option("--compile", is_flag=True, help="Compile the model with torch.compile."),
)
_END: Final = (
    click.option("--l2", type=float, default=0.0, help="J has l2/2 times the sum of the squared weights in it."),
    click.option("--grad-tolerance", type=float, help="With lbfgs, cg: end at a gradient whose norm is at most this."),
    click.option("--loss-tolerance", type=float, help="With lbfgs, cg: end where a step lowers J by at most this."),
    click.option("--epochs", type=int, default=5),
    click.option(
        "--max-steps",
        type=int,
        help="End at this many steps in all, if they come before the epochs do; --resume goes on there.",
    ),
    click.option(
        "--until-loss", type=float, help="End after the epoch whose loss, on --val if given, is at most this."
    ),
    click.option("--patience", type=int, metavar="N", help="End after N epochs in a row without a new lowest loss."),
)
_READING: Final = (
    click.option("--batch-size", type=int, default=256, help="Samples of a batch; for other update rules, of a read."),
    click.option(
        "--memory", help="Budget for all that the loaders own; 512MB by default, or what --max-memory leaves."
    ),
    click.option("--max-memory", help="Budget for the whole process; auto is the control group's limit, or the RAM."),
    click.option("--lanes", type=int, help="Lanes of the shuffle; solved from --memory by default."),
    click.option("--groups", type=int, help="Groups the lanes are dealt to; follows from batch size and blocks."),
    click.option(
        "--reshuffle",
        type=click.Choice(RESHUFFLE),
        default="epoch",
        help="Form the batches anew every epoch, or never: every epoch then has the same ones.",
    ),
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
        "--on-checkpoint-failure",
        type=click.Choice(ON_CHECKPOINT_FAILURE),
        default="error",
        help="End where a checkpoint cannot be written, or warn and try again; exit code 5 if the last one failed.",
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
    for add in reversed((*_DATA_AND_MODEL, *_STEP, *_EVERY_STEP, *_END, *_READING, *_PLACE, *_RUN)):
        command = add(command)
    return command


def most_threads() -> int:
    """The most that may be asked for: far more than is of use, and far fewer than end a process."""
    return max(64, 4 * (os.cpu_count() or 1))


def set_threads(threads: int | None) -> None:
    """Have torch compute with so many threads; with None, with as many as it finds right.

    Raises
    ------
    UsageError
        There are fewer than 1, or more than `most_threads`.

    Examples
    --------
    >>> set_threads(0)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: threads is 0; it must be at least 1
    """
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    if threads > most_threads():
        raise UsageError(
            f"threads is {threads}; it may be at most {most_threads()} here",
            why=f"The machine has {os.cpu_count() or 1} cores",
            fix="leave it out, for one thread a core",
        )
    torch.set_num_threads(threads)
