"""The options of ``streamtrain train``, and those that commands share, such as ``--threads``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

import click
import torch

from streamtrain.cli.output import note
from streamtrain.errors import UsageError
from streamtrain.optim.schedules import Schedule
from streamtrain.optim.step_options import StepOptions
from streamtrain.system.arguments import ON_BAD_BLOCK, RESHUFFLE
from streamtrain.system.memory import n_cores
from streamtrain.training.best.chosen_checkpoint import ChosenCheckpoint, checkpoint_of
from streamtrain.training.best.monitor import MODES
from streamtrain.training.run_state import ON_CHECKPOINT_FAILURE
from streamtrain.training.sized_loaders import LoaderOptions


def _parse_betas(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise UsageError(f"betas {value!r} are not numbers", fix="--betas 0.9,0.999, say") from None


def _parse_class_weight(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | dict[str, float] | None:
    if value is None or value == "balanced":
        return value
    pairs = [word.rpartition("=") for word in value.split(",")]
    try:
        if all(name.strip() for name, _, _ in pairs):
            return {name.strip(): float(number) for name, _, number in pairs}
        raise ValueError(value)
    except ValueError:
        raise UsageError(f"--class-weight {value!r}", fix="--class-weight balanced, or A=2,B=0.5") from None


def _parse_pairs(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, object], ...]:
    """Parse ``gamma=0.5`` into a name and a JSON value, or a text where it is not JSON."""
    pairs = []
    for word in value:
        name, is_pair, text = word.partition("=")
        if not is_pair or not name:
            option, example = parameter.opts[0], _EXAMPLES[parameter.opts[0]]
            raise UsageError(f"{option} {word!r} is no NAME=VALUE", fix=f"{option} {example}, say")
        try:
            pairs.append((name, json.loads(text)))
        except (ValueError, RecursionError):
            pairs.append((name, text))
    return tuple(pairs)


_EXAMPLES: Final = {"--schedule-option": "step_size=10", "--model-arg": "width=64"}


def parse_names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Parse ``a,b`` into names."""
    return None if value is None else tuple(word.strip() for word in value.split(",") if word.strip())


_PATH: Final = click.Path(path_type=Path)

FIELD_OPTIONS: Final = (
    click.option(
        "--inputs",
        callback=parse_names,
        metavar="A,B",
        help="The fields that the model takes, in order; by default all but y, id, weight, "
        "of which linear and mlp take x, x_missing and cat, and cnn x.",
    ),
    click.option("--target", default="y", metavar="FIELD", help="The field that the loss compares with."),
)
"""Options for the fields to learn from, shared by all commands that train."""

MODEL_HELP: Final = (
    "linear, mlp (mlp:256,128) or mlp:WIDTHS, cnn; or code of your own, FILE.py:NAME or PACKAGE.MODULE:NAME: a "
    "function, a class or a ready module. It is called with what its signature names of dataset, input_shape, "
    "n_outputs, num_classes, classes, task, category_sizes; one required argument of another name gets the dataset, "
    "two get input_shape and n_outputs."
)
MODEL_OPTIONS: Final = (
    click.option(
        "--model-arg",
        "model_args",
        multiple=True,
        callback=_parse_pairs,
        metavar="NAME=VALUE",
        help="An argument for a model of your own, as JSON; repeatable.",
    ),
    click.option(
        "--init",
        metavar="RUN|FILE",
        help="Start from the weights of a run, or of a .safetensors file; names and shapes must agree.",
    ),
    click.option("--init-partial", is_flag=True, help="With --init: take the weights that agree, and list the others."),
)
"""Options of how a model is made, shared by all commands that train."""


def _option(default: Any = None, help_text: str | None = None, **of_click: Any) -> Any:
    """Declare a field that is an option: its default, its help, and what else click takes."""
    return field(default=default, metadata={"help": help_text, **of_click})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of ``train``, each declared once; those of a step are in `StepOptions`."""

    dest: Path
    inputs: tuple[str, ...] | None
    target: str
    model_args: tuple[tuple[str, object], ...] = ()
    init: str | None = None
    init_partial: bool = False
    model: str = _option(None, MODEL_HELP, required=True)
    val: Path | None = _option(
        None,
        "A dataset to measure on after every epoch, by default split val of DEST; or none. It has 1/4 of --memory.",
        type=_PATH,
    )
    loss: str | None = _option(
        None,
        "cross_entropy (default of classification), nll, bce_with_logits (multilabel), mse (regression), l1, huber, "
        "poisson.",
    )
    task: str | None = _option(
        None, "How labels are read: classification, multilabel or regression; by default as `info` says."
    )
    ignore_label: int | None = _option(
        None,
        "A label that is no class, such as 255: it needs no output and counts in no figure.",
        metavar="LABEL",
        type=int,
    )
    update: str = _option("batch", "The update rule: one step per batch, sample or epoch.")
    optimizer: str = _option("adam", "Any of torch.optim by name: sgd, adam, ..., lbfgs; or cg.")
    lr: float | None = _option(
        None, "By default torch's own (adam 0.001), for sgd 0.1, or 0.01 with --update sample.", type=float
    )
    momentum: float | None = _option(None, "For optimizers that have it.", type=float)
    betas: tuple[float, ...] | None = _option(None, "For adam and its kin.", callback=_parse_betas, metavar="B1,B2")
    eps: float | None = _option(None, "For adam and its kin.", type=float)
    weight_decay: float | None = _option(None, type=float)
    nesterov: bool = _option(False, "For sgd with momentum.", is_flag=True)
    weight: str | None = _option(None, "A field of weights, one a sample: means are weighted by it.", metavar="FIELD")
    step: StepOptions = field(default_factory=StepOptions)
    schedule_every: str | None = _option(
        None, "step or epoch; by default epoch, and step for onecycle and cyclic.", metavar="WHAT"
    )
    schedule_option: tuple[tuple[str, object], ...] = _option(
        (),
        "What torch's scheduler takes: step_size=10, milestones=[30,80], ...",
        multiple=True,
        callback=_parse_pairs,
        metavar="NAME=VALUE",
    )
    epochs: int = _option(5, type=int)
    max_steps: int | None = _option(
        None, "End at this many steps in all, if they come before the epochs do; --resume resumes there.", type=int
    )
    until_loss: float | None = _option(
        None, "End after the epoch whose loss, on --val if given, is at most this.", type=float
    )
    monitor: str | None = _option(
        None, "The metric that says which epoch is best; val_loss where there is --val.", metavar="NAME"
    )
    monitor_mode: str | None = _option(
        None, "Whether its smallest or its largest is best, for a metric of your own.", type=click.Choice(MODES)
    )
    patience: int | None = _option(
        None, "End after N epochs in a row without a better value of --monitor.", type=int, metavar="N"
    )
    min_delta: float = _option(0.0, "For --patience: a change of at most this is none.", type=float)
    batch_size: int = _option(256, "Samples of a batch; for other update rules, of a read.", type=int)
    memory: str | None = _option(
        None, "Budget for all that the loaders own; 512MB by default, or what --max-memory leaves."
    )
    max_memory: str | None = _option(
        None, "Budget for the whole process; auto is the control group's limit, or the RAM."
    )
    lanes: int | None = _option(None, "Lanes of the shuffle; solved from --memory by default.", type=int)
    groups: int | None = _option(None, "Groups the lanes are dealt to; follows from batch size and blocks.", type=int)
    reshuffle: str = _option(
        "epoch",
        "Form the batches anew every epoch, or never: every epoch then has the same ones.",
        type=click.Choice(RESHUFFLE),
    )
    drop_last: bool = _option(False, "Leave out a short last batch.", is_flag=True)
    on_bad_block: str = _option("error", "End, or leave its samples out.", type=click.Choice(ON_BAD_BLOCK))
    seed: int = _option(0, "Of the order, the initial weights, and dropout.", type=int)
    device: str = _option("auto", "auto (cuda where there is any, else cpu), cpu, cuda, cuda:1, ...")
    normalize: str = _option(
        "auto",
        "auto: (x - mean) / std from the stored statistics, per column for tables; saved with the run.",
        type=click.Choice(["auto", "none"]),
    )
    normalize_target: str = _option(
        "auto",
        "auto: with mse, l1 and huber the loss is given (y - mean) / std; every other figure is in the data's units.",
        type=click.Choice(["auto", "none"]),
    )
    class_weight: str | dict[str, float] | None = _option(
        None,
        "Weights of the classes in the loss: balanced, or of some of them.",
        callback=_parse_class_weight,
        metavar="balanced|A=2,B=0.5",
    )
    threads: int | None = _option(None, "Threads of torch on the CPU.", type=int)
    out: Path | None = _option(None, "The run's folder; by default runs/N, N being the next free number.", type=_PATH)
    checkpoint_every: int | None = _option(
        None, "Save between epochs, and every so many batches.", type=int, metavar="BATCHES"
    )
    on_checkpoint_failure: str = _option(
        "error",
        "End where a checkpoint cannot be written, or warn and try again; exit code 5 if the last one failed.",
        type=click.Choice(ON_CHECKPOINT_FAILURE),
    )
    resume: bool = _option(False, "Resume the run in --out from its newest checkpoint, if it has one.", is_flag=True)
    log_every: int = _option(50, "Batches between two lines of metrics.jsonl.", type=int, metavar="BATCHES")
    dry_run: bool = _option(
        False,
        "Check everything up to the first step, show layers, memory, steps and time, and write nothing.",
        is_flag=True,
    )
    headspace: bool = _option(False, "Measure at the end how much faster a perfect loader would be.", is_flag=True)

    def loading(self) -> LoaderOptions:
        """Collect the options of the loaders."""
        names = {each.name for each in fields(LoaderOptions)} - {"shuffle"}
        return LoaderOptions(shuffle=self.update != "epoch", **{name: getattr(self, name) for name in names})

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Take the options as click gives them; refuse a wrong schedule, and lanes or groups without a shuffle."""
        own = {each.name for each in fields(cls)}
        options = {name: value for name, value in given.items() if name in own}
        step = StepOptions.of({**given, "schedule": _schedule(given)})
        for name in ("lanes", "groups"):
            if options[name] is not None and options["update"] == "epoch":
                raise UsageError(
                    f"--{name} with --update epoch",
                    why="Its passes read in stored order, and nothing is shuffled",
                    fix="leave it out",
                )
        return cls(**options, step=step)


def _schedule(given: Mapping[str, Any]) -> Schedule | None:
    """Make the learning-rate schedule, if one is named."""
    name, every, options = (given[f"schedule{part}"] for part in ("", "_every", "_option"))
    if name is not None:
        return Schedule(name=name, every=every, options=dict(options))
    if options or every:
        raise UsageError("--schedule-option or --schedule-every without --schedule", fix="--schedule cosine, say")
    return None


def _of_fields(options: type[Any]) -> Iterator[Callable[..., Any]]:
    """Make click options of a dataclass's fields, in their order; those of a step stand where it has them."""
    for each in fields(options):
        if each.name == "step":
            yield from _of_fields(StepOptions)
        elif each.metadata:
            name = f"--{each.name.replace('_', '-')}"
            default: dict[str, Any] = {} if each.metadata.get("required") else {"default": each.default}
            yield click.option(name, each.name, **default, **each.metadata)


def options_of_train(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command some of the options of ``train``, by the names of their fields."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed([each for each in fields(TrainOptions) if each.name in names]):
            option = click.option(f"--{each.name.replace('_', '-')}", each.name, default=each.default, **each.metadata)
            command = option(command)
        return command

    return give


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument DEST and all the options of ``train``."""
    for add in reversed(
        [click.argument("dest", type=_PATH), *FIELD_OPTIONS, *MODEL_OPTIONS, *_of_fields(TrainOptions)]
    ):
        command = add(command)
    return command


def chosen_checkpoint(run: Path, which: str) -> ChosenCheckpoint:
    """Read the checkpoint of ``--checkpoint``; warn where it is not the best, although that was asked for."""
    chosen = checkpoint_of(run, which)
    note_doubt(chosen)
    return chosen


def note_doubt(chosen: ChosenCheckpoint) -> None:
    """Warn where the best checkpoint was asked for, and is not the one."""
    if chosen.doubt:
        note(f"warning: {chosen.doubt}")


def most_threads() -> int:
    """Return the highest number of threads allowed: far more than is useful, far fewer than end a process."""
    return max(64, 4 * (os.cpu_count() or 1))


def set_threads(threads: int | None) -> None:
    """Set torch's number of threads, from 1 to `most_threads`; None is torch's own, within the quota."""
    if threads is None:
        # torch counts the machine's cores, and a container may have a quota of them.
        if (cores := n_cores()) < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores)
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
