"""``streamtrain info``, ``verify`` and ``repair``: show, check and clean up a dataset."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import DATASET_TEXT, Split
from streamtrain.cli.output import (
    command_line,
    emit,
    encoded_facts,
    is_quiet,
    json_option,
    label_text,
    missing_text,
    stored_facts,
    task_facts,
)
from streamtrain.cli.preparation.raw_files import refuse_raw_file
from streamtrain.errors import DamagedBlock, DatasetError, Lines
from streamtrain.system.units import counted, format_bytes, format_duration, format_share, format_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streamtrain.store.dataset import Dataset
    from streamtrain.store.split_root import SplitRoot
    from streamtrain.store.statistics import Histogram
    from streamtrain.store.verify import VerifyReport

_CLASSES_SHOWN: Final = 20
_COLUMNS_SHOWN: Final = 30
_CATEGORIES_SHOWN: Final = 3


def _is_of_runs(path: Path) -> bool:
    """Whether a folder is that of a run, or of a comparison, whose runs are named by what reads a run."""
    from streamtrain.store.root import kind_of_runs
    from streamtrain.system.files import is_there

    try:
        # Of a run that has only begun there is no more.
        return is_there(path / "config.json") or kind_of_runs(path) is not None
    except PermissionError:
        # Opening says what may not be read.
        return False


@command("info", examples=("streamtrain info flights", "streamtrain info flights --split val --json"), page="tables")
@click.argument("dest", metavar="DEST", type=DATASET_TEXT)
@option("--split", type=Split(), metavar="NAME", help="Only this split of DEST.")
@option("--all", "show_all", is_flag=True, help=f"Show all columns of a table, not only {_COLUMNS_SHOWN}.")
@json_option
def info_command(dest: str, split: str | None, show_all: bool, as_json: bool) -> None:
    """Show what the dataset at DEST holds, or each of its splits; for a table, each column, too.

    DEST may be the folder of a run as well: its task, model, data, best epoch and checkpoints.
    """
    from streamtrain.store.dataset import open_dataset, open_preferred
    from streamtrain.store.split_root import read_splits
    from streamtrain.system.files import local_path

    refuse_raw_file(dest)
    run = local_path(dest)
    if split is None and _is_of_runs(run):
        # Loads torch, which a dataset is shown without.
        from streamtrain.cli.preparation.run_facts import run_result, run_text

        emit(as_json, run_result(run), run_text(run))
        return
    first = open_preferred(dest) if split is None else None
    # A split that is given by its own folder is a dataset like others.
    root = read_splits(run) if first is not None and first.path.parent.samefile(run) else None
    if root is None:
        dataset = open_dataset(dest, split=split)
        emit(as_json, _info_result(dataset), _info_text(dataset, show_all=show_all))
        return
    datasets = {name: open_dataset(dest, split=name) for name in root.names}
    result = {
        "dataset": dest,
        "samples": sum(root.n_samples.values()),
        "split_rule": root.rule.as_json(),
        "splits": {name: _info_result(dataset) for name, dataset in datasets.items()},
    }
    texts = [_info_text(dataset, show_all=show_all) for dataset in datasets.values()]
    emit(as_json, result, Lines.of([*_root_lines(dest, root), *_of_each(texts)]))


def _root_lines(dest: str, root: SplitRoot) -> Iterator[str]:
    total = sum(root.n_samples.values())
    shares = ", ".join(f"{name} {n:,} ({format_share(n / total)})" for name, n in root.n_samples.items())
    yield f"{'dataset':<8} {dest}"
    yield f"{'splits':<8} {shares}"
    yield f"{'rule':<8} {root.rule.how} by {root.rule.by or 'row'}, seed {root.rule.seed}"


def _of_each(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield ""
        yield from text.splitlines()


def _info_result(dataset: Dataset) -> dict[str, Any]:
    return {
        **stored_facts(dataset),
        "fields": {field.name: _field(dataset, field.name) for field in dataset.layout.own_fields},
        "n_classes": dataset.n_classes,
        "histogram": _counts(dataset.label_histogram),
        "rho": dataset.rho,
        "task": task_facts(dataset),
        "columns": _columns(dataset),
        "sources": dataset.manifest.sources,
    }


def _field(dataset: Dataset, name: str) -> dict[str, Any]:
    field, overall = dataset.layout.field(name), dataset.manifest.statistics[name].overall
    return {
        **encoded_facts(dataset, field),
        "dtype": field.dtype.name,
        "shape": field.shape,
        "row_bytes": field.row_bytes,
        "mean": overall.mean,
        "std": overall.std,
        "min": overall.min,
        "max": overall.max,
        "n_nan": overall.n_nan,
        "n_inf": overall.n_inf,
    }


def _counts(histogram: Histogram | None) -> dict[str, int] | None:
    if histogram is None:
        return None
    values = map(str, histogram.values.tolist())
    return dict(zip(values, histogram.counts.tolist(), strict=True))


def _columns(dataset: Dataset) -> list[dict[str, Any]]:
    found = dataset.describe()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _info_text(dataset: Dataset, *, show_all: bool) -> str:
    layout = dataset.layout
    facts = {
        "dataset": str(dataset.path),
        "id": dataset.id[:16],
        "samples": f"{len(dataset):,}",
        "bytes": f"{format_bytes(dataset.nbytes)}, stored in {format_bytes(dataset.stored_bytes)} ({layout.codec})",
        "blocks": f"{layout.n_blocks:,} of {counted(layout.block_rows, 'sample')}, {format_bytes(layout.block_bytes)}",
        "shards": f"{counted(layout.n_shards * len(layout.fields), 'file')}, "
        f"{'up to ' if layout.n_blocks % layout.shard_blocks else ''}{counted(layout.shard_blocks, 'block')} each",
        "labels": _labels(dataset),
        "label": label_text(dataset),
        "missing": missing_text(dataset),
        "sources": "; ".join(str(source.get("path", source.get("format"))) for source in dataset.manifest.sources),
    }
    lines = [f"{name:<8} {value}" for name, value in facts.items() if value]
    columns = _columns(dataset) if dataset.columns or dataset.categories or dataset.targets else []
    shown = columns if show_all else columns[:_COLUMNS_SHOWN]
    return Lines.of([*lines, *_column_lines(shown, len(columns)), "", *_table(dataset)])


def _column_lines(columns: Sequence[Mapping[str, Any]], n_all: int) -> list[str]:
    """Write a line a column: its figures, or its most frequent categories."""
    if not columns:
        return []
    rows = [("column", "role", "missing", "mean", "std", "min", "max", "")]
    for column in columns:
        figures = (_figure(column[name], column["role"], name) for name in ("mean", "std", "min", "max"))
        rows.append((column["name"], column["role"], _missing(column), *figures, _most_frequent(column)))
    more = [f"and {n_all - len(columns):,} more: --all"] if n_all > len(columns) else []
    return ["", *_aligned(rows), *more]


def _missing(column: Mapping[str, Any]) -> str:
    """Write the share of a column's values that are missing, and what it is of where that is not these rows."""
    return f"{_share(column['missing'])}{_elsewhere(column['missing_in'], ' of ')}"


def _elsewhere(where: str | None, word: str) -> str:
    from streamtrain.store.schema.description import THESE_ROWS

    return "" if where in (None, THESE_ROWS) else f"{word}{where}"


def _share(share: float) -> str:
    return "0" if not share else format_share(share) if share >= _LEAST_SHARE else "< 0.1%"


_LEAST_SHARE: Final = 0.0005


def _figure(value: float | None, role: str, name: str) -> str:
    """Write a figure in the digits that tell; dates as dates."""
    if value is None:
        return ""
    if role.startswith("date") and name == "std":
        return _span(value if role == "date" else value * _DAY)
    if role.startswith("date"):
        return _date(value, 1 if role == "date" else _DAY)
    return format_value(value)


_DAY: Final = 86_400
_HOUR: Final = 3_600


def _span(seconds: float) -> str:
    """Write a time, such as the standard deviation of dates, in the unit that it is of the size of."""
    units = {"days": _DAY, "hours": _HOUR, "minutes": 60}
    name, size = next(((name, size) for name, size in units.items() if seconds >= size), ("seconds", 1))
    return f"{seconds / size:.4g} {name}"


def _date(value: float, unit: int) -> str:
    try:
        date = datetime.fromtimestamp(round(value * unit), UTC)
    except (ValueError, OverflowError, OSError):
        return format_value(value)
    return f"{date:%Y-%m-%d}" if unit == _DAY else f"{date:%Y-%m-%d %H:%M}"


def _most_frequent(column: Mapping[str, Any]) -> str:
    """Write how many categories there are, and the most frequent ones."""
    n, counts = column["n_categories"], column["categories"]
    if n is None:
        return ""
    if counts is None:
        return f"{n:,} codes of a hash"
    first = [f"{name} {count:,}" for name, count in list(counts.items())[:_CATEGORIES_SHOWN]]
    shown = ", ".join([*first, *(["..."] if n > len(first) else [])])
    return f"{n:,}: {shown}{_elsewhere(column['counted_in'], ' in ')}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _labels(dataset: Dataset) -> str:
    histogram = dataset.label_histogram
    if histogram is None:
        return ""
    rho = "" if dataset.rho is None else f" (correlation inside blocks {dataset.rho:.3f}; 1: each block has one label)"
    if dataset.task == "regression":
        return f"{counted(len(histogram.values), 'value')}{rho}"
    names = dict(enumerate(dataset.manifest.classes or ()))
    pairs = list(zip(histogram.values.tolist(), histogram.counts.tolist(), strict=True))
    shown = [f"{names.get(value, value)}: {count:,}" for value, count in pairs[:_CLASSES_SHOWN]]
    more = [f"and {len(pairs) - _CLASSES_SHOWN:,} more"] if len(pairs) > _CLASSES_SHOWN else []
    return "; ".join(shown + more) + rho


def _table(dataset: Dataset) -> list[str]:
    head = ("field", "dtype", "shape", "mean", "std", "min", "max")
    rows: list[tuple[str, ...]] = [head]
    columns = dataset.schema.columns
    for field in dataset.layout.own_fields:
        overall = dataset.manifest.statistics[field.name].overall
        numbers = map(format_value, (overall.mean, overall.std, overall.min, overall.max))
        # Unlike columns have no mean together.
        figures = ("",) * 4 if len(columns.get(field.name, ())) > 1 else numbers
        images = dataset.manifest.statistics[field.name].images
        kind = (field.dtype.name, str(field.shape)) if images is None else ("images", str(images))
        rows.append((field.name, *kind, *figures))
    return _aligned(rows)


@command("verify", examples=("streamtrain verify flights", "streamtrain verify flights --full"), page="damaged-data")
@click.argument("dest", metavar="DEST", type=DATASET_TEXT)
@option("--full", is_flag=True, help="Also read every block and compare it with its checksum.")
@json_option
def verify_command(dest: str, full: bool, as_json: bool) -> None:
    """Check the dataset at DEST against its manifest, and list all damage; if there is any, the exit code is 4.

    Lengths and metadata are checked by default; --full reads every stored byte.
    """
    from streamtrain.store.verify import verify
    from streamtrain.system.display.progress_bar import ProgressBar, is_shown

    # Shown where stderr is a terminal.
    with ProgressBar(
        desc="verify", unit="B", unit_scale=True, disable=not (full and not is_quiet() and is_shown(None)), leave=False
    ) as bar:

        def tell(n_bytes: int, total: int) -> None:
            bar.total = total
            bar.update(n_bytes)

        verified = verify(dest, full=full, tell=tell)
    reports = {f"{dest}/{name}": report for name, report in verified.splits} or {dest: verified}
    result = _verify_result(dest, verified)
    if verified.splits:
        result["splits"] = {name: _verify_result(f"{dest}/{name}", each) for name, each in verified.splits}
    own = [error for error in verified.damage if not any(error in each.damage for each in reports.values())]
    lines = [_verify_text(name, report) for name, report in reports.items()]
    emit(as_json, result, Lines.of([*lines, *(f"{dest}: {error}" for error in own)]))
    if verified.damage:
        raise click.exceptions.Exit(DatasetError.exit_code)


def _verify_result(dest: str, verified: VerifyReport) -> dict[str, Any]:
    layout = verified.manifest.layout
    return {
        "dataset": dest,
        "id": verified.manifest.id,
        "full": verified.full,
        "files": len(verified.manifest.files),
        "blocks": layout.n_blocks * len(layout.fields) if verified.full else 0,
        "bytes": verified.n_bytes,
        "seconds": round(verified.seconds, 3),
        "damage": [_one(error) for error in verified.damage],
    }


def _one(error: DatasetError) -> dict[str, Any]:
    found: dict[str, Any] = {"file": error.where, "what": error.what, "why": error.why, "fix": error.fix}
    if isinstance(error, DamagedBlock):
        start, stop = error.samples
        found |= {"field": error.field, "block": error.block, "first_sample": start, "last_sample": stop - 1}
    return found


def _verify_text(dest: str, verified: VerifyReport) -> str:
    looked = f"{counted(len(verified.manifest.files), 'file')}, {format_duration(verified.seconds)}"
    if verified.full:
        rate = f"{format_bytes(verified.bytes_per_second)}/s"
        looked = f"{format_bytes(verified.n_bytes)} of blocks read and checked at {rate}; {looked}"
    else:
        looked = f"lengths and metadata; blocks are read with --full; {looked}"
    if not verified.damage:
        return f"{dest}: whole ({looked})"
    n = len(verified.damage)
    head = f"{dest}: {n:,} {'place is' if n == 1 else 'places are'} damaged ({looked})"
    return Lines.of([head, *(f"  {error}" for error in verified.damage)])


@command("repair", examples=("streamtrain repair flights", "streamtrain repair flights --remove"), page="damaged-data")
@click.argument("dest", metavar="DEST", type=DATASET_TEXT)
@option("--remove", is_flag=True, help="Remove what repair lists.")
@json_option
def repair_command(dest: str, remove: bool, as_json: bool) -> None:
    """List what interrupted ingests to DEST left behind; files of a finished dataset are never listed."""
    from streamtrain.store.verify import repair
    from streamtrain.store.writing.staging import destination_state

    found = repair(dest, remove=remove)
    result = {
        "dest": dest,
        "removed": remove,
        "leftovers": [{"path": str(item.path), "what": item.what, "bytes": item.n_bytes} for item in found],
        "dataset": destination_state(Path(dest)) == "committed",
    }
    lines = [f"{item.path}: {item.what} ({format_bytes(item.n_bytes)})" for item in found]
    if not found:
        looks = command_line(["streamtrain", "verify", dest, "--full"])
        is_there = [f"whether the dataset itself is damaged: {looks}"] if result["dataset"] else []
        lines = [f"{dest}: no leftovers of interrupted ingests", *is_there]
    else:
        removal = command_line(["streamtrain", "repair", dest, "--remove"])
        lines.append("removed" if remove else f"{removal} removes them")
    emit(as_json, result, Lines.of(lines))
