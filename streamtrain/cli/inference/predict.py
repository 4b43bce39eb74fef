"""The work of ``streamtrain predict RUN SRC...`` and ``streamtrain export RUN``: a run's model, applied or written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from streamtrain.cli.ingest import parse_fields
from streamtrain.cli.options import note_doubt, set_threads
from streamtrain.cli.output import (
    as_command_line,
    command_line,
    emit,
    is_quiet,
    is_verbose,
    memory_line,
    note,
    print_text,
    typed_words,
)
from streamtrain.cli.preparation.images import decode_of, parse_images
from streamtrain.cli.preparation.raw_files import holds_arrays
from streamtrain.errors import InputError, Lines, StreamtrainWarning, UsageError
from streamtrain.ingestion.request import source_options
from streamtrain.ingestion.rows import open_rows
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_files import ImagePaths, image_paths
from streamtrain.models.forward import check_autocast
from streamtrain.store.dataset import Dataset, open_dataset, open_preferred
from streamtrain.store.schema.columns import TEXT_FORM, Schema
from streamtrain.store.split_root import TEST, VAL, chosen_split, read_splits
from streamtrain.system.files import local_path
from streamtrain.system.memory import MemoryMeter, limit_heap_growth
from streamtrain.system.units import format_bytes, format_duration, format_rate, parse_bytes
from streamtrain.training.inference.batches import is_raw
from streamtrain.training.inference.export import check_export, export
from streamtrain.training.inference.model import TrainedModel, load
from streamtrain.training.inference.predicting import (
    PredictOptions,
    Predictor,
    Written,
    consume,
    opened_parts,
    write,
)
from streamtrain.training.inference.predictions import Part
from streamtrain.training.inference.saved_run import read_run
from streamtrain.training.inference.writers.columns import columns_of
from streamtrain.training.inference.writers.target import buffer_bytes, check_target, load_writer, writer_terms
from streamtrain.training.inference.writers.text import TextWriter
from streamtrain.training.run.run_folder import is_run

_N_SHOWN: Final = 10
STDOUT: Final = "-"


def text_options(given: dict[str, Any], memory: str) -> SourceOptions:
    """Take the options of raw text as click gives them."""
    said = {name: value for name, value in given.items() if value is not None}
    for name in ("names", "na_values"):
        if name in said:
            said[name] = tuple(said[name].split(","))
    if said.get("delimiter") in _TABS:
        said["delimiter"] = "\t"
    if "fields" in said:
        said["fields"] = parse_fields(said["fields"])
    return replace(source_options(**said), memory=parse_bytes(memory, name="memory"))


_TABS: Final = ("\\t", "tab")


def run_predict(
    *,
    run: Path,
    sources: tuple[str, ...],
    out: str | None,
    probabilities: bool,
    split: str | None,
    rows: str | None,
    which: str,
    model: str | None,
    batch_size: int,
    memory: str,
    device: str,
    autocast: str | None,
    images: str | None,
    overwrite: bool,
    as_json: bool,
    **of_text: Any,
) -> None:
    """Predict as the command line says, and print the first rows or what was written."""
    refuse_swapped("predict", run, sources)
    _check_out(out, sources, overwrite=overwrite, as_json=as_json)
    set_threads(None)
    limit_heap_growth()
    options = PredictOptions.of(
        probabilities=probabilities,
        batch_size=batch_size,
        memory=memory,
        rows=rows,
        writes=None if out is None else Path(out).suffix,
        say=note,
    )
    narrowed = check_autocast(autocast)
    load_writer(options.writes)
    with MemoryMeter() as meter:
        loaded = load(run, which, device, model)
        note(as_command_line(loaded.weights))
        limit_heap_growth(options.work_bytes(loaded.schema, loaded.inputs))
        data = _opened(loaded, sources, of_text, _share(options), split)
        started = time.perf_counter()
        predictor = replace(_predictor(loaded, data, images), autocast=narrowed)
        shown, is_all = list[Part](), False
        if out is None:
            written, is_all = _show(predictor, data, options, shown)
        elif out == STDOUT:
            written = _print(predictor, data, options)
        else:
            written = write(predictor, data, options, out, overwrite=overwrite)
        seconds = time.perf_counter() - started
    _tell_others(written)
    result = _result(run, sources, out, loaded, written, seconds, options.memory, meter)
    if out is None:
        _emit_shown(_joined(predictor, shown, options), result, as_json, _keeping(run, sources, is_all=is_all))
        return
    lines = list(_lines(written, seconds, result["memory"]))
    if out == STDOUT:
        note(Lines.of(lines))
    else:
        emit(as_json, result, Lines.of([*lines, f"out     {out}"]))
    if hint := written.summary.hint():
        note(f"hint: {hint}")


def _opened(
    loaded: TrainedModel, sources: Sequence[str], of_text: dict[str, Any], memory: str, split: str | None
) -> Any:
    """Open what the run is to predict."""
    is_of_images = loaded.predictor().decode is not None
    return opened_data(sources, loaded.schema, loaded.inputs, of_text, memory, split=split, is_of_images=is_of_images)


def _emit_shown(columns: dict[str, list[Any]], result: dict[str, Any], as_json: bool, keeping: str) -> None:
    """Print the first rows, and the line that keeps all."""
    result["predictions"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    emit(as_json, result, Lines.of([*_table(columns), keeping]))


def _predictor(loaded: TrainedModel, data: object, images: str | None) -> Predictor:
    """Return what predicts, its images decoded as the command line says, if it does."""
    found = replace(loaded.predictor(), name="the run")
    warn_of_size(found.decode, images)
    if images is not None and isinstance(data, ImagePaths):
        return replace(found, decode=decoded_by(found.decode, images))
    if images is None or not isinstance(data, Dataset):
        return found
    return replace(found, decode=decode_of(data, images))


def decoded_by(decode: Decode | None, images: str) -> Decode | None:
    """Decode the images that a run does, but as the command line says."""
    return None if decode is None else {name: parse_images(images) for name in decode}


def warn_of_size(decode: Decode | None, images: str | None) -> None:
    """Warn of images of another size than a run was trained on."""
    if decode is None or images is None:
        return
    size = parse_images(images).size
    if own := next((how.size for how in decode.values() if how.size != size), None):
        told = f"--images {images}, and the run was trained at {own}: its predictions are others than at {own}"
        warnings.warn(StreamtrainWarning(told, fix=f"leave it out, or --images {own}"), stacklevel=2)


def _share(options: PredictOptions) -> str:
    """Return what reading raw rows may own of the memory."""
    return f"{options.memory - sum(writer_terms(options.writes, options.memory).values())}B"


def _check_out(out: str | None, sources: Sequence[str], *, overwrite: bool, as_json: bool) -> None:
    if out == STDOUT and as_json:
        raise UsageError("--json with --out -", why="Both are for stdout", fix="--out predictions.csv, say")
    if overwrite and out in (None, STDOUT):
        raise UsageError("--overwrite without a file", fix="--out predictions.csv, say")
    if out not in (None, STDOUT):
        check_target(str(out), overwrite=overwrite, sources=sources)


def refuse_swapped(command: str, run: Path, sources: Sequence[str]) -> None:
    """Refuse the data in the place of the run, and the run in that of the data."""
    if len(sources) == 1 and not is_run(run) and is_run(Path(sources[0])):
        what = "the run and the data are swapped"
        # With all the options that were typed.
        words = typed_words() or [command, str(run), sources[0]]
        run_at, data_at = (_place_of(path, words) for path in (sources[0], run))
        if run_at and data_at:
            words[run_at], words[data_at] = words[data_at], words[run_at]
        raise UsageError(what, why=f"{sources[0]} is a run", fix=command_line(["streamtrain", *words]))


def _place_of(path: Path | str, words: Sequence[str]) -> int | None:
    """Find where a path stands among the words of a command."""
    same = (i for i, word in enumerate(words) if i and not word.startswith("-") and Path(word) == Path(path))
    return next(same, None)


def opened_data(
    sources: Sequence[str],
    schema: Schema,
    inputs: Sequence[str],
    of_text: dict[str, Any],
    memory: str,
    labels: Sequence[str] = (),
    *,
    labels_from: Sequence[str] = (),
    split: str | None = None,
    preferred: Sequence[str] = (),
    is_of_images: bool = False,
) -> Any:
    """Open a dataset, of splits the one that is named or preferred, or raw files by a run's schema."""
    first = local_path(sources[0])
    if len(sources) == 1 and not is_raw(first) and (first.exists() or first.suffix in ("", ".zarr")):
        if labels_from:
            raise UsageError("--labels with a dataset", why="Its labels are a field of it", fix="leave it out")
        named = split is not None or not preferred
        if split is None and named and (root := read_splits(first)) is not None and len(root.names) > 1:
            what = f"there are {len(root.names)} datasets here: {', '.join(root.names)}"
            raise UsageError(what, where=sources[0], fix=f"--split {chosen_split(first, TEST, VAL)}, say")
        return open_dataset(first, split=split) if named else open_preferred(first, *preferred)
    if split is not None:
        raise UsageError("--split with raw files", why="It names one of the datasets of an ingest", fix="leave it out")
    if (found := image_paths(list(sources))) is not None:
        if labels_from:
            what = "--labels with images, whose labels are the names of their folders"
            raise UsageError(what, where=sources[0], fix="leave it out")
        return found
    if is_of_images and first.is_file() and not holds_arrays(first):
        what = "not an image, and the run takes images"
        raise InputError(what, where=sources[0], fix="JPEG, PNG or WebP, folders of them, or a dataset of images")
    source: Any = list(sources) if len(sources) > 1 else sources[0]
    return open_rows(
        source,
        schema,
        inputs=inputs,
        labels=labels,
        labels_from=(list(labels_from) if len(labels_from) > 1 else labels_from[0]) if labels_from else None,
        options=text_options(of_text, memory),
        form_is_told=any(of_text[name] is not None for name in TEXT_FORM),
        of="the run",
        say=lambda text: note(as_command_line(text)),
    )


def _show(predictor: Predictor, data: object, options: PredictOptions, shown: list[Part]) -> tuple[Written, bool]:
    """Predict the first rows alone; say whether these are all."""
    start, stop = options.rows

    def add(part: Part) -> None:
        shown.append(part.between(start, start + _N_SHOWN))

    with opened_parts(predictor, data, options) as (parts, n_rows, terms):
        limit = start + _N_SHOWN if stop is None else min(stop, start + _N_SHOWN)
        needed = limit if n_rows is None else min(limit, start + n_rows)
        is_all = n_rows is not None and n_rows <= _N_SHOWN
        return consume(predictor, _up_to(parts, needed), options, add, terms), is_all


def _up_to(parts: Any, stop: int) -> Any:
    for part in parts:
        yield part.between(0, stop)
        if part.first_row + len(part) >= stop:
            return


def _print(predictor: Predictor, data: object, options: PredictOptions) -> Written:
    def write_text(text: bytes) -> None:
        if text:
            print_text(Lines(text.decode().removesuffix("\n")))

    text = TextWriter(
        write_text,
        predictor.form,
        delimiter=",",
        probabilities=options.probabilities,
        buffer_bytes=buffer_bytes(options.memory),
    )
    with opened_parts(predictor, data, options) as (parts, _, terms):
        written = consume(predictor, parts, options, text.add, terms)
    text.flush()
    return written


def _joined(predictor: Predictor, shown: list[Part], options: PredictOptions) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for part in shown:
        for name, values in columns_of(part, predictor.form, probabilities=options.probabilities).items():
            columns.setdefault(name, []).extend(values.tolist())
    return columns


def _table(columns: dict[str, list[Any]]) -> list[str]:
    cells = [[name, *map(_cell, values)] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in zip(*cells, strict=True)
    ]


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _keeping(run: Path, sources: Sequence[str], *, is_all: bool) -> str:
    words = typed_words() or ["predict", str(run), *sources]
    head = "as a file" if is_all else "all of them"
    return f"{head}: {command_line(['streamtrain', *words, '--out', 'predictions.csv'])}"


def _tell_others(written: Written) -> None:
    for line in written.doubts.unseen_lines():
        note(line)
    if (text := written.doubts.bad.told()) is not None:
        note(f"warning: {text}")


def _result(
    run: Path,
    sources: Sequence[str],
    out: str | None,
    loaded: TrainedModel,
    written: Written,
    seconds: float,
    budget: int,
    meter: MemoryMeter,
) -> dict[str, Any]:
    summary = written.summary
    return {
        "run": run,
        "source": list(sources),
        "out": out,
        "task": loaded.task,
        "weights": loaded.best,
        **summary.named(),
        "unseen": dict(written.doubts.unseen),
        "not_finite": written.doubts.bad.n,
        "seconds": round(seconds, 3),
        "rows_per_second": round(summary.n_rows / max(seconds, 1e-9), 1),
        "memory": {
            "budget": budget,
            "projected": sum(written.terms.values()),
            "measured": max(0, meter.peak_bytes),
            "terms": dict(written.terms),
        },
    }


def _lines(written: Written, seconds: float, memory: dict[str, Any]) -> list[str]:
    summary = written.summary
    if is_quiet():
        return [f"rows    {summary.n_rows:,}", *summary.lines()]
    rate = format_rate(summary.n_rows, seconds, "rows")
    terms = " + ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in memory["terms"].items())
    return [
        f"rows    {summary.n_rows:,} in {format_duration(seconds)}, {rate}",
        *summary.lines(),
        f"{memory_line({name: memory[name] for name in ('budget', 'measured')})}{f': {terms}' if is_verbose() else ''}",
    ]


def run_export(*, run: Path, out: str, which: str, overwrite: bool, as_json: bool) -> None:
    """Export as the command line says, and print what was written."""
    path = check_export(run, out, overwrite=overwrite)
    saved = read_run(run, which)
    note_doubt(saved.chosen)
    note(as_command_line(saved.chosen.told()))
    told = export(saved, path)
    size = f"{told['tensors']} tensors, {format_bytes(int(str(told['bytes'])))}"
    emit(as_json, {"run": run, "out": path, **told}, Lines.of([f"out     {path}: {size}"]))
