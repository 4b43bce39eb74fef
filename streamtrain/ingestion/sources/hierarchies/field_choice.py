"""The arrays of a hierarchy that become fields: those that are named, or all that share the longest axis of samples."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.hierarchies.stored_array import StoredArray
from streamtrain.store.schema.columns import ID, INPUT, TARGET, WEIGHT
from streamtrain.system.units import counted

_N_LISTED: Final = 20
_N_LEFT_OUT: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChoice:
    """Which array each field is made of, and what was left out and is worth telling."""

    arrays: Mapping[str, StoredArray]
    left_out: Mapping[str, str]  # the name of each, and why
    n_more: int = 0  # left out, and not worth telling one by one


Find = Callable[[str], StoredArray | None]
"""Opens an array by a name that is not listed; None where there is none."""


def named_arrays(arrays: Sequence[StoredArray], names: Mapping[str, str], find: Find, *, where: str) -> FieldChoice:
    """Find the arrays that were named, by their path; the leading slash may be left out."""
    known = {array.name: array for array in arrays}
    found: dict[str, StoredArray] = {}
    for field, name in names.items():
        path = "/" + name.strip("/")
        array = known.get(path) or find(path)
        if array is None:
            raise _absent(path, list(known), where)
        if array.unfit is not None:
            raise array.unfit
        found[field] = array
    lengths = {field: array.grid.shape[0] for field, array in found.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{found[field].name} {length:,}" for field, length in lengths.items())
        what = f"the arrays differ in rows: {listed}"
        raise InputError(what, where=where, why="Every field has one row per sample", fix="name arrays of one length")
    return FieldChoice(arrays=found, left_out={})


def _absent(path: str, known: Sequence[str], where: str) -> InputError:
    # A name without its group is as near as one with a letter wrong.
    same = [name for name in known if name.rpartition("/")[2] == path.rpartition("/")[2]]
    near = same[:1] or difflib.get_close_matches(path, known, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "name one of these"
    return InputError(f"there is no array {path!r}", where=where, why=f"It has {_listed(known)}", fix=fix)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _N_LISTED:,} more" if len(names) > _N_LISTED else ""
    return (", ".join(names[:_N_LISTED]) or "no array") + more


def refuse_columns(arrays: Sequence[StoredArray], kind: str, options: SourceOptions, *, where: str) -> None:
    """Refuse options that name columns, which are arrays here, and say what names them."""
    table, columns, labels = options.table, options.columns or (), options.label_column
    label = labels if isinstance(labels, str) or labels is None else labels[0]
    by_field = {TARGET: label, ID: table.id_column, WEIGHT: table.weight_column}
    given = {
        "columns": options.columns,
        "label_column": label,
        "id_column": table.id_column,
        "weight_column": table.weight_column,
    }
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is None:
        return
    named = {field: _nearest(arrays, name) for field, name in by_field.items() if name is not None}
    inputs = [_nearest(arrays, name) for name in columns if name not in by_field.values()]
    if not inputs:
        others = [array for array in arrays if array.unfit is None and array.name not in named.values()]
        inputs = [max(others, key=lambda array: (len(array.grid.shape), _size(array))).name if others else "/PATH"]
    of_inputs = {INPUT: inputs[0]} if len(inputs) == 1 else {name.rpartition("/")[2]: name for name in inputs}
    fix = Fix("arrays are named as fields: ", Argument("fields", of_inputs | named))
    raise UsageError(f"{wrong} does not apply to {kind} files", where=where, why="They have no columns", fix=fix)


def _nearest(arrays: Sequence[StoredArray], name: str) -> str:
    """Return the path of an array of that name, in whatever group."""
    last = name.rpartition("/")[2]
    return next((array.name for array in arrays if array.name.rpartition("/")[2] == last), f"/{name.strip('/')}")


def longest_arrays(arrays: Sequence[StoredArray], options: SourceOptions, *, where: str) -> FieldChoice:
    """Choose all arrays of numbers that share the longest first axis; refuse where that is not what they tell."""
    if not arrays:
        raise InputError("it holds no arrays", where=where, fix="give the file or folder that holds the data")
    arrays_of_samples = [array for array in arrays if array.grid.shape and not array.is_coordinate]
    fit = [array for array in arrays_of_samples if array.unfit is None and not _counts_time(array, options)]
    unfit = [array for array in arrays_of_samples if array.unfit is not None]
    if not fit and unfit:
        first = next((array for array in unfit if array.is_elsewhere), unfit[0])
        assert first.unfit is not None
        raise first.unfit
    if not fit:
        raise _undecided(arrays, "no array of numbers has an axis of samples", where)
    n_rows = max(array.grid.shape[0] for array in fit)
    chosen = [array for array in fit if array.grid.shape[0] == n_rows]
    others = [array for array in fit if array.grid.shape[0] != n_rows]
    for array in arrays_of_samples:
        if array.unfit is not None and array.is_elsewhere and array.grid.shape[0] >= n_rows:
            raise array.unfit
    names = Counter(_field_name(array) for array in chosen)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise _undecided(fit, f"{names[twice[0]]} arrays are called {twice[0]!r}", where)
    alike = next((other for other in others if any(_is_alike(array, other) for array in chosen)), None)
    if alike is not None:
        what = f"{alike.name} is like those of the longest axis, but for its {alike.grid.shape[0]:,} rows"
        raise _undecided(fit, what, where)
    largest = max(map(_size, chosen))
    larger = next((other for other in others if _size(other) > largest), None)
    if larger is not None:
        what = f"{larger.name} holds more than those of the longest axis, {n_rows:,} rows"
        raise _undecided(fit, what, where)
    left_out = [array for array in arrays if array not in chosen]
    return FieldChoice(
        arrays={_field_name(array): array for array in chosen},
        left_out={array.name: _why_left_out(array, options) for array in left_out[:_N_LEFT_OUT]},
        n_more=max(0, len(left_out) - _N_LEFT_OUT),
    )


def _why_left_out(array: StoredArray, options: SourceOptions) -> str:
    if array.unfit is not None:
        return array.unfit.what
    if array.is_coordinate:
        return "a coordinate"
    if _counts_time(array, options):
        return "it counts time"
    return counted(array.grid.shape[0], "row")


def _size(array: StoredArray) -> int:
    return math.prod(array.grid.shape)


def _is_alike(array: StoredArray, other: StoredArray) -> bool:
    """Say whether another array could as well be the samples: more of the same, but of another length."""
    same = array.grid.shape[1:] == other.grid.shape[1:] and array.dtype == other.dtype
    return same and len(array.grid.shape) > 1


def _counts_time(array: StoredArray, options: SourceOptions) -> bool:
    """Say whether it counts time, and was not said to be a date, or what it is stored as."""
    is_wanted = options.decode == "raw" or _field_name(array) in options.table.dates
    return not is_wanted and " since " in str(array.attributes.get("units", ""))


def _field_name(array: StoredArray) -> str:
    return array.name.rpartition("/")[2] or INPUT


def _undecided(arrays: Sequence[StoredArray], what: str, where: str) -> UsageError:
    listed = [f"{array.name} {array.dtype.name} {array.grid.shape}" for array in arrays]
    named = {INPUT: "/PATH", TARGET: "/PATH"}
    fit = [array for array in arrays if array.unfit is None and array.grid.shape]
    if fit:
        first = max(fit, key=lambda array: len(array.grid.shape))
        labels = next((one for one in fit if one is not first and one.grid.shape[:1] == first.grid.shape[:1]), None)
        named = {INPUT: first.name} | ({} if labels is None else {TARGET: labels.name})
    fix = Fix("choose what becomes which field: ", Argument("fields", named), ", say")
    return UsageError(
        f"it is not clear which arrays are the samples: {what}", where=where, why=f"It has {_listed(listed)}", fix=fix
    )
