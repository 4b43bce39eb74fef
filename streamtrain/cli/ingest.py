"""``streamtrain ingest SRC... DEST``: turn raw files into a dataset."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.output import (
    as_command_line,
    emit,
    json_option,
    label_text,
    note,
    stored_facts,
    task_facts,
)
from streamtrain.errors import Lines, UsageError
from streamtrain.system.units import format_bytes, format_duration

if TYPE_CHECKING:
    from streamtrain.store.dataset import Dataset


@click.command("ingest")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("dest", metavar="DEST")
@click.option("--labels", metavar="SRC", help="A file whose rows become field y.")
@click.option("--label-column", metavar="C,...", help="Tables: the column that becomes field y; or several, A,B.")
@click.option("--columns", metavar="A,B", help="Tables: the columns of field x; all but the label by default.")
@click.option("--exclude", metavar="A,B", help="Tables: columns to leave out.")
@click.option("--categorical", metavar="A,B", help="Tables: columns that become codes, field cat.")
@click.option("--category-min-count", type=int, metavar="K", help="Rarer categories share one code.")
@click.option("--category-limit", type=int, metavar="N", help="The most categories of a column; a million by default.")
@click.option("--hash", metavar="C=N", help="Tables: columns of so many codes without names.")
@click.option("--dates", metavar="C[=days]", help="Tables: columns of dates, as seconds or days since 1970.")
@click.option("--timezone", metavar="ZONE", help="Of dates and times that name no zone; UTC by default.")
@click.option("--na", metavar="RULE", help="Missing numbers: error (the default), fill=V, fill=mean or drop.")
@click.option("--na-mask", is_flag=True, default=None, help="Add field x_missing: which values were filled in.")
@click.option("--nan", metavar="RULE", help="NaN and infinity as values: error (the default) or keep.")
@click.option("--drop-unlabelled", is_flag=True, default=None, help="Leave out rows whose label is missing.")
@click.option("--weight-column", metavar="C", help="Tables: the column that becomes field weight.")
@click.option("--id-column", metavar="C", help="Tables: the column of whole numbers that becomes field id.")
@click.option("--auto", is_flag=True, default=None, help="Choose for each column what fits it, and say how.")
@click.option("--header", metavar="WHERE", help="CSV, TSV: first, or none with --names.")
@click.option("--names", metavar="A,B,p1..p9", help="CSV, TSV without a header: the names of its columns.")
@click.option("--delimiter", metavar="CHAR", help="CSV, TSV: by default found among , ; | and tab.")
@click.option("--encoding", metavar="NAME", help="CSV, TSV: the encoding of the text; utf-8 by default.")
@click.option("--na-values", metavar="A,B", help="CSV, TSV: texts that mean missing; NA, NaN, null and kin by default.")
@click.option(
    "--classes",
    metavar="N|A,B|auto",
    help="How many classes y holds, or their names; others are refused. auto: the whole numbers there are.",
)
@click.option("--task", metavar="TASK", help="classification, multilabel or regression; follows from y by default.")
@click.option("--like", metavar="DATASET", help="Read the rows in the terms of another dataset, learning nothing.")
@click.option("--fields", metavar="x=A,y=B", help=".npz: the members that become fields x, y, ...; no others are read.")
@click.option("--dtype", help="Raw binary: the element type.")
@click.option("--shape", metavar="28,28", help="Raw binary: the shape of one sample.")
@click.option("--block", metavar="SIZE", help="Decoded bytes of a block; about 512KiB by default.")
@click.option("--shard", metavar="SIZE", default="64MB", show_default=True, help="Decoded bytes of a shard file.")
@click.option("--codec", default="auto", show_default=True, help="auto, none, lz4 or zstd.")
@click.option("--memory", metavar="SIZE", default="1GB", show_default=True, help="What the ingest may own.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset at DEST when the new one is finished.")
@click.option("--append", is_flag=True, help="Add the rows behind those of the dataset at DEST.")
@click.option("--split", metavar="val=0.1,test=0.1", help="Divide the rows: a dataset for each, and train the rest.")
@click.option("--split-by", metavar="COLUMN", help="Rows of equal values stay in one split; a column, or a field.")
@click.option("--split-how", metavar="HOW", help="hash draws (default); last takes the last rows, in order.")
@click.option("--split-seed", type=int, help="Of the draw; 0 by default.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted ingest; begin where there is none.")
@json_option
def ingest_command(
    sources: tuple[str, ...],
    dest: str,
    as_json: bool,
    columns: str | None,
    names: str | None,
    delimiter: str | None,
    na_values: str | None,
    classes: str | None,
    fields: str | None,
    shape: str | None,
    label_column: str | None,
    exclude: str | None,
    categorical: str | None,
    hash: str | None,
    dates: str | None,
    split: str | None,
    **options: Any,
) -> None:
    """Turn raw files into a dataset at DEST, where nothing may be unless one of three options says otherwise.

    SRC are files of one kind, or a folder of them: .npy, .npz, idx, CSV, TSV, Parquet, or raw binary.
    """
    from streamtrain.ingestion.ingest import ingest
    from streamtrain.store.split_root import read_splits

    started = time.perf_counter()
    dataset = ingest(
        list(sources) if len(sources) > 1 else sources[0],
        dest,
        columns=_parse_list(columns),
        label_column=_parse_list(label_column),
        exclude=_parse_list(exclude),
        categorical=_parse_list(categorical),
        hash=None if hash is None else _parse_hash(hash),
        dates=None if dates is None else _parse_dates(dates),
        names=_parse_list(names),
        delimiter=_TABS.get(delimiter or "", delimiter),
        na_values=None if na_values is None else tuple(na_values.split(",")),
        classes=None if classes is None else _parse_classes(classes),
        fields=None if fields is None else parse_fields(fields),
        shape=None if shape is None else _parse_shape(shape),
        split=None if split is None else _parse_split(split),
        say=lambda text: note(as_command_line(text)),
        **options,
    )
    root = read_splits(dataset.path.parent)
    result = _result(dataset, time.perf_counter() - started)
    if root is not None:
        result |= {"splits": dict(root.n_samples), "split_rule": root.rule.as_json()}
    emit(as_json, result, _text(result, dataset))


def _parse_list(text: str | None) -> tuple[str, ...] | None:
    """Split a list of columns; ``i1..i13`` are those numbers."""
    if text is None:
        return None
    return tuple(name for word in text.split(",") for name in _in_range(word))


def _parse_hash(text: str) -> dict[str, int]:
    pairs = [word.rpartition("=") for word in text.split(",")]
    if not all(name and size.isdecimal() for name, _, size in pairs):
        raise UsageError(f"--hash {text!r} is not a list of COLUMN=NUMBER", fix="--hash city=100000, say")
    return {each: int(size) for name, _, size in pairs for each in _in_range(name)}


def _parse_dates(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split(",")]
    return {each: unit or "seconds" for name, _, unit in pairs for each in _in_range(name)}


_TABS: Final = {"\\t": "\t", "tab": "\t"}
_RANGE: Final = re.compile(r"(.*?)(\d+)\.\.\1(\d+)", re.DOTALL)
_MOST_COLUMNS: Final = 1_000_000


def _in_range(word: str) -> Iterable[str]:
    found = _RANGE.fullmatch(word)
    if not found:
        return [word]
    prefix, first, last = found.groups()
    if not int(first) <= int(last) < int(first) + _MOST_COLUMNS:
        fix = f"{prefix}1..{prefix}9, say"
        raise UsageError(f"{word!r:.80} is no range of 1 to {_MOST_COLUMNS:,} names", fix=fix)
    # 01..12 keeps its zeros.
    width = len(first) if first.startswith("0") else 0
    return (f"{prefix}{number:0{width}}" for number in range(int(first), int(last) + 1))


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split(",") if n.strip())
    except ValueError:
        raise UsageError(f"--shape {text!r} is not a list of integers", fix="--shape 28,28, say") from None


def parse_fields(text: str) -> dict[str, str]:
    """Read FIELD=NAME,... as a mapping."""
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    fields = {field.strip(): name.strip() for field, _, name in pairs}
    if len(fields) < len(pairs) or not all(map(all, pairs)):
        fix = "--fields x=images,y=labels, say"
        raise UsageError(f"--fields {text!r} is not a list of different FIELD=NAME", fix=fix)
    return fields


def _parse_split(text: str) -> dict[str, float]:
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    try:
        split = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        split = {}
    if not split or len(split) < len(pairs) or not all(name.strip() for name, _, _ in pairs):
        raise UsageError(f"--split {text!r} is not a list of different NAME=SHARE", fix="--split val=0.1,test=0.1, say")
    return split


def _parse_classes(text: str) -> int | str | list[str]:
    if text == "auto":
        return text
    return int(text) if text.removeprefix("-").isdecimal() else text.split(",")


def _result(dataset: Dataset, seconds: float) -> dict[str, Any]:
    return {
        **stored_facts(dataset),
        "fields": {field.name: {"dtype": field.dtype.name, "shape": field.shape} for field in dataset.fields},
        "task": task_facts(dataset),
        "seconds": round(seconds, 3),
        "mb_per_s": round(dataset.nbytes / seconds / 1e6, 1),
    }


def _text(result: dict[str, Any], dataset: Dataset) -> str:
    fields = ", ".join(f"{name} {f['dtype']} {f['shape']}" for name, f in result["fields"].items())
    lines = [
        f"{result['dataset']}: {result['samples']:,} samples of {fields}",
        f"{format_bytes(result['bytes'])} stored in {format_bytes(result['stored_bytes'])} ({result['codec']}), "
        f"{result['blocks']:,} blocks of {result['block_rows']:,} samples ({format_bytes(result['block_bytes'])}), "
        f"{result['shards']:,} shard files",
        f"{format_duration(result['seconds'])}, {result['mb_per_s']:,.0f} MB/s",
    ]
    if result["classes"]:
        lines.append("classes: " + ", ".join(f"{number} = {name}" for number, name in result["classes"].items()))
    if label := label_text(dataset):
        lines.append(f"label   {label}")
    return Lines.of(lines)
