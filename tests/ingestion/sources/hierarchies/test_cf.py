"""CF decoding, value for value as netCDF4 and xarray decode, of files that they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import streamtrain as st
from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import SourceOptions, TableOptions
from streamtrain.ingestion.sources.registry import open_source

RNG = np.random.default_rng(0)
VALUES = RNG.normal(280, 10, size=(40, 6, 5))
ReadAll = Callable[..., dict[str, Any]]


def keeping(**options: Any) -> SourceOptions:
    return SourceOptions(table=TableOptions(nan="keep"), **options)


PACKINGS: dict[str, dict[str, Any]] = {
    "scale and offset": {"dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767},
    "scale alone": {"dtype": "i2", "scale_factor": 0.01, "missing_value": -9999},
    "unsigned": {"dtype": "u1", "scale_factor": 0.5, "add_offset": 230.0, "_FillValue": 255},
    "int32": {"dtype": "i4", "scale_factor": 1e-5, "add_offset": 273.15, "_FillValue": -(2**31)},
    "no scale": {"dtype": "i2", "_FillValue": -1},
    "floats": {"dtype": "f4", "_FillValue": -999.0},
    "doubles": {"dtype": "f8", "missing_value": 1e20},
    "scaled floats": {"dtype": "f4", "scale_factor": 2.0, "_FillValue": -999.0},
}


def written_by_netcdf4(path: Path, packing: dict[str, Any]) -> np.ma.MaskedArray[Any, Any]:
    with netCDF4.Dataset(path, "w") as file:
        for name, length in (("time", 40), ("lat", 6), ("lon", 5)):
            file.createDimension(name, length)
        fill = packing.get("_FillValue")
        t = file.createVariable("t2m", packing["dtype"], ("time", "lat", "lon"), zlib=True, fill_value=fill)
        t.setncatts(
            {
                name: np.dtype(packing["dtype"]).type(value) if name == "missing_value" else value
                for name, value in packing.items()
                if name not in ("dtype", "_FillValue")
            }
        )
        t[:] = np.ma.masked_where(VALUES > 290, VALUES)
    with netCDF4.Dataset(path) as file:
        found: np.ma.MaskedArray[Any, Any] = file["t2m"][:]
        return found


@pytest.mark.parametrize("packing", PACKINGS)
def test_values_of_netcdf4(tmp_path: Path, packing: str, read_all: ReadAll) -> None:
    expected = written_by_netcdf4(tmp_path / "a.nc", PACKINGS[packing])
    assert 0 < expected.mask.sum() < expected.size
    (rows,) = read_all(open_source(tmp_path / "a.nc", options=keeping())).values()
    wide = np.dtype(PACKINGS[packing]["dtype"]).itemsize > (4 if PACKINGS[packing]["dtype"][0] == "f" else 2)
    dtype = np.float64 if wide else np.float32
    assert rows.dtype == dtype
    # netCDF4 gives float64 where the attributes are; rounded once that is ours.
    np.testing.assert_array_equal(rows, expected.astype(dtype).filled(np.nan), strict=True)


@pytest.mark.parametrize("packing", ["scale and offset", "scale alone", "int32", "floats"])
@pytest.mark.parametrize("form", ["nc", 2, 3])
def test_values_of_xarray_in_netcdf_and_zarr(tmp_path: Path, packing: str, form: Any, read_all: ReadAll) -> None:
    coordinates = {"time": np.arange(40), "lat": np.arange(6.0)}
    data = xr.Dataset({"t2m": (("time", "lat", "lon"), np.where(VALUES > 290, np.nan, VALUES))}, coords=coordinates)
    encoding = {"t2m": PACKINGS[packing] | {"missing_value": None}}
    encoding["t2m"] = {key: value for key, value in encoding["t2m"].items() if value is not None}
    encoding["t2m"].setdefault("_FillValue", -9999)
    if form == "nc":
        data.to_netcdf(path := tmp_path / "a.nc", engine="netcdf4", encoding=encoding)
        opened = xr.open_dataset(path, engine="netcdf4")
    else:
        encoding["t2m"]["chunks"] = (7, 3, 5)
        data.to_zarr(path := tmp_path / "a.zarr", zarr_format=form, encoding=encoding, consolidated=False)
        opened = xr.open_zarr(path, consolidated=False)
    with opened:
        expected = opened["t2m"].values
    rows = read_all(open_source(path, options=keeping()))
    assert list(rows) == ["t2m"]
    assert np.isnan(rows["t2m"]).sum() == np.isnan(expected).sum() > 0
    np.testing.assert_array_equal(rows["t2m"], expected.astype(rows["t2m"].dtype), strict=True)


def packed(path: Path, values: Any, chunks: bool = False, **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", data=values, chunks=(2,) if chunks else None)
        x.attrs.update(attributes)
    return path


def test_raw_is_what_is_stored(tmp_path: Path, read_all: ReadAll) -> None:
    values = np.arange(6, dtype="i2")
    path = packed(tmp_path / "a.h5", values, scale_factor=0.5, _FillValue=np.int16(3), units="days since 2000-01-01")
    rows = read_all(open_source(path, options=SourceOptions(decode="raw")))
    np.testing.assert_array_equal(rows["x"], values, strict=True)


def test_values_out_of_the_valid_range_and_unsigned_ones(tmp_path: Path, read_all: ReadAll) -> None:
    path = packed(tmp_path / "a.h5", np.array([-5, 0, 3, 9], "i2"), valid_range=np.array([0, 5], "i2"))
    assert np.isnan(read_all(open_source(path, options=keeping()))["x"]).tolist() == [True, False, False, True]
    path = packed(tmp_path / "b.h5", np.array([-1, 1], "i1"), _Unsigned="true", scale_factor=2.0)
    assert read_all(open_source(path))["x"].tolist() == [510.0, 2.0]


@pytest.mark.parametrize("chunks", [False, True])
def test_a_missing_value_is_refused_by_its_row_unless_nan_is_kept(tmp_path: Path, chunks: bool) -> None:
    path = packed(tmp_path / "a.h5", np.array([1, 2, 3, -9, 5, -9], "i2"), chunks, _FillValue=np.int16(-9))
    with pytest.raises(InputError, match=r"a\.h5 row 3: a value of /x is missing.*nan='keep'"):
        st.ingest(path, tmp_path / "d.zarr", progress=False)
    dataset = st.ingest(path, tmp_path / "d.zarr", progress=False, nan="keep")
    assert dataset.stats("x").n_nan == 2
    assert dataset[:]["x"].tolist()[:3] == [1.0, 2.0, 3.0]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("form", ["nc", 2, 3])
def test_the_line_that_leaves_rows_out_of_a_file(
    tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch, read_all: ReadAll
) -> None:
    monkeypatch.chdir(tmp_path)
    coordinates = {"time": np.arange(40), "lat": np.arange(6.0)}
    data = xr.Dataset({"t2m": (("time", "lat", "lon"), np.where(VALUES > 305, np.nan, VALUES))}, coords=coordinates)
    n_whole = int((~np.isnan(data["t2m"].values).reshape(40, -1).any(1)).sum())
    path = "a.nc" if form == "nc" else "a.zarr"
    if form == "nc":
        data.to_netcdf(path, engine="netcdf4", encoding={"t2m": {"_FillValue": -9999.0}})
    else:
        data.to_zarr(path, zarr_format=form, encoding={"t2m": {"_FillValue": -9999.0}})
    with pytest.raises(InputError) as caught:
        read_all(open_source(path))
    line = str(caught.value.fix).partition("leave such rows out: ")[2].partition("; or")[0]
    assert "dropna('time', subset=['t2m'])" in line
    eval(line, {"xarray": xr})
    rows = read_all(open_source("whole.nc" if form == "nc" else "whole.zarr"))
    assert rows["t2m"].shape == (n_whole, 6, 5)


def test_labels_stay_whole_numbers(tmp_path: Path, read_all: ReadAll) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = np.array([1, 0, 2], "i2")
        file["y"].attrs["_FillValue"] = np.int16(2)
    with pytest.raises(InputError, match="row 2: a value of /y is missing"):
        read_all(open_source(tmp_path / "a.h5", options=keeping()))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["y"].attrs["_FillValue"] = np.int16(-1)
    assert read_all(open_source(tmp_path / "a.h5"))["y"].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"_FillValue": np.float32(-9999), "scale_factor": 0.1}, "its _FillValue is .*float32.*, where .* int16"),
        ({"_FillValue": "none", "scale_factor": 0.1}, "its _FillValue is 'none'"),
        ({"missing_value": np.int32(99999)}, "its missing_value is .*99999"),
        ({"scale_factor": "0.1"}, "its scale_factor is '0.1', which is not a number"),
        ({"scale_factor": np.nan}, "its scale_factor is"),
        ({"valid_range": 3}, "its valid_range is"),
    ],
)
def test_attributes_of_the_wrong_type(tmp_path: Path, attributes: dict[str, Any], what: str) -> None:
    path = packed(tmp_path / "a.h5", np.arange(6, dtype="i2"), **attributes)
    with pytest.raises(InputError, match=what) as caught:
        open_source(path)
    assert caught.value.exit_code == 3
    assert open_source(path, options=SourceOptions(decode="raw")).n_samples == 6


@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        ("hours since 1900-01-01 00:00:00.0", "gregorian"),
        ("days since 2000-02-29", "standard"),
        ("seconds since 1970-01-01T12:30:00Z", "proleptic_gregorian"),
        ("minutes since 2020-06-01 00:00 +02:00", "standard"),
    ],
)
def test_time_is_refused_unless_it_is_named_as_a_date(
    tmp_path: Path, units: str, calendar: str, read_all: ReadAll
) -> None:
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("n", 5)
        when = file.createVariable("when", "i4", ("n",))
        when.units, when.calendar = units, calendar
        when[:] = np.arange(5) * 1000
        file.createVariable("x", "f4", ("n",))[:] = 1.0
    assert [field.name for field in open_source(path).fields] == ["x"]
    named = {"x": "x", "when": "when"}
    with pytest.raises(InputError, match="it counts time"):
        open_source(path, options=SourceOptions(fields=named))
    with xr.open_dataset(path) as opened:
        expected = (opened["when"].values.astype("M8[s]") - np.datetime64(0, "s")).astype(float)
    for unit, length in (("seconds", 1), ("days", 86400)):
        options = SourceOptions(fields=named, table=TableOptions(dates={"when": unit}))
        assert np.array_equal(read_all(open_source(path, options=options))["when"], expected / length)


@pytest.mark.parametrize(
    ("stored", "units", "unit", "dtype"),
    [
        ("i4", "days since 2000-01-01", "days", "int64"),
        ("i8", "hours since 2000-01-01 06:00", "seconds", "int64"),
        ("i8", "hours since 2000-01-01", "days", "float64"),
        ("i4", "days since 2000-01-01 12:00", "days", "float64"),
        ("f8", "days since 2000-01-01", "days", "float64"),
    ],
)
def test_dates_as_ids_are_whole_numbers_where_they_stay_so(
    tmp_path: Path, stored: str, units: str, unit: str, dtype: str, read_all: ReadAll
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.ones((30, 2))
        file["when"] = np.arange(30).astype(stored)
        file["when"].attrs["units"] = units
    both = {}
    for field in ("id", "when"):
        options = SourceOptions(fields={"x": "x", field: "when"}, table=TableOptions(dates={field: unit}))
        both[field] = read_all(open_source(tmp_path / "a.h5", options=options))[field]
    assert both["id"].dtype == dtype
    assert both["when"].dtype == np.float64
    assert np.array_equal(both["id"], both["when"])


def test_attributes_of_arrays_that_nobody_wants_do_not_matter(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.h5", np.arange(6), scale_factor=np.ones(300))
    with h5py.File(path, "a") as file:
        file["wanted"] = np.arange(6.0)
    assert [field.name for field in open_source(path).fields] == ["wanted"]
    with pytest.raises(InputError, match="its attribute scale_factor has 300 values"):
        open_source(path, options=SourceOptions(fields={"x": "/x"}))


def test_another_calendar_has_other_days(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.h5", np.arange(3), units="days since 2000-01-01", calendar="360_day")
    with pytest.raises(InputError, match="its calendar is '360_day'"):
        open_source(path, options=SourceOptions(table=TableOptions(dates={"x": "days"})))
