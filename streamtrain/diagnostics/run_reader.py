"""The content of a run's folder, read without trust."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.diagnostics.charts import is_placed
from streamtrain.errors import CheckpointError
from streamtrain.store.writing.lock import is_folder_locked
from streamtrain.system.files import read_whole
from streamtrain.system.refusals import read_failure
from streamtrain.training.records.kept_scores import BEST
from streamtrain.training.run.run_folder import CONFIG, MEMORY, METRICS, SCORES, read_config

_KINDS: Final = ("batch", "epoch", "measured")
_TEXTS: Final = frozenset({"kind"})
_FLAGS: Final = frozenset({"partial"})
_TERMS: Final = "terms"
_TABLES: Final = ("classes", "labels", "targets", "errors", "confusion", "pairs", "mistakes")
_MOST_BYTES: Final = 2**63
_MOST_DEEP: Final = 20

MetricsLine = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run's folder tells; ``memory`` is empty where the run did not come to its end.

    The lines of ``metrics.jsonl`` are by their kind; a number that no axis has a place for is NaN, a flag is 0 or 1.
    """

    path: Path
    config: dict[str, Any]
    batches: tuple[MetricsLine, ...]
    epochs: tuple[MetricsLine, ...]
    measured: tuple[MetricsLine, ...]
    memory: dict[str, Any]
    scores: dict[str, Any]

    @property
    def n_epochs(self) -> int:
        """How many epochs came to their end; the last line of a run may be of one that was cut short."""
        return sum(not epoch.get("partial") for epoch in self.epochs)


def read_run(path: Path) -> RunRecord:
    """Read a run's folder.

    Raises
    ------
    CheckpointError
        It is none, or its configuration, its metrics or its memory is damaged or missing.
    """
    config = read_config(path)
    if not _is_flat(config, _MOST_DEEP):
        where = str(path / CONFIG)
        raise CheckpointError(f"is damaged: it is nested more than {_MOST_DEEP} deep", where=where, fix="train again")
    lines = _read_metrics(path / METRICS)
    of = {kind: tuple(line for name, line in lines if name == kind) for kind in _KINDS}
    return RunRecord(
        path=path,
        config=config,
        # Those at a trial of a line search are of weights that the run need not have come to.
        batches=tuple(line for line in of["batch"] if "trial" not in line),
        epochs=of["epoch"],
        measured=of["measured"],
        memory=_read_memory(path / MEMORY),
        scores=_read_scores(path / SCORES),
    )


def _read_metrics(file: Path) -> list[tuple[str, MetricsLine]]:
    while True:
        data = _read_bytes(file)
        # A last line without its end is still being written, or was when the run was killed.
        whole = data[: data.rfind(b"\n") + 1] or data
        try:
            return _parse_lines(file, whole)
        except CheckpointError:
            # A trainer also cuts lines off: those of an epoch that goes on, and those that a resumed run takes back.
            now = _read_bytes(file)
            if now == data or (now.startswith(whole) and whole.endswith(b"\n")):
                raise


def _read_bytes(file: Path) -> bytes:
    try:
        return read_whole(file)
    except FileNotFoundError:
        if is_folder_locked(file.parent):
            raise _no_line_yet(file) from None
        raise CheckpointError("is missing", where=str(file), fix="train again") from None
    except OSError as error:
        raise read_failure(error, file, CheckpointError, "train again") from error


def _parse_lines(file: Path, data: bytes) -> list[tuple[str, MetricsLine]]:
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file), fix="train again") from error
    # Empty where the run was ended before its first line.
    if not lines and is_folder_locked(file.parent):
        raise _no_line_yet(file)
    return [_parse(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]


def _no_line_yet(file: Path) -> CheckpointError:
    return CheckpointError("has no line yet", where=str(file), why="The run is being trained", fix="wait for its first")


def _parse(text: str, where: str) -> tuple[str, MetricsLine]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is damaged: {error}", where=where, fix="train again") from error
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise CheckpointError("is damaged: no line of metrics", where=where, fix="train again")
    values: MetricsLine = {}
    for name, value in line.items():
        if name in _TEXTS:
            continue
        if isinstance(value, bool) != (name in _FLAGS) or not isinstance(value, int | float | None):
            raise CheckpointError(f"is damaged: {name} is {value!r:.60}", where=where, fix="train again")
        values[name] = float(value) if value is not None and is_placed(value) else math.nan
    return line["kind"], values


def _read_memory(file: Path) -> dict[str, Any]:
    found = _read_json(file)
    if not isinstance(found, dict) or not _is_memory(found):
        raise CheckpointError("is damaged: no bytes by name", where=str(file), fix="train again")
    return found


def _read_scores(file: Path) -> dict[str, Any]:
    found = _read_json(file)
    if isinstance(found, dict) and _is_flat(found, _MOST_DEEP):
        best = found.get(BEST)
        epochs = [found, best if isinstance(best, dict) else {}]
        if all(_are_rows(epoch.get(name) or []) for epoch in epochs for name in _TABLES):
            return dict(found)
    raise CheckpointError("is damaged: no scores by name", where=str(file), fix="train again")


def _are_rows(found: object) -> bool:
    """Whether it is a table: a list of dictionaries, or of lists of numbers."""
    return isinstance(found, list) and all(
        isinstance(row, dict) or (isinstance(row, list) and all(isinstance(n, int | float) for n in row))
        for row in found
    )


def _read_json(file: Path) -> Any:
    """Read a file that a run may have; an empty dictionary where it has none."""
    try:
        return json.loads(read_whole(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise read_failure(error, file, CheckpointError, "train again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file), fix="train again") from error


def _is_memory(found: dict[str, Any]) -> bool:
    """Whether it is bytes by name, and beside them the terms of each loader."""
    terms = found.get(_TERMS, {})
    totals = {name: value for name, value in found.items() if name != _TERMS}
    return isinstance(terms, dict) and all(map(_are_bytes, [totals, *terms.values()]))


def _are_bytes(found: object) -> bool:
    return isinstance(found, dict) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_BYTES for value in found.values()
    )


def _is_flat(value: object, most_deep: int) -> bool:
    """Whether nothing is nested deeper than this."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most_deep > 0 and all(_is_flat(item, most_deep - 1) for item in inside)


def metric_points(lines: Iterable[MetricsLine], x: str, y: str) -> list[tuple[float, float]]:
    """Points of two named values, of the lines that have both."""
    return [(line[x], line[y]) for line in lines if x in line and y in line]
