"""``streamtrain compare DEST``: several update rules and optimizers, side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import click
import torch

from streamtrain.cli.compatibility import check_alike, chosen_inputs, chosen_target, validation_data
from streamtrain.cli.options import (
    FIELD_OPTIONS,
    MODEL_HELP,
    MODEL_OPTIONS,
    options_of_train,
    parse_names,
    set_threads,
)
from streamtrain.cli.output import as_command_line, emit, json_option, label_text, note, print_text
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.cli.preparation.threads import CoreWatch
from streamtrain.cli.train import resume_hint
from streamtrain.comparison.compare import compare
from streamtrain.comparison.report import (
    COMPARISON_HTML,
    COMPARISON_JSON,
    format_metric,
    format_number,
    summary_rows,
)
from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.comparison.run import PointCallback
from streamtrain.comparison.settings import EVERY_OPTIMIZER, ComparisonSettings
from streamtrain.errors import Lines, UsageError
from streamtrain.models.factory import BuiltModel, check_model_name, make_model, n_parameters
from streamtrain.models.losses import Loss
from streamtrain.models.model_data import describe_data
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.schema.matching import unnamed_was_told
from streamtrain.system.arguments import check_seed
from streamtrain.system.files import numbered_folder
from streamtrain.system.memory import limit_heap_growth
from streamtrain.training.checkpoint import load_initial_weights
from streamtrain.training.labels.from_data import n_outputs

COMPARISONS: Final = Path("comparisons")
_GRID: Final = 15

_path = click.Path(path_type=Path)


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


@click.command("compare", context_settings={"show_default": True})
@click.argument("dest", type=_path)
@click.option("--model", default="mlp:128", help=MODEL_HELP)
@FIELD_OPTIONS[0]
@FIELD_OPTIONS[1]
@MODEL_OPTIONS[0]
@MODEL_OPTIONS[1]
@MODEL_OPTIONS[2]
@click.option("--rules", default="sample,batch,epoch", callback=parse_names, help="Update rules.")
@click.option("--optimizers", default="sgd,adam", callback=parse_names, help="Optimizers; each runs by every rule.")
@click.option("--epochs", type=int, help="Epochs of each run; 3, unless --seconds is given.")
@click.option("--seconds", type=float, help="Training time of each run; the epoch rule ends the pass it is in.")
@click.option(
    "--val",
    type=_path,
    help="A dataset to measure on after every epoch; by default split val of DEST, or none.",
)
@click.option("--loss", help="cross_entropy, bce_with_logits, mse, ...; by default that of the task; as for train.")
@click.option("--task", help="classification, multilabel or regression; as for train.")
@click.option("--ignore-label", type=int, metavar="LABEL", help="A label that is no class; as for train.")
@click.option(
    "--lr",
    callback=_parse_rates,
    metavar="LR,...|NAME=LR,...",
    help="For all optimizers, 0.3,0.1,0.03, or for one, sgd=0.1,adam=0.001, or for a rule and an optimizer, "
    "sample:sgd=0.01; each of several rates is a run. By default as for train.",
)
@click.option("--batch-size", type=int, default=256, help="Samples of a batch; for other update rules, of a read.")
@click.option("--memory", help="Budget for all that the loaders own; 512MB by default, or what --max-memory leaves.")
@click.option("--max-memory", help="Budget for the whole process; auto is the control group's limit, or the RAM.")
@click.option("--seed", type=int, default=0, help="Of the order and of the initial weights, the same for every run.")
@click.option("--target-loss", type=float, help="Training loss to time each run to; by default half of the first.")
@click.option("--surface", is_flag=True, help="Measure the error surface around the paths of the weights.")
@click.option("--grid", type=int, help=f"With --surface: so many by so many passes over the data.  [default: {_GRID}]")
@click.option("--device", default="auto", help="auto (cuda where there is any, else cpu), cpu, cuda, cuda:1, ...")
@options_of_train("normalize", "normalize_target", "class_weight")
@click.option("--threads", type=int, help="Threads of torch on the CPU.")
@click.option("--out", type=_path, help="The comparison's folder; by default comparisons/N, N the next free number.")
@click.option(
    "--resume", is_flag=True, help="Resume the comparison in --out: read its finished runs, and resume the one begun."
)
@json_option
def compare_command(as_json: bool, **given: Any) -> None:
    """Train a model on the dataset DEST by several update rules and optimizers, and put the runs side by side.

    Every run begins with the same weights and takes the data in the order of the same seed. After every epoch the loss
    of the weights is measured over the whole training data; that pass counts as no training time. The folder holds
    comparison.html with the table and the curves, comparison.json, and a run's folder for each run. Page and JSON are
    written after each run; Ctrl-C saves the comparison before it ends, for --resume.
    """
    say: Callable[[str], None] = (lambda _: None) if as_json else print_text
    if given["resume"] and given["out"] is None:
        raise UsageError("--resume without --out", fix=f"--out {_newest() or 'FOLDER'}")
    refuse_raw_file(given["dest"])
    set_threads(given.pop("threads"))
    cores = CoreWatch()

    def tell(run: ComparedRun, point: LearningCurvePoint) -> None:
        cores.look()
        say(_line(_point(run, point)))

    with nullcontext(given["out"]) if given["out"] else numbered_folder(COMPARISONS) as out, resume_hint(out):
        found = _compare(say, tell, **given | {"out": out})
    page = out / COMPARISON_HTML
    text = Lines.of(["", *_columns(summary_rows(found)), *_diverged(found), f"report  {page}"])
    emit(as_json, {**found.named(), "out": out, "report": page}, text)


def _newest() -> Path | None:
    """Return the comparison that was written to last; None where there is none."""
    found = [record for record in COMPARISONS.glob(f"*/{COMPARISON_JSON}") if record.is_file()]
    return max(found, key=lambda record: record.stat().st_mtime).parent if found else None


def _compare(
    say: Callable[[str], None],
    on_point: PointCallback,
    *,
    dest: Path,
    model: str,
    model_args: tuple[tuple[str, object], ...],
    init: str | None,
    init_partial: bool,
    inputs: tuple[str, ...] | None,
    target: str,
    val: Path | None,
    loss: str | None,
    task: str | None,
    ignore_label: int | None,
    class_weight: str | dict[str, float] | None,
    out: Path,
    resume: bool,
    surface: bool,
    grid: int | None,
    epochs: int | None,
    seconds: float | None,
    **given: Any,
) -> Comparison:
    if grid is not None and not surface:
        raise UsageError("--grid without --surface", fix=f"--surface --grid {grid}")
    limit_heap_growth()
    check_seed(given["seed"])
    scaled: Any = {name: "auto" for name in ("normalize", "normalize_target") if given.pop(name) == "auto"}
    given["grid"] = (_GRID if grid is None else grid) if surface else None
    given["max_epochs"] = 3 if epochs is None and seconds is None else epochs
    setting = ComparisonSettings(seconds=seconds, **given)
    check_model_name(model)
    dataset = open_preferred(dest)
    inputs = chosen_inputs(dataset, inputs, model, target)
    if (val_dataset := validation_data(dest, val)) is not None:
        check_alike(dataset, val_dataset, fields=(*inputs, target))
    y, named, _, of = chosen_target(dataset, target, loss, task, ignore_label)
    data = describe_data(dataset, inputs, n_outputs(dataset, named, y), named, task=of)
    built = make_model(model, data, seed=setting.seed, model_args=dict(model_args))
    load_initial_weights(built.module, init, partial=init_partial)
    say(_heading(dest, dataset, label_text(dataset, target, of), built, named))
    with unnamed_was_told():
        return compare(
            built.module,
            dataset,
            **{each.name: getattr(setting, each.name) for each in fields(setting)},
            loss=named,
            task=of,
            val=val_dataset,
            inputs=inputs,
            target=target,
            **scaled,
            class_weight=class_weight,
            out=out,
            resume="auto" if resume else None,
            about={**built.config(), **data.config(), "dataset": str(dataset.path), "threads": torch.get_num_threads()},
            on_point=on_point,
            say=lambda text: note(as_command_line(text)),
        )


def _heading(dest: Path, dataset: Dataset, label: str, built: BuiltModel, loss: Loss) -> str:
    model = f"{built.name}, {n_parameters(built.module):,} weights, {loss.name}{built.told()}"
    return Lines.of([f"data    {dest}: {len(dataset):,} samples", f"label   {label}", f"model   {model}", _line(_HEAD)])


_HEAD: Final = (
    *("rule", "optimizer", "epoch", "updates", "seconds", "loss", "score"),
    *("val loss", "val score", "variance"),
)
_WIDTHS: Final = (-6, -9, 5, 10, 8, 8, 8, 8, 9, 9)


def _point(run: ComparedRun, point: LearningCurvePoint) -> tuple[str, ...]:
    val = point.val
    values = (point.train.loss, point.train.score, val.loss if val else None, val.score if val else None)
    return (
        run.rule,
        f"{run.optimizer} {run.rate}" if run.rate else run.optimizer,
        format_number(point.epochs),
        f"{point.n_steps:,}",
        f"{point.seconds:.2f}",
        *("" if value is None else format_metric(value) for value in values),
        "" if point.variance is None else format_number(point.variance),
    )


def _line(cells: tuple[str, ...]) -> str:
    pairs = zip(cells, _WIDTHS, strict=True)
    return " ".join(cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in pairs).rstrip()


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _diverged(found: Comparison) -> list[str]:
    return [f"diverged {run.label}: {as_command_line(run.diverged)}" for run in found if run.diverged]
