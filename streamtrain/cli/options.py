"""The options of ``streamtrain train``, and those that commands share, such as ``--threads``.

Declared without torch, which is imported where they are used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import click

from streamtrain.cli.commands import values
from streamtrain.cli.commands.sections import option
from streamtrain.cli.commands.values import DATASET, FILE, SIZE, SIZE_OR_AUTO, Choice, Code, Suggestion
from streamtrain.cli.output import note
from streamtrain.errors import UsageError
from streamtrain.optim.step_options import StepOptions
from streamtrain.system.arguments import ON_BAD_BLOCK, RESHUFFLE

if TYPE_CHECKING:
    from streamtrain.optim.schedules import Schedule
    from streamtrain.training.best.chosen_checkpoint import ChosenCheckpoint
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
            raise UsageError(f"{option} {word!r} is not NAME=VALUE", fix=f"{option} {example}, say")
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

which_option = click.option(
    "--checkpoint",
    "which",
    default="best",
    type=Suggestion(values.CHECKPOINTS),
    metavar="WHICH",
    help="The weights of the best epoch, of the last, or of a checkpoint by its number: best, last or BATCHES.",
)
"""Adds ``which: str`` to a command that reads a run."""

GRID: Final = 15
"""Points on a side of the error surface that ``compare --surface`` measures."""

DEVICE_HELP: Final = "auto (cuda if there is one), cpu, cuda, cuda:1, ..."

FIELD_OPTIONS: Final = (
    option(
        "--inputs",
        callback=parse_names,
        metavar="A,B",
        section="Data",
        help="Fields of the input; by default all but y, id, weight (linear, mlp: x, x_missing, cat; cnn: x).",
    ),
    option("--target", default="y", metavar="FIELD", section="Data", help="The field to learn."),
)
"""Options for the fields to learn from, shared by all commands that train."""

MODEL_HELP: Final = (
    "linear, mlp (mlp:256,128) or mlp:WIDTHS, cnn; or your own code, FILE.py:NAME or PACKAGE.MODULE:NAME: a "
    "function, class or ready module. It gets any of these that its signature names: dataset, input_shape, "
    "n_outputs, num_classes, classes, task, category_sizes; one required argument with another name gets the dataset, "
    "two get input_shape and n_outputs."
)
MODEL_OPTIONS: Final = (
    option(
        "--model-arg",
        "model_args",
        multiple=True,
        callback=_parse_pairs,
        metavar="NAME=VALUE",
        section="Model",
        help="An argument for your own model, as JSON; repeatable.",
    ),
    option(
        "--init",
        metavar="RUN|FILE",
        type=FILE,
        section="Model",
        help="Initial weights: a run's, or a .safetensors file.",
    ),
    option(
        "--init-partial",
        is_flag=True,
        section="More on the model",
        help="With --init: take the weights that match, and list the others.",
    ),
)
"""Options of how a model is made, shared by all commands that train."""


def _option(default: Any = None, help_text: str | None = None, section: str | None = None, **of_click: Any) -> Any:
    """Declare a field that is an option: its default, its help, its section, and what else click takes."""
    return field(default=default, metadata={"help": help_text, "section": section, **of_click})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of ``train``, each declared once; those of a step are in `StepOptions`."""

    dest: Path
    inputs: tuple[str, ...] | None
    target: str
    model_args: tuple[tuple[str, object], ...] = ()
    init: str | None = None
    init_partial: bool = False
    model: str = _option(None, MODEL_HELP, "Model", required=True, type=Code())
    val: Path | None = _option(
        None,
        "Validation data, measured after every epoch, or none; by default split val of DEST.",
        "Data",
        type=DATASET,
    )
    task: str | None = _option(
        None,
        "classification, multilabel or regression; by default the one `info` shows.",
        "Task and loss",
        type=Choice(values.TASKS),
    )
    loss: str | None = _option(
        None,
        "cross_entropy (of classification), bce_with_logits (of multilabel), mse (of regression), l1, huber, nll, "
        "poisson.",
        "Task and loss",
        type=Choice(values.LOSSES),
    )
    ignore_label: int | None = _option(
        None,
        "A label that is not a class, such as 255: it gets no output and is not counted.",
        "More on the task",
        metavar="LABEL",
        type=int,
    )
    update: str = _option(
        "batch", "A step per batch, sample or epoch.", "Steps", type=Choice(values.UPDATES, "update rule")
    )
    optimizer: str = _option(
        "adam",
        f"{', '.join(values.OPTIMIZERS)}.",
        "Steps",
        type=Suggestion(values.OPTIMIZERS),
    )
    lr: float | None = _option(
        None,
        "The learning rate; by default torch's own (adam 0.001); for sgd 0.1, or 0.01 with --update sample.",
        "Steps",
        type=float,
    )
    momentum: float | None = _option(None, "Momentum, for optimizers that have it.", "Optimizer", type=float)
    betas: tuple[float, ...] | None = _option(
        None, "Betas of adam and similar optimizers.", "Optimizer", callback=_parse_betas, metavar="B1,B2"
    )
    eps: float | None = _option(None, "Epsilon of adam and similar optimizers.", "Optimizer", type=float)
    weight_decay: float | None = _option(None, "Weight decay of the optimizer.", "Steps", type=float)
    nesterov: bool = _option(False, "Nesterov momentum, for sgd.", "Optimizer", is_flag=True)
    weight: str | None = _option(None, "A field that holds the weight of each sample.", "Data", metavar="FIELD")
    step: StepOptions = field(default_factory=StepOptions)
    schedule_every: str | None = _option(
        None,
        "When the schedule changes the rate; by default each epoch, or each step for onecycle and cyclic.",
        "Optimizer",
        type=Choice(values.EVERY),
    )
    schedule_option: tuple[tuple[str, object], ...] = _option(
        (),
        "An argument of torch's scheduler, such as step_size=10 or milestones=[30,80]; repeatable.",
        "Optimizer",
        multiple=True,
        callback=_parse_pairs,
        metavar="NAME=VALUE",
    )
    epochs: int = _option(5, "Passes over the data, in all.", "Steps", type=int)
    max_steps: int | None = _option(None, "Stop after N steps in all, if the epochs take more.", "Steps", type=int)
    until_loss: float | None = _option(
        None, "Stop after an epoch whose loss, on --val if given, is at most this.", "More on stopping", type=float
    )
    monitor: str | None = _option(
        None,
        "Metric that chooses the best epoch: val_loss, val_f1, ...",
        "Stopping and best",
        metavar="NAME",
    )
    monitor_mode: str | None = _option(
        None,
        "Whether the smallest or largest --monitor is best, for your own metric.",
        "More on stopping",
        type=Choice(values.MODES),
    )
    patience: int | None = _option(
        None,
        "Stop after N epochs without a better --monitor.",
        "Stopping and best",
        type=int,
        metavar="N",
    )
    min_delta: float = _option(0.0, "Smallest change that counts for --patience.", "Stopping and best", type=float)
    batch_size: int = _option(256, "Samples per batch.", "Data", type=int)
    memory: str | None = _option(
        None,
        "Budget for the loaders; by default 512MB, or the rest of --max-memory.",
        "Memory",
        type=SIZE,
    )
    max_memory: str | None = _option(
        None,
        "Budget for the whole process; auto: its control group's limit, or the RAM.",
        "Memory",
        type=SIZE_OR_AUTO,
    )
    lanes: int | None = _option(
        None, "Streams of blocks that batches draw from; by default as many as fit in --memory.", "Shuffle", type=int
    )
    groups: int | None = _option(None, "Groups of lanes; by default set by batch size and blocks.", "Shuffle", type=int)
    reshuffle: str = _option(
        "epoch",
        "Form new batches every epoch, or never: every epoch then has the same ones.",
        "Shuffle",
        type=Choice(RESHUFFLE),
    )
    drop_last: bool = _option(False, "Leave out the last batch if it is short.", "Shuffle", is_flag=True)
    on_bad_block: str = _option(
        "error",
        "On a damaged block: end, or leave out its samples.",
        "Faults",
        type=Choice(ON_BAD_BLOCK),
        metavar="|".join(ON_BAD_BLOCK),
    )
    seed: int = _option(0, "Seed of order, weights and dropout.", "Model", type=int)
    device: str = _option("auto", DEVICE_HELP, "Memory", type=Suggestion(values.DEVICES), metavar="DEVICE")
    images: str | None = _option(
        None,
        "Decode images to SIZE x SIZE, or center:SIZE.",
        "Data",
        metavar="[CROP:]SIZE",
    )
    image_scale: str | None = _option(
        None,
        "Smallest and largest share of a random crop, 0.08,1.",
        "Data",
        metavar="A,B",
    )
    normalize: str = _option(
        "auto",
        "auto, imagenet or none.",
        "Data",
        metavar="WAY",
        type=Choice(["auto", "imagenet", "none"]),
    )
    normalize_target: str = _option(
        "auto",
        "auto: mse, l1 and huber are computed on (y - mean) / std; every other figure is in the data's units.",
        "More on the task",
        type=Choice(["auto", "none"]),
    )
    class_weight: str | dict[str, float] | None = _option(
        None,
        "Class weights in the loss: balanced, or A=2,B=0.5.",
        "Task and loss",
        callback=_parse_class_weight,
        type=Suggestion(["balanced"]),
        metavar="WEIGHTS",
    )
    threads: int | None = _option(None, "Torch's threads on the CPU; by default one per core.", "Memory", type=int)
    out: Path | None = _option(None, "The run's folder; by default runs/N, the next free N.", "Output", type=_PATH)
    checkpoint_every: int | None = _option(
        None,
        "Also save after every N batches.",
        "Output",
        type=int,
        metavar="N",
    )
    on_checkpoint_failure: str = _option(
        "error",
        "If a checkpoint cannot be written: end, or warn and try again; exit code 5 if the last one failed.",
        "Faults",
        type=Choice(values.ON_CHECKPOINT_FAILURE),
    )
    resume: bool = _option(False, "Resume the run in --out, if it has a checkpoint.", "Output", is_flag=True)
    log_every: int = _option(
        50, "Batches between two lines of metrics.jsonl.", "More on output", type=int, metavar="BATCHES"
    )
    headspace: bool = _option(
        False, "Measure at the end how much faster a perfect loader would be.", "Speed", is_flag=True
    )
    dry_run: bool = _option(
        False,
        "Check everything up to the first step, show layers, memory, steps and time, and write nothing.",
        "Output",
        is_flag=True,
    )

    def loading(self) -> LoaderOptions:
        """Collect the options of the loaders."""
        from streamtrain.training.sized_loaders import LoaderOptions

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
        from streamtrain.optim.schedules import Schedule

        return Schedule(name=name, every=every, options=dict(options))
    if options or every:
        raise UsageError("--schedule-option or --schedule-every without --schedule", fix="--schedule cosine, say")
    return None


_TYPES_OF_STEPS: Final = {
    "schedule": Suggestion(values.SCHEDULES),
    "grad_sum_dtype": Choice(values.GRAD_SUM_DTYPES),
    "sample_path": Choice(values.SAMPLE_PATHS),
    "autocast": Suggestion(values.AUTOCAST),
}
"""Types of those options of a step that are names; click is for the command line alone."""


def _of_fields(options: type[Any], names: tuple[str, ...] = ()) -> Iterator[Callable[..., Any]]:
    """Make click options of a dataclass's fields, or of some, in their order; those of a step where it has them."""
    for each in fields(options):
        if each.name == "step":
            yield from _of_fields(StepOptions, names)
        elif each.metadata and (not names or each.name in names):
            name = f"--{each.name.replace('_', '-')}"
            given: dict[str, Any] = {} if each.metadata.get("required") else {"default": each.default}
            if each.name in _TYPES_OF_STEPS:
                given["type"] = _TYPES_OF_STEPS[each.name]
            yield option(name, each.name, **given, **each.metadata)


def options_of_train(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command some of the options of ``train``, by the names of their fields."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(list(_of_fields(TrainOptions, names))):
            command = add(command)
        return command

    return give


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument DEST and all the options of ``train``."""
    first, *others = _of_fields(TrainOptions)
    for add in reversed([click.argument("dest", type=DATASET), first, *MODEL_OPTIONS, *FIELD_OPTIONS, *others]):
        command = add(command)
    return command


def chosen_checkpoint(run: Path, which: str) -> ChosenCheckpoint:
    """Read the checkpoint of ``--checkpoint``; warn where it is not the best, although that was asked for."""
    from streamtrain.training.best.chosen_checkpoint import checkpoint_of

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
    import torch

    from streamtrain.system.memory import n_cores

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
