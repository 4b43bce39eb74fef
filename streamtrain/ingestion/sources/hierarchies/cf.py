"""CF attributes: how NetCDF packs numbers, marks those that are missing, and counts time.

First what is missing becomes NaN, then values are scaled, then shifted; in float64, rounded once to the field's dtype.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.hierarchies.stored_array import StoredArray, boxes
from streamtrain.store.schema.columns import ID, TARGET

ATTRIBUTES: Final = (
    *("scale_factor", "add_offset", "_FillValue", "missing_value"),
    *("valid_min", "valid_max", "valid_range", "_Unsigned", "units", "calendar"),
)
"""The attributes that are read."""

RAW: Final = Argument("decode", "raw")
PIECE: Final = 1 << 16
"""Elements that are decoded at once."""

PIECE_BYTES: Final = 24 * PIECE
"""Memory that decoding them takes."""

_SINCE: Final = re.compile(
    r"\s*([a-zA-Z]+)\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T\s]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?\s*(?:Z|UTC|([+-]\d{1,2}):?(\d{2})?)?\s*"
)
_SECONDS: Final = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
}
_CALENDARS: Final = ("standard", "gregorian", "proleptic_gregorian")
_GREGORIAN: Final = date(1582, 10, 15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How stored values become a field's: ``(value * scale + offset) / divisor``, missing ones NaN."""

    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    missing: tuple[Any, ...] = ()
    valid: tuple[float, float] | None = None
    scale: float | None = None
    offset: float | None = None
    divisor: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether values stay what they are."""
        return not self.missing and self.valid is None and not self._shifts and self.stored == self.dtype

    @property
    def _shifts(self) -> bool:
        return self.scale is not None or self.offset is not None

    def decode(self, values: npt.NDArray[Any], out: npt.NDArray[Any]) -> int | None:
        """Decode values into an array of their shape; return the first row with a missing one."""
        first: int | None = None
        for box in boxes(values.shape, PIECE):
            piece, into = values[box], out[box]
            if self.stored.kind != piece.dtype.kind:
                piece = piece.view(self.stored)
            bad = self._missing(piece)
            into[...] = self._shifted(piece) if self._shifts else piece
            if bad is None or not bad.any():
                continue
            if self.dtype.kind == "f":
                into[bad] = np.nan
            if first is None:
                first = _first_row(box, bad)
        return first

    def _missing(self, piece: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        if not self.missing and self.valid is None:
            return None
        bad = np.isnan(piece) if self.stored.kind == "f" else np.zeros(piece.shape, bool)
        for value in self.missing:
            bad |= piece == value
        if self.valid is not None:
            bad |= (piece < self.valid[0]) | (piece > self.valid[1])
        return bad

    def _shifted(self, piece: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        found = piece.astype(np.float64)
        if self.scale is not None:
            found *= self.scale
        if self.offset is not None:
            found += self.offset
        if self.divisor != 1:
            found /= self.divisor
        return found


def _first_row(box: tuple[slice | int, ...], bad: npt.NDArray[np.bool_]) -> int:
    place = box[0] if box else 0
    if isinstance(place, int) and box:
        return place
    start = place.start if isinstance(place, slice) else 0
    return int(start + bad.reshape(len(bad), -1).any(axis=1).argmax())


def decoding_of(array: StoredArray, field: str, options: SourceOptions) -> Decoding:
    """Read from an array's attributes how its values become those of a field."""
    stored = array.dtype.newbyteorder("=")
    plain = Decoding(stored=stored, dtype=stored)
    unit = options.table.dates.get(field)
    units = array.attributes.get("units")
    if unit is not None:
        found = replace(_of_dates(array, units, unit), missing=_all_missing(array, stored))
        return replace(found, dtype=np.dtype(np.int64)) if field == ID and _is_whole(found) else found
    if options.decode == "raw" or stored.kind not in "iuf":
        return plain
    if isinstance(units, str) and " since " in units:
        fix = Fix("name it as a date: ", Argument("dates", {field: "days"}), "; or as it is stored, ", RAW)
        why = "Of such numbers neither the start nor the unit stays known, and two files may count from two days"
        raise InputError(f"it counts time: {units!r:.80}", where=array.where, why=why, fix=fix)
    if str(array.attributes.get("_Unsigned", "")).lower() == "true" and stored.kind == "i":
        stored = np.dtype(f"u{stored.itemsize}")
    missing, valid = _all_missing(array, stored), _valid(array)
    scale, offset = _number(array, "scale_factor"), _number(array, "add_offset")
    if (scale, offset) == (None, None):
        dtype = stored
        # Labels stay whole numbers: a missing one is refused by its row.
        if stored.kind in "iu" and (missing or valid) and field != TARGET:
            dtype = _float_for(stored)
    else:
        dtype = _float_for(stored)
    return Decoding(stored=stored, dtype=dtype, missing=missing, valid=valid, scale=scale, offset=offset)


def _is_whole(dates: Decoding) -> bool:
    """Say whether whole numbers of some unit stay whole, and none is missing; so ids are numbers that can be named."""
    steps = (dates.scale or 0.0, dates.offset or 0.0)
    return dates.stored.kind in "iu" and not dates.missing and not any(step % dates.divisor for step in steps)


def _float_for(stored: np.dtype[Any]) -> np.dtype[Any]:
    wide = stored.itemsize > (2 if stored.kind in "iu" else 4)
    return np.dtype(np.float64 if wide else np.float32)


def _refuse(array: StoredArray, what: str) -> InputError:
    fix = Fix("correct the attribute", ", or take the values as stored: ", RAW)
    return InputError(what, where=array.where, fix=fix)


def _number(array: StoredArray, name: str) -> float | None:
    given = array.attributes.get(name)
    if given is None:
        return None
    found = np.asarray(given)
    if found.dtype.kind not in "iuf" or found.size != 1 or not np.isfinite(found).all():
        raise _refuse(array, f"its {name} is {given!r:.60}, which is not a number")
    return float(found.reshape(()))


def _all_missing(array: StoredArray, stored: np.dtype[Any]) -> tuple[Any, ...]:
    found = [value for name in ("_FillValue", "missing_value") for value in _values(array, name, stored)]
    return tuple(dict.fromkeys(value for value in found if value == value))


def _values(array: StoredArray, name: str, stored: np.dtype[Any]) -> list[Any]:
    given = array.attributes.get(name)
    if given is None:
        return []
    found = np.asarray(given)
    own = array.dtype.newbyteorder("=")
    fits = found.dtype.kind in "iuf" and (found.dtype.kind != "f" or own.kind == "f" or not array.has_typed_attributes)
    if fits and own.kind in "iu":
        bounds = np.iinfo(own)
        fits = bool(((found >= bounds.min) & (found <= bounds.max) & (found == np.floor(found))).all())
    if not fits:
        kind = "text" if found.dtype.kind in "SUO" else found.dtype.name
        raise _refuse(array, f"its {name} is {given!r:.60} ({kind}), where its values are {own.name}")
    return list(found.astype(own).reshape(-1).view(stored))


def _valid(array: StoredArray) -> tuple[float, float] | None:
    low, high = _number(array, "valid_min"), _number(array, "valid_max")
    given = array.attributes.get("valid_range")
    if given is not None:
        both = np.asarray(given)
        if both.dtype.kind not in "iuf" or both.size != 2:
            raise _refuse(array, f"its valid_range is {given!r:.60}, which is not two numbers")
        low, high = (float(value) for value in both.reshape(-1))
    if low is None and high is None:
        return None
    return (-np.inf if low is None else low, np.inf if high is None else high)


def _of_dates(array: StoredArray, units: object, unit: str) -> Decoding:
    """Turn numbers since some day into days or seconds since 1970-01-01 UTC."""
    found = _SINCE.fullmatch(units) if isinstance(units, str) else None
    seconds = _SECONDS.get(found[1].lower()) if found else None
    calendar = str(array.attributes.get("calendar", "standard")).lower()
    if found is None or seconds is None:
        what = f"its units are {units!r:.80}, which is no count of time" if units else "it has no units of time"
        raise InputError(what, where=array.where, fix=Fix("leave ", Argument("dates"), " out: it is a number"))
    try:
        first = date(*(int(found[place]) for place in (2, 3, 4)))
    except ValueError as error:
        raise _refuse(array, f"its units are {units!r:.80}: {error}") from error
    if calendar not in _CALENDARS or (calendar != _CALENDARS[-1] and first < _GREGORIAN):
        what = f"its calendar is {calendar!r} from {first}, whose days are not those of UTC"
        fix = Fix(RAW, " takes the numbers as stored; leave ", Argument("dates"), " out")
        raise InputError(what, where=array.where, fix=fix)
    start = (first - date(1970, 1, 1)).days * 86400.0
    start += 3600.0 * int(found[5] or 0) + 60.0 * int(found[6] or 0) + float(found[7] or 0)
    if found[8]:
        sign = -1 if found[8].startswith("-") else 1
        start -= sign * (3600.0 * abs(int(found[8])) + 60.0 * int(found[9] or 0))
    return Decoding(
        stored=array.dtype.newbyteorder("="),
        dtype=np.dtype(np.float64),
        scale=seconds,
        offset=start,
        divisor=86400.0 if unit == "days" else 1.0,
    )
