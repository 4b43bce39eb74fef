"""The work of ``streamtrain compare DEST``: several update rules and optimizers, side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch

from streamtrain.cli.compatibility import check_alike, chosen_inputs, chosen_target, validation_data
from streamtrain.cli.options import GRID, set_threads
from streamtrain.cli.output import (
    as_command_line,
    command_line,
    emit,
    label_text,
    note,
    own_command,
    progress_text,
    typed_command,
)
from streamtrain.cli.preparation.images import seen_as
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.cli.preparation.threads import CoreWatch
from streamtrain.cli.train import resume_hint
from streamtrain.comparison.compare import compare
from streamtrain.comparison.record import read_record
from streamtrain.comparison.report import (
    COMPARISON_HTML,
    COMPARISON_JSON,
    summary_rows,
)
from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.comparison.run import PointCallback
from streamtrain.comparison.settings import ComparisonSettings, rate_text
from streamtrain.errors import Lines, UsageError
from streamtrain.models.factory import BuiltModel, check_model_name, make_model, n_parameters
from streamtrain.models.losses import Loss
from streamtrain.models.model_data import describe_data
from streamtrain.models.normalization import IMAGENET
from streamtrain.optim.optimizers import default_rate
from streamtrain.store.dataset import Dataset, open_preferred
from streamtrain.store.schema.matching import matching_was_told
from streamtrain.system.arguments import check_seed
from streamtrain.system.files import local_path, numbered_folder
from streamtrain.system.memory import limit_heap_growth
from streamtrain.system.units import counted, format_duration, format_figure, format_number
from streamtrain.training.initial_weights import load_initial_weights
from streamtrain.training.labels.from_data import n_outputs

COMPARISONS: Final = Path("comparisons")


def run_compare(*, as_json: bool, **given: Any) -> None:
    """Compare as the command line says, and print the table."""
    say = progress_text(as_json)
    if given["resume"] and given["out"] is None:
        raise UsageError("--resume without --out", fix=f"--out {_newest() or 'FOLDER'}")
    refuse_raw_file(given["dest"])
    set_threads(given.pop("threads"))
    cores = CoreWatch()

    def tell(run: ComparedRun, point: LearningCurvePoint) -> None:
        cores.look()
        say(_line(_point(run, point)))

    with nullcontext(given["out"]) if given["out"] else numbered_folder(COMPARISONS) as out, resume_hint(out):
        if given["resume"]:
            _say_begun(out)
        found = _compare(say, tell, **given | {"out": out})
    page = out / COMPARISON_HTML
    text = Lines.of(["", *_columns(summary_rows(found)), *_diverged(found), f"report  {page}"])
    emit(as_json, {**found.named(), "out": out, "report": page}, text)


def _say_begun(out: Path) -> None:
    """Print the command that a comparison was begun with, where another one is typed to resume it."""
    record = read_record(local_path(out))
    words = own_command(record.command) if record else []
    if words and command_line(words) != typed_command().get("command"):
        note(f"begun   {command_line(words)}")


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
    images: str | None,
    image_scale: str | None,
    out: Path,
    resume: bool,
    surface: bool,
    grid: int | None,
    epochs: int | None,
    seconds: float | None,
    **given: Any,
) -> Comparison:
    given["grid"] = _grid(grid, surface=surface)
    limit_heap_growth()
    check_seed(given["seed"])
    scaled: Any = {name: "auto" for name in ("normalize", "normalize_target") if _of_data(given.pop(name))}
    given["max_epochs"] = 3 if epochs is None and seconds is None else epochs
    setting = ComparisonSettings(seconds=seconds, **given)
    check_model_name(model)
    dataset = seen_as(open_preferred(dest), images, image_scale)
    inputs = chosen_inputs(dataset, inputs, model, target)
    if (val_dataset := validation_data(dest, val, dataset)) is not None:
        check_alike(dataset, val_dataset, fields=(*inputs, target))
    y, named, _, of = chosen_target(dataset, target, loss, task, ignore_label)
    data = describe_data(dataset, inputs, n_outputs(dataset, named, y), named, task=of)
    built = make_model(model, data, seed=setting.seed, model_args=dict(model_args))
    load_initial_weights(built.module, init, partial=init_partial)
    say(_heading(dest, dataset, label_text(dataset, target, of), built, named, setting))
    with matching_was_told():
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
            about={**built.config(), **data.config(), "dataset": str(dataset.path), **_circumstances()},
            on_point=on_point,
            say=lambda text: note(as_command_line(text)),
        )


def _circumstances() -> dict[str, object]:
    return {"threads": torch.get_num_threads(), **typed_command()}


def _grid(grid: int | None, *, surface: bool) -> int | None:
    """Return the points on a side of the surface, if it is measured."""
    if grid is not None and not surface:
        raise UsageError("--grid without --surface", fix=f"--surface --grid {grid}")
    return (GRID if grid is None else grid) if surface else None


def _of_data(scaling: str) -> bool:
    """Whether inputs or targets are rescaled by the data's own figures, the only ones that a comparison takes."""
    if scaling == IMAGENET:
        raise UsageError("--normalize imagenet with compare", why="It takes the data's own figures", fix="leave it out")
    return scaling == "auto"


def _heading(
    dest: Path, dataset: Dataset, label: str, built: BuiltModel, loss: Loss, setting: ComparisonSettings
) -> str:
    model = f"{built.name}, {counted(n_parameters(built.module), 'weight')}, {loss.name}{built.told()}"
    return Lines.of(
        [
            f"data    {dest}: {counted(len(dataset), 'sample')}",
            f"label   {label}",
            f"model   {model}",
            f"rates   {'; '.join(_rates(setting, optimizer) for optimizer in setting.optimizers)}",
            _line(_HEAD),
        ]
    )


def _rates(setting: ComparisonSettings, optimizer: str) -> str:
    """Say which learning rates an optimizer has, under which rules, and where they are from."""
    rules: dict[str, list[str]] = {}
    for choice in setting.choices():
        if choice.optimizer == optimizer:
            given = choice.lr is not None
            rate = default_rate(optimizer, choice.rule) if choice.lr is None else choice.lr
            rules.setdefault(f"{rate_text(rate)} ({'given' if given else 'default'})", []).append(choice.rule)
    n_rules = len(setting.rules)
    told = (text if len(of) == n_rules else f"{text} with {', '.join(of)}" for text, of in rules.items())
    return f"{optimizer} {', '.join(told)}"


_HEAD: Final = (
    *("rule", "optimizer", "epoch", "updates", "time", "loss", "score"),
    *("val loss", "val score", "variance"),
)
_WIDTHS: Final = (-6, -9, 5, 10, 11, 11, 11, 11, 11, 9)


def _point(run: ComparedRun, point: LearningCurvePoint) -> tuple[str, ...]:
    val = point.val
    values = (point.train.loss, point.train.score, val.loss if val else None, val.score if val else None)
    return (
        run.rule,
        f"{run.optimizer} {run.rate}" if run.rate else run.optimizer,
        format_number(point.epochs),
        f"{point.n_steps:,}",
        format_duration(point.seconds),
        *("" if value is None else format_figure(value) for value in values),
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
