"""Dates and times, ISO 8601 text or typed, as days or seconds since 1970-01-01 UTC."""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    first_refused,
    is_text,
    missing_in,
    numbers_in,
    parsed,
    without_dictionary,
)

Unit = Literal["days", "seconds"]
Place = Callable[[int], str]
Seconds = npt.NDArray[np.int64]

_PER_DAY: Final = 86_400
_PER_HOUR: Final = 3600
_EPOCH: Final = datetime(1970, 1, 1)
_FIRST_YEAR: Final = int((datetime(1, 1, 1) - _EPOCH).total_seconds())
_LAST_SECOND: Final = int((datetime(9999, 12, 31) - _EPOCH).total_seconds())
_SECOND: Final = np.dtype("datetime64[s]")
_UNITS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_ISO: Final = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<time>\d{2}(?::\d{2}(?::\d{2}(?P<fraction>\.\d{1,9})?)?)?)(?P<offset>Z|[+-]\d{2}(?::?\d{2})?)?)?$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DateForm:
    """What the dates of a column look like; one column has one form."""

    has_time: bool
    has_zone: bool

    def __str__(self) -> str:
        zone = " with a zone" if self.has_zone else " without a zone" if self.has_time else ""
        return f"a {'date and time' if self.has_time else 'date'}{zone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """A run of dates as numbers."""

    values: npt.NDArray[np.float64]  # of shape (n_rows,), NaN where they are missing
    form: DateForm | None  # None where all are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class DateColumn:
    """A column of dates: its name, what it is measured in, and the zone of times that name none."""

    name: str
    unit: Unit = "seconds"
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instants:
    """Dates as whole seconds since 1970 and nanoseconds; local time where the form has no zone."""

    seconds: Seconds
    nanoseconds: Seconds
    form: DateForm


def days_or_seconds(column: Any, of: DateColumn, place: Place, form: DateForm | None = None) -> Dates:
    """Turn a run of dates into days or seconds since 1970-01-01 UTC.

    Parameters
    ----------
    column : pyarrow.Array
        Of text, dates or timestamps.
    of : DateColumn
        What the column is.
    place : callable
        Tells where a row of ``column`` stands.
    form : DateForm, optional
        The form of the runs before, which this one must have too.

    Raises
    ------
    InputError
        A text is no ISO 8601 date or time, or of another form than those before it; or a local time does not exist, or
        exists twice.
    UsageError
        The timezone is not known.

    Examples
    --------
    >>> import pyarrow
    >>> dates = pyarrow.array(["1970-01-03", None, "2026-11-30"])
    >>> days_or_seconds(dates, DateColumn(name="day", unit="days"), str).values
    array([2.0000e+00,        nan, 2.0787e+04])
    """
    zone = zone_of(of.timezone)
    plain = _without_blanks(without_dictionary(column))
    values = np.full(len(plain), np.nan)
    valid = np.flatnonzero(~missing_in(plain))
    if not len(valid):
        return Dates(values=values, form=form)
    _check_type(plain.type, of, place(int(valid[0])))
    encoded = plain.drop_null().dictionary_encode()
    codes = numbers_in(encoded.indices)
    # Distinct values stand in the order in which they come first.
    firsts = valid[np.unique(codes, return_index=True)[1]]
    at = partial(_place_of_first, place, firsts)
    instants = _instants_of(encoded.dictionary, of, at, form)
    seconds = instants.seconds if instants.form.has_zone else _from_local(instants.seconds, zone, of, at)
    # One sum for text and for timestamps of any unit: the same moment is the same number.
    moments = seconds + instants.nanoseconds / 10**9
    values[valid] = (moments / _PER_DAY if of.unit == "days" else moments)[codes]
    return Dates(values=values, form=instants.form)


def zone_of(name: str) -> tzinfo:
    """Return a timezone by its name; refuse one that is not known."""
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, sorted(zoneinfo.available_timezones()), n=1)
        raise UsageError(
            f"timezone {name!r} is not known",
            why="It is a name of the IANA database, such as Europe/Berlin",
            fix=Fix("did you mean ", Argument("timezone", near[0]), "?") if near else Fix(Argument("timezone", "UTC")),
        ) from None


def _place_of_first(place: Place, firsts: npt.NDArray[np.intp], number: int) -> str:
    return place(int(firsts[number]))


def _without_blanks(column: Any) -> Any:
    """Cut off blanks around texts, and make empty ones nulls."""
    if not is_text(column):
        return column
    compute = arrow("pyarrow.compute")
    text = compute.utf8_trim_whitespace(column)
    return compute.if_else(compute.equal(text, ""), arrow().scalar(None, text.type), text)


def _instants_of(values: Any, of: DateColumn, at: Place, form: DateForm | None) -> _Instants:
    if is_text(values):
        return _parsed(values, of, at, form)
    instants = _typed(values)
    if form not in (None, instants.form):
        raise _other_form(of, at(0), str(values[0].as_py()), instants.form, form)
    return instants


def _check_type(kind: Any, of: DateColumn, where: str) -> None:
    """Refuse what holds no dates, before Arrow is asked for its distinct values, which not all types have."""
    types = arrow("pyarrow.types")
    is_of_text = types.is_string(kind) or types.is_large_string(kind)
    if not (is_of_text or types.is_timestamp(kind) or types.is_date(kind)):
        raise InputError(
            f"column {of.name!r} holds {kind}, not dates",
            where=where,
            fix="if it holds numbers, leave it among the features: numbers need no conversion",
        )


def _typed(values: Any) -> _Instants:
    kind = values.type
    if arrow("pyarrow.types").is_timestamp(kind):
        form = DateForm(has_time=True, has_zone=kind.tz is not None)
        per_second = _UNITS[kind.unit]
    else:
        form = DateForm(has_time=False, has_zone=False)
        # Its own unit is a day in 32 bits, and a thousandth of a second in 64.
        values, per_second = values.cast(arrow().timestamp("ms")), 10**3
    seconds, rest = np.divmod(numbers_in(values.cast(arrow().int64())), per_second)
    return _Instants(seconds=seconds, nanoseconds=rest * (10**9 // per_second), form=form)


def _parsed(texts: Any, of: DateColumn, at: Place, form: DateForm | None) -> _Instants:
    """Read ISO 8601 texts, none of them missing."""
    compute = arrow("pyarrow.compute")
    parts = compute.extract_regex(texts, _ISO)
    unlike = np.flatnonzero(missing_in(parts))
    if len(unlike):
        raise _not_iso(of, texts, int(unlike[0]), at)
    date, time, fraction, offset = (parts.field(name) for name in ("date", "time", "fraction", "offset"))
    forms = 2 * _is_there(time) + _is_there(offset)
    first = form or _form(int(forms[0]))
    others = np.flatnonzero(forms != 2 * first.has_time + first.has_zone)
    if len(others):
        other = int(others[0])
        raise _other_form(of, at(other), texts[other].as_py(), _form(int(forms[other])), first)
    to_second = compute.utf8_slice_codeunits(time, 0, 8)
    moments = compute.binary_join_element_wise(date, to_second, "T") if first.has_time else date
    read = parsed(moments, _SECOND)
    if read is None:
        raise _not_iso(of, texts, first_refused(moments, _SECOND), at)
    seconds = numbers_in(read.cast(arrow().int64()))
    if seconds.min() < _FIRST_YEAR:
        raise _not_iso(of, texts, int(seconds.argmin()), at)
    nanoseconds = compute.utf8_rpad(compute.utf8_slice_codeunits(fraction, 1), 9, "0").cast(arrow().int64())
    return _Instants(seconds=seconds - _offsets(offset, of, texts, at), nanoseconds=numbers_in(nanoseconds), form=first)


def _is_there(part: Any) -> npt.NDArray[np.int64]:
    """Return 1 where a part of the text was found, else 0."""
    return numbers_in(arrow("pyarrow.compute").not_equal(part, "")).astype(np.int64)


def _form(number: int) -> DateForm:
    return DateForm(has_time=number >= 2, has_zone=number % 2 == 1)


def _offsets(offsets: Any, of: DateColumn, texts: Any, at: Place) -> Seconds:
    """Read offsets from UTC, as ``Z``, ``+01``, ``+0100`` or ``+01:00``, in seconds."""
    encoded = offsets.dictionary_encode()
    seconds = []
    for number, offset in enumerate(encoded.dictionary.to_pylist()):
        digits = offset.strip("Z+-").replace(":", "")
        hours, minutes = int(digits[:2] or 0), int(digits[2:] or 0)
        if hours > 23 or minutes > 59:
            raise _not_iso(of, texts, int(np.argmax(numbers_in(encoded.indices) == number)), at)
        seconds.append((3600 * hours + 60 * minutes) * (-1 if offset.startswith("-") else 1))
    of_offset: Seconds = np.array(seconds, np.int64)
    return np.take(of_offset, numbers_in(encoded.indices))


def _from_local(local: Seconds, zone: tzinfo, of: DateColumn, at: Place) -> Seconds:
    """Take the zone's offset from local times; by the hour, since an offset seldom changes within one."""
    if zone is UTC:
        return local
    hours, of_hour = np.unique(local // _PER_HOUR, return_inverse=True)
    at_ends = [
        {offset for second in (0, _PER_HOUR - 1) for offset in _zone_offsets(hour * _PER_HOUR + second, zone)}
        for hour in hours.tolist()
    ]
    offsets = np.array([next(iter(ends)) for ends in at_ends], np.int64)[of_hour]
    changes = np.array([len(ends) > 1 for ends in at_ends])[of_hour]
    for number in np.flatnonzero(changes).tolist():
        before, after = _zone_offsets(int(local[number]), zone)
        if before != after:
            raise _no_moment(local[number], of, is_twice=before > after, where=at(number))
        offsets[number] = before
    return local - offsets


def _zone_offsets(local: int, zone: tzinfo) -> tuple[int, int]:
    """Return the offset that holds before a change at a local time, and that after it; mostly they are one."""
    # Outside the years that Python knows there is no change either.
    moment = _EPOCH + timedelta(seconds=min(max(local, _FIRST_YEAR), _LAST_SECOND))
    before, after = (zone.utcoffset(moment.replace(fold=fold)) or timedelta() for fold in (0, 1))
    return int(before.total_seconds()), int(after.total_seconds())


def _not_iso(of: DateColumn, texts: Any, number: int, at: Place) -> InputError:
    return InputError(
        f"column {of.name!r} holds {texts[number].as_py()!r:.80}, which is not an ISO 8601 date",
        where=at(number),
        why="Dates are read as 2026-11-30, 2026-11-30T12:00:00.5, 2026-11-30 12:00Z or 2026-11-30T12:00+01:00",
        fix="correct the value, or write the column in this form",
    )


def _other_form(of: DateColumn, where: str, value: str, form: DateForm, first: DateForm) -> InputError:
    return InputError(
        f"column {of.name!r} holds {value!r:.80}, {form}; every value before it is {first}",
        where=where,
        why="All dates of a column have one form",
        fix="write all of them in the same form",
    )


def _no_moment(local: int, of: DateColumn, *, is_twice: bool, where: str) -> InputError:
    how = "exists twice" if is_twice else "does not exist"
    return InputError(
        f"column {of.name!r} holds {_EPOCH + timedelta(seconds=int(local))}, which {how} in {of.timezone}",
        where=where,
        why="Its clock is set back" if is_twice else "Its clock is set forward",
        fix="write the offset from UTC after the time, such as +01:00; or, where the times are UTC, name that zone",
    )
