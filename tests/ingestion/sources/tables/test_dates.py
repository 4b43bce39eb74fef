"""Dates against Python's own datetime."""

from __future__ import annotations

import math
import zoneinfo
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.tables.dates import DateColumn, DateForm, Dates, Unit, days_or_seconds, zone_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def is_local(found: Dates) -> bool:
    """Say whether a time zone had to be assumed."""
    return found.form is not None and not found.form.has_zone


def place(row: int) -> str:
    return f"t.csv:{row + 2}"


def read(values: Any, *, unit: Unit = "seconds", timezone: str = "UTC", form: DateForm | None = None) -> Dates:
    column = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    return days_or_seconds(column, DateColumn(name="t", unit=unit, timezone=timezone), place, form)


def seconds_of(moment: datetime) -> float:
    """Sum whole seconds and the part of one, as they are stored."""
    whole, rest = divmod(moment - EPOCH, timedelta(seconds=1))
    return whole + float(Fraction(rest // timedelta(microseconds=1), 10**6))


def same(found: np.ndarray[Any, Any], expected: list[float]) -> bool:
    return found.dtype == np.float64 and all(
        mine == other or (math.isnan(mine) and math.isnan(other))
        for mine, other in zip(found.tolist(), expected, strict=True)
    )


zones = st.builds(
    lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-23 * 60 - 59, 23 * 60 + 59)
) | st.just(UTC)
moments = st.datetimes(timezones=zones, allow_imaginary=False)


@given(st.lists(st.none() | moments, max_size=10), st.sampled_from("T "))
def test_times_with_a_zone(values: list[datetime | None], separator: str) -> None:
    texts = [None if value is None else value.isoformat(separator) for value in values]
    found = read(texts)
    assert same(found.values, [math.nan if value is None else seconds_of(value) for value in values])
    assert not is_local(found)


@given(st.lists(st.none() | st.datetimes(), max_size=10))
def test_times_without_a_zone_are_utc(values: list[datetime | None]) -> None:
    found = read([None if value is None else value.isoformat() for value in values])
    expected = [math.nan if value is None else seconds_of(value.replace(tzinfo=UTC)) for value in values]
    assert same(found.values, expected)
    assert is_local(found) == any(values)
    typed = read(pa.array(values, pa.timestamp("us")))
    assert same(typed.values, expected)
    assert typed.form == found.form


@given(st.lists(st.none() | st.dates(), max_size=10))
def test_dates_in_days(values: list[date | None]) -> None:
    expected = [math.nan if value is None else float((value - date(1970, 1, 1)).days) for value in values]
    found = read([None if value is None else value.isoformat() for value in values], unit="days")
    assert same(found.values, expected)
    for kind in (pa.date32(), pa.date64()):
        typed = read(pa.array(values, kind), unit="days")
        assert same(typed.values, expected)
        assert typed.form == found.form


def exists_once(moment: datetime, zone: tzinfo) -> bool:
    return moment.replace(tzinfo=zone, fold=0).utcoffset() == moment.replace(tzinfo=zone, fold=1).utcoffset()


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu"])
@given(values=st.lists(st.datetimes(datetime(1880, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=10))
def test_local_times_are_those_of_the_zone(name: str, values: list[datetime]) -> None:
    zone = zoneinfo.ZoneInfo(name)
    bad = [number for number, value in enumerate(values) if not exists_once(value, zone)]
    texts = [value.isoformat() for value in values]
    if bad:
        with pytest.raises(InputError, match=rf"t\.csv:{bad[0] + 2}: .*exist"):
            read(texts, timezone=name)
    else:
        expected = [seconds_of(value.replace(tzinfo=zone).astimezone(UTC)) for value in values]
        # An offset of a fraction of a second there is none, but of one second there is: before 1900.
        assert same(read(texts, timezone=name).values, expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2025-10-26T02:30:00", r"2025-10-26 02:30:00, which exists twice in Europe/Berlin. Its clock is set back"),
        ("2025-10-26T02:00:00", "exists twice"),
        ("2025-10-26T02:59:59.999", "exists twice"),
        ("2025-03-30T02:00:00", "which does not exist in Europe/Berlin. Its clock is set forward"),
        ("2025-03-30T02:59:59", "does not exist"),
    ],
)
def test_a_local_time_that_is_not_one_moment_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=r"t\.csv:3: .*" + reason):
        read(["2025-01-01T00:00:00", text], timezone="Europe/Berlin")
    assert read([text + "+01:00"], timezone="Europe/Berlin").values[0] == seconds_of(
        datetime.fromisoformat(text + "+01:00")
    )


def test_a_local_date_is_its_midnight() -> None:
    found = read(["2020-01-01"], unit="days", timezone="Europe/Berlin")
    assert found.values.tolist() == [18262 - 1 / 24]
    with pytest.raises(InputError, match="2018-11-04 00:00:00, which does not exist in America/Sao_Paulo"):
        read(["2018-11-03", "2018-11-04"], timezone="America/Sao_Paulo")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T10", 36_000),
        ("1970-01-01 10:01", 36_060),
        ("1970-01-01T00:00:00.5Z", 0.5),
        ("1970-01-01T00:00:00.123456789", 0.123456789),
        ("1969-12-31T23:59:59.25", -0.75),
        ("1970-01-01T00:00+00", 0),
        ("1970-01-01T00:00:00+0130", -5400),
        ("1970-01-01T00:00:00-01:30", 5400),
        (" 1970-01-02 ", 86_400),
        ("0001-01-01", -62_135_596_800),
        ("9999-12-31T23:59:59", 253_402_300_799),
    ],
)
def test_what_iso_8601_allows(text: str, seconds: float) -> None:
    assert read([text]).values.tolist() == [seconds]
    zoned = read([text], timezone="Etc/GMT").values.tolist()
    assert zoned == [seconds]


@pytest.mark.parametrize(
    "text",
    [
        *("2021-02-30", "2021-13-01", "0000-01-01", "05/01/2021", "2021-1-5", "20210105", "x", "2021-01-05T24:00"),
        *("2021-01-05T", "2021-01-05T10:00:00,5", "2021-01-05T10:00+24:00", "2021-01-05T10:00+00:60", "2021-01-05Z"),
        *("2021-01-05T10:00:60", "2021-01-05\n", "2021-01-05T10:00:00.1234567890", "1609804800", "²021-01-05"),
    ],
)
def test_the_first_text_that_is_no_date_is_refused(text: str) -> None:
    good = "2021-01-05T10:00+01:00" if "+" in text else "2021-01-05T10:00" if "T" in text else "2021-01-05"
    if text.strip() != text:
        assert read([text]).form == DateForm(has_time=False, has_zone=False)
        return
    with pytest.raises(InputError, match=r"t\.csv:5: column 't' holds .*, which is not an ISO 8601 date"):
        read([good, None, good, text, text, good])


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("2021-01-05", "2021-01-05T10:00"),
        ("2021-01-05T10:00", "2021-01-05"),
        ("2021-01-05T10:00", "2021-01-05T10:00Z"),
        ("2021-01-05T10:00+01:00", "2021-01-05 10:00"),
    ],
)
def test_a_second_form_is_refused(first: str, other: str) -> None:
    with pytest.raises(InputError, match=r"t\.csv:4: column 't' holds '2021-.*; every value before it is a date"):
        read([first, "", other, first])
    before = read([first]).form
    with pytest.raises(InputError, match=r"t\.csv:3: "):
        read([None, other], form=before)
    assert read([None], form=before).form == before
    assert read([first, first.replace("T", " ")]).form == before


def test_a_typed_column_of_another_type_than_before_is_refused() -> None:
    with pytest.raises(InputError, match="a date; every value before it is a date and time with a zone"):
        read(pa.array([1], pa.date32()), form=DateForm(has_time=True, has_zone=True))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_timestamps_of_all_units(unit: str, zone: str | None) -> None:
    moment = datetime(1960, 6, 1, 12, 30, 15, tzinfo=UTC)
    column = pa.array([moment.replace(tzinfo=None), None]).cast(pa.timestamp(unit))
    column = column if zone is None else column.cast(pa.timestamp(unit, zone))
    found = read(column, timezone="Europe/Berlin")
    local = moment.replace(tzinfo=BERLIN) if zone is None else moment
    assert same(found.values, [seconds_of(local), math.nan])
    assert is_local(found) == (zone is None)


def test_a_dictionary_is_read_in_the_order_of_its_rows() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([2, None, 1, 0]), pa.array(["x", "y", "1970-01-02"]))
    with pytest.raises(InputError, match=r"t\.csv:4: .*'y'"):
        read(column)
    assert same(read(column[:2]).values, [86_400.0, math.nan])


def test_numbers_are_no_dates() -> None:
    with pytest.raises(InputError, match="holds int64, not dates"):
        read(pa.array([1, 2]))


def test_nothing_but_missing_values_has_no_form() -> None:
    for column in (pa.nulls(2), pa.array([None, " "]), pa.array([], pa.string()), pa.nulls(2, pa.date32())):
        found = read(column)
        assert np.isnan(found.values).all()
        assert found.form is None
        assert not is_local(found)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Europe/Berlln", "did you mean timezone='Europe/Berlin'?"),
        ("%", "UTC"),
        ("../x", "UTC"),
        ("", "UTC"),
        ("Europe", "timezone="),
    ],
)
def test_an_unknown_timezone_is_refused(name: str, near: str) -> None:
    with pytest.raises(UsageError, match="is not known") as refused:
        zone_of(name)
    assert near in str(refused.value)
