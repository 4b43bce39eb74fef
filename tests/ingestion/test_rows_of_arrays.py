"""Raw HDF5 and Zarr given beside a dataset or a run: read as the arrays of the training were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import InputError, UsageError

RNG = np.random.default_rng(0)
FIELDS = {"x": "/in/t2m", "y": "/next", "id": "/when"}


def file_of(path: str, n: int = 40, *, bad: int | None = None, **left_out: bool) -> str:
    """Write packed inputs in a group, targets and hours of time."""
    packed = RNG.integers(-99, 99, (n, 4)).astype("i2")
    if bad is not None:
        packed[bad, 0] = -999
    with h5py.File(path, "w") as file:
        t2m = file.create_dataset("in/t2m", data=packed)
        t2m.attrs.update({"scale_factor": 0.5, "_FillValue": np.int16(-999)})
        if "next" not in left_out:
            file["next"] = packed[:, 1] * 0.5
        file["when"] = np.arange(n) * 24
        file["when"].attrs["units"] = "hours since 2000-01-02"
        file["far/longer"] = np.zeros((2 * n, 9))
    return path


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(name: str = "d.zarr", **options: Any) -> st.Dataset:
    how = {"fields": FIELDS, "dates": {"id": "days"}, "progress": False} | options
    return st.ingest(file_of("a.h5"), name, **how)  # type: ignore[arg-type]


def test_rows_are_of_the_same_arrays() -> None:
    dataset = made()
    (run,) = st.rows(file_of("b.h5", 9, next=False), like=dataset)
    with h5py.File("b.h5") as file:
        np.testing.assert_array_equal(run["x"], file["in/t2m"][:] * np.float32(0.5))
    assert run["id"].tolist() == list(range(10958, 10967))
    schema = st.open("d.zarr").schema
    assert schema.reading["arrays"] == FIELDS


def test_arrays_of_zarr() -> None:
    group = zarr.open_group("a.zarr", mode="w")
    group.create_array("in/t2m", data=np.ones((8, 3), "i4"))
    group.create_array("other", data=np.ones((8, 5)))
    dataset = st.ingest("a.zarr", "d.zarr", fields={"x": "/in/t2m"}, decode="raw", progress=False)
    (run,) = st.rows("a.zarr", like=dataset)
    assert run["x"].shape == (8, 3)


def test_the_array_of_the_training_is_named_where_it_is_not_there() -> None:
    dataset = made()
    with h5py.File("b.h5", "w") as file:
        file["t2m"] = np.zeros((9, 4))
    with pytest.raises(UsageError, match="x was made of /in/t2m in training"):
        st.rows("b.h5", like=dataset)
    (run,) = st.rows("b.h5", like=dataset, fields={"x": "/t2m"})
    assert run["x"].shape == (9, 4)


def test_missing_values_are_kept_where_the_training_kept_them() -> None:
    file_of("b.h5", 9, bad=3)
    (run,) = st.rows("b.h5", like=made("kept.zarr", nan="keep"))
    assert np.isnan(run["x"]).sum() == 1
    with pytest.raises(InputError) as caught:
        list(st.rows("b.h5", like=made("d.zarr")))
    assert str(caught.value.fix).endswith("nan='keep'")


def test_rows_are_appended_and_read_alike() -> None:
    made()
    file_of("b.h5", 9)
    assert len(st.ingest("b.h5", "d.zarr", append=True, progress=False)) == 49
    assert len(st.ingest("b.h5", "e.zarr", like="d.zarr", progress=False)) == 9
    assert st.open("e.zarr")[0]["id"] == 10958


def test_labels_from_elsewhere_are_no_array_of_the_file() -> None:
    made()
    np.save("y.npy", np.arange(9.0))
    file_of("b.h5", 9, next=False)
    st.ingest("b.h5", "e.zarr", labels="y.npy", like="d.zarr", progress=False)
    dataset = st.ingest("b.h5", "d.zarr", labels="y.npy", append=True, progress=False)
    assert dataset[40:]["y"].tolist() == st.open("e.zarr")[:]["y"].tolist() == list(range(9))


def test_predict_and_evaluate_take_the_same_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    words = ["--model", "linear", "--epochs", "1", "--memory", "16MB", "--batch-size", "20", "--out", "run"]
    assert main(["train", "d.zarr", *words]) == 0
    file_of("b.h5", 9)
    assert main(["predict", "run", "b.h5", "--out", "p.csv"]) == 0
    assert Path("p.csv").read_text().splitlines()[1].startswith("0,")
    assert main(["evaluate", "run", "b.h5"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", file_of("c.h5", 9, bad=2)]) == 3
    told = capsys.readouterr().err
    assert "c.h5 row 2: a value of /in/t2m is missing" in told
    assert "--nan" not in told
