"""``streamtrain ingest SRC... DEST``: turn raw files into a dataset."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

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
    classes: str | None,
    fields: str | None,
    shape: str | None,
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
        columns=None if columns is None else tuple(columns.split(",")),
        classes=None if classes is None else _parse_classes(classes),
        fields=None if fields is None else _parse_fields(fields),
        shape=None if shape is None else _parse_shape(shape),
        split=None if split is None else _parse_split(split),
        say=note,
        **options,
    )
    root = read_splits(dataset.path.parent)
    result = _result(dataset, time.perf_counter() - started)
    if root is not None:
        result |= {"splits": dict(root.n_samples), "split_rule": root.rule.as_json()}
    emit(as_json, result, _text(result))


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


def _parse_split(text: str) -> dict[str, float]:
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    try:
        split = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        split = {}
    if not split or len(split) < len(pairs) or not all(name.strip() for name, _, _ in pairs):
        raise UsageError(f"--split {text!r} is not a list of different NAME=SHARE", fix="--split val=0.1,test=0.1, say")
    return split


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
