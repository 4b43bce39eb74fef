"""``streamtrain ingest SRC... DEST``: turn raw files into a dataset."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click

from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import CODECS, DATASET_TEXT, FILE, MISSING, SIZE, TASKS, Choice, Suggestion
from streamtrain.cli.output import (
    as_command_line,
    command_line,
    emit,
    encoded_facts,
    error_text,
    is_quiet,
    json_option,
    label_text,
    missing_text,
    note,
    stored_facts,
    task_facts,
    typed_words,
)
from streamtrain.errors import Argument, Fix, InputError, Lines, UsageError
from streamtrain.system.files import local_path
from streamtrain.system.units import counted, format_bytes, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamtrain.store.dataset import Dataset


_LABELS: Final = "Labels and task"
_TABLES: Final = "Columns of tables"
_TEXT: Final = "Text: CSV and TSV"
_ARRAYS: Final = "Arrays and raw binary"
_IMAGES: Final = "Images"
_STORAGE: Final = "Storage"
_SPLITS: Final = "Splits"
_WRITING: Final = "Writing"


@command(
    "ingest",
    first=(_LABELS, _TABLES, _TEXT, _ARRAYS, _SPLITS, _STORAGE, _WRITING),
    examples=(
        "streamtrain ingest flights.csv flights --label-column arr_delay --auto --split val=0.1,test=0.1",
        "streamtrain ingest x.npy digits --labels y.npy --task classification",
    ),
    page="ingest",
)
@click.argument("sources", nargs=-1, metavar="SRC...", type=FILE)
@click.argument("dest", metavar="DEST", type=DATASET_TEXT)
@option("--labels", metavar="SRC", type=FILE, section=_LABELS, help="A file whose rows become field y.")
@option("--label-key", metavar="COLUMN", section=_LABELS, help="Images: the column of file names in --labels.")
@option("--label-column", metavar="A,B", section=_LABELS, help="The column that becomes field y, or several.")
@option(
    "--classes",
    metavar="N|A,B|auto",
    section=_LABELS,
    help="Number or names of the classes; auto: those found in the data.",
)
@option("--task", type=Choice(TASKS), section=_LABELS, help=f"{', '.join(TASKS)}; by default inferred from y.")
@option("--drop-unlabelled", is_flag=True, default=None, section=_LABELS, help="Leave out rows whose label is missing.")
@option(
    "--like",
    metavar="DATASET",
    type=DATASET_TEXT,
    section=_LABELS,
    help="Read the rows in the same way as another dataset's.",
)
@option(
    "--auto", is_flag=True, default=None, section=_TABLES, help="Choose options that fit each column, and print them."
)
@option("--columns", metavar="A,B", section=_TABLES, help="The columns of field x; by default all but the label.")
@option("--exclude", metavar="A,B", section=_TABLES, help="Columns to leave out.")
@option("--categorical", metavar="A,B", section=_TABLES, help="Columns stored as codes in field cat.")
@option("--category-min-count", type=int, section=_TABLES, help="Rarer categories share one code.")
@option("--category-limit", type=int, section=_TABLES, help="Most categories a column may have; by default a million.")
@option("--hash", metavar="C=N", section=_TABLES, help="Columns with too many categories: N codes by hash.")
@option("--dates", metavar="C[=days]", section=_TABLES, help="Columns of dates, as seconds or days since 1970.")
@option("--timezone", metavar="ZONE", section=_TABLES, help="Time zone of times that name none; by default UTC.")
@option(
    "--na",
    type=Suggestion(MISSING),
    metavar="RULE",
    section=_TABLES,
    help="Missing numbers: error (the default), fill=V, fill=mean or drop.",
)
@option(
    "--na-mask", is_flag=True, default=None, section=_TABLES, help="Add field x_missing, which marks filled-in values."
)
@option(
    "--nan",
    type=Suggestion(("error", "keep")),
    section=_TABLES,
    help="Refuse NaN and infinity (error, the default), or keep them.",
)
@option("--weight-column", metavar="C", section=_TABLES, help="The column that becomes field weight.")
@option("--id-column", metavar="C", section=_TABLES, help="The column of whole numbers that becomes field id.")
@option(
    "--header",
    type=Suggestion(("first", "none")),
    section=_TEXT,
    help="first (the default): the first line holds the names; none: give --names.",
)
@option("--names", metavar="A,B,p1..p9", section=_TEXT, help="Column names of a file without a header.")
@option("--delimiter", metavar="CHAR", section=_TEXT, help="By default found among , ; | and tab.")
@option("--encoding", metavar="NAME", section=_TEXT, help="By default utf-8.")
@option("--na-values", metavar="A,B", section=_TEXT, help="Words for missing values; by default NA, NaN, null, ...")
@option("--fields", metavar="x=A,y=B", section=_ARRAYS, help="Arrays of .npz, HDF5 and Zarr by field.")
@option(
    "--decode",
    type=Suggestion(("cf", "raw")),
    section=_ARRAYS,
    help="HDF5 and Zarr: apply CF attributes (the default), or not.",
)
@option("--sample-axis", type=int, section=_ARRAYS, help="HDF5 and Zarr: the axis of the samples, 0.")
@option("--dtype", metavar="DTYPE", section=_ARRAYS, help="Raw binary: the element type.")
@option("--shape", metavar="28,28", section=_ARRAYS, help="Raw binary: the shape of one sample.")
@option(
    "--check", type=Choice(("full", "header")), section=_IMAGES, help="full decodes each image; header reads sizes."
)
@option("--max-pixels", type=int, metavar="N", section=_IMAGES, help="Refuse larger images; by default 64 million.")
@option("--mode", type=Choice(("RGB", "L")), section=_IMAGES, help="Convert images of other modes to this one.")
@option("--max-side", type=int, metavar="N", section=_IMAGES, help="Shrink images whose short side is longer.")
@option("--store", type=Choice(("encoded", "decoded")), section=_IMAGES, help="As they are, or as pixels of --size.")
@option("--size", type=int, metavar="N", section=_IMAGES, help="With --store decoded: the side of the center square.")
@option("--split", metavar="val=0.1,test=0.1", section=_SPLITS, help="Divide the rows; the rest is split train.")
@option("--split-by", metavar="COLUMN", section=_SPLITS, help="Keep rows with equal values in one split.")
@option(
    "--split-how",
    type=Choice(("hash", "last")),
    section=_SPLITS,
    help="hash: at random (the default); last: the last rows.",
)
@option("--split-seed", type=int, section=_SPLITS, help="Seed of --split-how hash; by default 0.")
@option("--block", type=SIZE, section=_STORAGE, help="Block size; by default about 512KiB, less for small data.")
@option("--shard", type=SIZE, default="64MB", show_default=True, section=_STORAGE, help="Shard file size.")
@option(
    "--codec",
    type=Choice(CODECS),
    default="auto",
    show_default=True,
    section=_STORAGE,
    help="auto, none, lz4 or zstd.",
)
@option("--memory", type=SIZE, default="1GB", show_default=True, section=_WRITING, help="Memory budget for the ingest.")
@option(
    "--scheduler",
    metavar="ADDRESS",
    section=_WRITING,
    help="A dask cluster, or processes, to ingest on.",
)
@option("--overwrite", is_flag=True, section=_WRITING, help="Replace the dataset at DEST, once complete.")
@option("--append", is_flag=True, section=_WRITING, help="Add the rows to the end of the dataset at DEST.")
@option("--resume", is_flag=True, section=_WRITING, help="Resume an interrupted ingest; start if there is none.")
@option("--dry-run", is_flag=True, section=_WRITING, help="Print what SRC contains; write nothing.")
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
    dry_run: bool,
    **options: Any,
) -> None:
    """Turn raw files into a dataset at DEST, which must not exist without --overwrite, --append or --resume.

    SRC are files of one kind, or a folder of them: .npy, .npz, idx, HDF5, NetCDF4, CSV, TSV, Parquet, tar, raw binary;
    a Zarr directory; a folder of images, or of folders of them, one for each class.
    """
    from streamtrain.ingestion.ingest import ingest
    from streamtrain.store.split_root import read_splits

    started = time.perf_counter()
    if dry_run and not sources:
        # Nothing is written, so there need be no place for it.
        sources, dest = (dest,), f"{dest}.{uuid4().hex}"
    _check_places(sources, dest)
    options |= {
        "columns": _parse_list(columns),
        "label_column": _parse_list(label_column),
        "exclude": _parse_list(exclude),
        "categorical": _parse_list(categorical),
        "hash": None if hash is None else _parse_hash(hash),
        "dates": None if dates is None else _parse_dates(dates),
        "names": _parse_list(names),
        "delimiter": _TABS.get(delimiter or "", delimiter),
        "na_values": None if na_values is None else tuple(na_values.split(",")),
        "classes": None if classes is None else _parse_classes(classes),
        "fields": None if fields is None else parse_fields(fields),
        "shape": None if shape is None else _parse_shape(shape),
        "split": None if split is None else _parse_split(split),
        "say": lambda text: note(as_command_line(text)),
        "progress": False if is_quiet() else None,
    }
    source = list(sources) if len(sources) > 1 else sources[0]
    if dry_run:
        _print_found(as_json, source, dest, options)
        return
    dataset = ingest(source, dest, **options)
    root = read_splits(dataset.path.parent)
    result = _result(dataset, time.perf_counter() - started)
    if root is not None:
        result |= {"splits": dict(root.n_samples), "split_rule": root.rule.as_json()}
    emit(as_json, result, _text(result, dataset))
    if options["auto"] and options["labels"] is None and "y" not in result["fields"]:
        hint = Fix("hint: there are no labels, which train needs: ", Argument("label_column", "NAME"), " names them")
        note(as_command_line(hint))
    if (doubt := _doubt_of_task(dataset)) is not None:
        note(f"warning: train will refuse it: {doubt}")


def _check_places(sources: tuple[str, ...], dest: str) -> None:
    """Refuse a command without a source or a destination, or with a list that has blanks in it."""
    if any(not _is_there(source) for source in sources):
        _check_lists({*sources, dest})
    elif _is_there(dest) and (not sources or local_path(dest).is_file()):
        stem = local_path(dest).name.partition(".")[0] or "dataset"
        name = next(name for name in (stem, f"{stem}.zarr", f"{stem}-new") if not local_path(name).exists())
        words = [word for word in typed_words() if word not in ("--overwrite", "--append")]
        kind = "file" if local_path(dest).is_file() else "folder"
        why = f"The last argument is the new dataset, and {dest} is a {kind}"
        raise UsageError("DEST is missing", why=why, fix=command_line(["streamtrain", *words, name]))
    elif not sources:
        raise UsageError("SRC is missing", why=f"The last argument is the new dataset, {dest}", fix="FILE DEST, say")


def _is_there(place: str) -> bool:
    """Whether something is at a place; what may not be looked at is refused where it is opened."""
    try:
        return local_path(place).exists()
    except OSError:
        return False


def _check_lists(places: Collection[str]) -> None:
    """Refuse a word that is no file and follows the value of an option that takes a list; a suffix is a file's."""
    words = typed_words()
    for name, value, word in zip(words, words[1:], words[2:], strict=False):
        path = local_path(word)
        if name in _LISTS and word in places and not path.suffix and not _is_there(word):
            what = f"{word!r} is no file, and follows {name} {value} as a word of its own"
            raise InputError(what, why="Lists are separated by commas", fix=command_line([name, f"{value},{word}"]))


_LISTS: Final = (
    *("--label-column", "--classes", "--columns", "--exclude", "--categorical", "--hash", "--dates", "--names"),
    *("--na-values", "--fields", "--split"),
)


def _print_found(as_json: bool, source: str | list[str], dest: str, options: dict[str, Any]) -> None:
    """Print what an ingest finds, and what it would write."""
    from streamtrain.ingestion.dry_run import find

    found = find(source, dest, **options)
    result: dict[str, Any] = {
        "samples": found.n_samples,
        "fields": {
            field.name: {"dtype": field.dtype.name, "shape": field.shape, **({"encoded": {}} if field.encoded else {})}
            for field in found.own_fields
        },
        "classes": found.classes,
        "bytes": found.n_bytes,
        "block_rows": found.block_rows,
        "sources": found.sources,
        "split_rule": None if found.rule is None else found.rule.as_json(),
    }
    n_rows = "rows that only reading counts" if found.n_samples is None else counted(found.n_samples, "sample")
    lines = [f"{n_rows} of {_fields_text(result['fields'])}"]
    if found.n_bytes is not None:
        blocks = f"blocks of {counted(found.block_rows or 0, 'sample')}"
        lines.append(f"{format_bytes(found.n_bytes)} in {blocks}, before compression")
    for entry in found.sources:
        facts = [f"{name} {_fact_text(entry[name])}" for name in _FACTS if entry.get(name)]
        lines.append(f"{entry.get('path', 'in memory')}: {', '.join([entry['format'], *facts])}")
    if found.classes:
        lines.append(f"classes: {', '.join(found.classes[:_CLASSES_SHOWN])}")
    emit(as_json, result, Lines.of([*lines, "nothing was written"]))


_FACTS: Final = ("arrays", "chunks", "missing_chunks", "rows", "columns", "label_column", "dropped")


def _fact_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in list(value.items())[:_CLASSES_SHOWN])
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _CLASSES_SHOWN:,} more" if len(value) > _CLASSES_SHOWN else ""
        return ", ".join(map(str, value[:_CLASSES_SHOWN])) + more
    return str(value)


def _fields_text(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_field_text(field)}" for name, field in fields.items())


def _field_text(field: dict[str, Any]) -> str:
    if "encoded" not in field:
        return f"{field['dtype']} {field['shape']}"
    kinds = field["encoded"].get("media", {})
    return f"images ({', '.join(f'{name} {count:,}' for name, count in kinds.items())})" if kinds else "images"


def _doubt_of_task(dataset: Dataset) -> str | None:
    """Say why labels cannot be of the task that was told; None where they can."""
    from streamtrain.store.schema.task import check_told

    task = dataset.label_task()
    try:
        if task is not None and task.name is not None:
            check_told(task.labels, task.name, str(dataset.path))
    except UsageError as error:
        return error_text(error)
    return None


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


_CLASSES_SHOWN: Final = 20
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
        raise UsageError(f"{word!r:.80} is not a range of 1 to {_MOST_COLUMNS:,} names", fix=fix)
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
    if len(pairs) == 1 and pairs[0][1] == "" and re.fullmatch(r"0?\.\d+", pairs[0][0].strip()):
        raise UsageError(f"--split {text!r} is a share without a name", fix=f"--split val={text.strip()}")
    try:
        split = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        split = {}
    if not split or len(split) < len(pairs) or not all(name.strip() for name, _, _ in pairs):
        raise UsageError(
            f"--split {text!r} is not a name and a share for each split",
            fix="--split val=0.1,test=0.1, say",
        )
    return split


def _parse_classes(text: str) -> int | str | list[str]:
    if text == "auto":
        return text
    return int(text) if text.removeprefix("-").isdecimal() else text.split(",")


def _result(dataset: Dataset, seconds: float) -> dict[str, Any]:
    return {
        **stored_facts(dataset),
        "fields": {
            field.name: {"dtype": field.dtype.name, "shape": field.shape, **encoded_facts(dataset, field)}
            for field in dataset.layout.own_fields
        },
        "task": task_facts(dataset),
        "seconds": round(seconds, 3),
        "mb_per_s": round(dataset.nbytes / seconds / 1e6, 1),
    }


def _text(result: dict[str, Any], dataset: Dataset) -> str:
    lines = [f"{result['dataset']}: {counted(result['samples'], 'sample')} of {_fields_text(result['fields'])}"]
    if not is_quiet():
        lines += _cost(result)
    if classes := result["classes"]:
        shown = [f"{number} = {name}" for number, name in list(classes.items())[:_CLASSES_SHOWN]]
        more = [f"and {len(classes) - len(shown):,} more"] if len(classes) > len(shown) else []
        lines.append(f"classes: {', '.join([*shown, *more])}")
    if label := label_text(dataset):
        lines.append(f"label   {label}")
    if missing := missing_text(dataset):
        lines.append(f"missing {missing}")
    return Lines.of(lines)


def _cost(result: dict[str, Any]) -> Iterator[str]:
    """Write what the data takes on the disk, and what the ingest took."""
    blocks = f"{counted(result['blocks'], 'block')} of {counted(result['block_rows'], 'sample')}"
    yield (
        f"{format_bytes(result['bytes'])} stored in {format_bytes(result['stored_bytes'])} ({result['codec']}), "
        f"{blocks} ({format_bytes(result['block_bytes'])}), {counted(result['shards'], 'shard file')}"
    )
    rate = result["mb_per_s"]
    yield f"{format_duration(result['seconds'])}, {rate:,.{0 if rate >= 1 else 1}f} MB/s"
