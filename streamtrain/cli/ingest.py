"""``streamtrain ingest SRC... DEST``: turn raw files into a dataset."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.output import emit, json_option, note, stored_facts
from streamtrain.errors import Lines, UsageError
from streamtrain.system.units import format_bytes, format_duration

if TYPE_CHECKING:
    from streamtrain.store.dataset import Dataset


@click.command("ingest")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("dest", metavar="DEST")
@click.option("--labels", metavar="SRC", help="A file whose rows become field y.")
@click.option("--label-column", metavar="C", help="Tables: the column that becomes field y.")
@click.option("--columns", metavar="A,B", help="Tables: the columns of field x; all but the label by default.")
@click.option("--header", metavar="WHERE", help="CSV, TSV: first, or none with --names.")
@click.option("--names", metavar="A,B,p1..p9", help="CSV, TSV without a header: the names of its columns.")
@click.option("--delimiter", metavar="CHAR", help="CSV, TSV: by default found among , ; | and tab.")
@click.option("--encoding", metavar="NAME", help="CSV, TSV: the encoding of the text; utf-8 by default.")
@click.option("--na-values", metavar="A,B", help="CSV, TSV: texts that mean missing; NA, NaN, null and kin by default.")
@click.option("--classes", metavar="N|A,B", help="How many classes y holds, or their names; others are refused.")
@click.option("--fields", metavar="x=A,y=B", help=".npz: the members that become fields x, y, ...; no others are read.")
@click.option("--dtype", help="Raw binary: the element type.")
@click.option("--shape", metavar="28,28", help="Raw binary: the shape of one sample.")
@click.option("--block", metavar="SIZE", help="Decoded bytes of a block; about 512KiB by default.")
@click.option("--shard", metavar="SIZE", default="64MB", show_default=True, help="Decoded bytes of a shard file.")
@click.option("--codec", default="auto", show_default=True, help="auto, none, lz4 or zstd.")
@click.option("--memory", metavar="SIZE", default="1GB", show_default=True, help="What the ingest may own.")
@click.option("--overwrite", is_flag=True, help="Replace the dataset at DEST when the new one is finished.")
@click.option("--append", is_flag=True, help="Add the rows behind those of the dataset at DEST.")
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
    **options: Any,
) -> None:
    """Turn raw files into a dataset at DEST, where nothing may be unless one of three options says otherwise.

    SRC are files of one kind, or a folder of them: .npy, .npz, idx, CSV, TSV, Parquet, or raw binary.
    """
    from streamtrain.ingestion.ingest import ingest

    started = time.perf_counter()
    dataset = ingest(
        list(sources) if len(sources) > 1 else sources[0],
        dest,
        columns=None if columns is None else _parse_names(columns),
        names=None if names is None else _parse_names(names),
        delimiter=_TABS.get(delimiter or "", delimiter),
        na_values=None if na_values is None else tuple(na_values.split(",")),
        classes=None if classes is None else _parse_classes(classes),
        fields=None if fields is None else _parse_fields(fields),
        shape=None if shape is None else _parse_shape(shape),
        say=note,
        **options,
    )
    result = _result(dataset, time.perf_counter() - started)
    emit(as_json, result, _text(result))


_TABS: Final = {"\\t": "\t", "tab": "\t"}
_RANGE: Final = re.compile(r"(.*?)(\d+)\.\.\1(\d+)", re.DOTALL)
_MOST_COLUMNS: Final = 1_000_000


def _parse_names(text: str) -> tuple[str, ...]:
    """Split a list of names, in which ``p1..p9`` is nine of them."""
    return tuple(name for word in text.split(",") for name in _in_range(word))


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


def _parse_fields(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    fields = {field.strip(): name.strip() for field, _, name in pairs}
    if len(fields) < len(pairs) or not all(map(all, pairs)):
        fix = "--fields x=images,y=labels, say"
        raise UsageError(f"--fields {text!r} is not a list of different FIELD=NAME", fix=fix)
    return fields


def _parse_classes(text: str) -> int | list[str]:
    return int(text) if text.removeprefix("-").isdecimal() else text.split(",")


def _result(dataset: Dataset, seconds: float) -> dict[str, Any]:
    return {
        **stored_facts(dataset),
        "fields": {field.name: {"dtype": field.dtype.name, "shape": field.shape} for field in dataset.fields},
        "seconds": round(seconds, 3),
        "mb_per_s": round(dataset.nbytes / seconds / 1e6, 1),
    }


def _text(result: dict[str, Any]) -> str:
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
    return Lines.of(lines)
