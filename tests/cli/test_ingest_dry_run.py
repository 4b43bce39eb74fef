"""``ingest --dry-run``: what is found, on stdout, and nothing written; and arrays of HDF5 beside other options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main

X = np.arange(240, dtype="f4").reshape(60, 4)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of chunked scans and their labels, in a folder of its own that the process is in."""
    monkeypatch.chdir(tmp_path)
    with h5py.File("scans.h5", "w") as file:
        x = file.create_dataset("x", (60, 4), "f4", chunks=(7, 4))
        x[:14] = X[:14]
        file["y"] = np.arange(60) % 3
    return Path("scans.h5")


def typed(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(line.split())
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_dry_run_needs_no_name_for_what_it_does_not_write(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("ingest scans.h5 --dry-run", capsys) == typed("ingest scans.h5 d.zarr --dry-run", capsys)
    assert typed("ingest scans.h5 --task regression", capsys)[::2] == (
        2,
        "error: DEST is missing. The last argument is the new dataset, and scans.h5 is a file. "
        "Fix: streamtrain ingest scans.h5 --task regression scans.\n",
    )


def test_what_is_found_is_the_result_and_nothing_is_written(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = typed("ingest scans.h5 d.zarr --dry-run", capsys)
    assert code == 0
    assert out.splitlines() == [
        "60 samples of x float32 (4,), y int64 ()",
        "1.4 KB in blocks of 60 samples, before compression",
        "scans.h5: hdf5, arrays x /x, y /y, chunks /x (7, 4), missing_chunks /x 7",
        "nothing was written",
    ]
    assert "scans.h5: 7 of 9 chunks of /x are absent and read as 0" in err
    assert [path.name for path in Path().iterdir()] == ["scans.h5"]


def test_the_same_in_json(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed("ingest scans.h5 d.zarr --dry-run --json --split val=0.5 --fields x=/x", capsys)
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert found["samples"] == 60
    assert found["fields"] == {"x": {"dtype": "float32", "shape": [4]}}
    assert found["sources"][0]["missing_chunks"] == {"/x": 7}
    assert found["split_rule"]["how"] == "hash"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ingest scans.h5 d.zarr --dry-run --fields x=/z", 3),
        ("ingest scans.h5 scans.h5 --dry-run", 2),
        ("ingest scans.h5 d.zarr --dry-run --memory 1MB", 5),
        ("ingest scans.h5 d.zarr --dry-run --append", 4),
        ("ingest scans.h5 d.zarr --dry-run --append --overwrite", 2),
    ],
)
def test_what_an_ingest_refuses_a_dry_run_refuses(
    scans: Path, capsys: pytest.CaptureFixture[str], line: str, code: int
) -> None:
    assert typed(line, capsys)[0] == typed(line.replace(" --dry-run", ""), capsys)[0] == code


def test_the_smallest_memory_is_one_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{n * 0.7:.2f},{n % 9},{n % 3}" for n in range(20_000)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *lines]))
    words = f"ingest {tmp_path}/a.csv {tmp_path}/d.zarr --label-column y --memory 12MB"
    for codec in ("auto", "none"):
        said = [typed(f"{words} --codec {codec}{dry}", capsys)[2] for dry in (" --dry-run", "")]
        assert "the smallest that works is" in said[0]
        assert said[0] == said[1]


def test_tables_and_streams_of_unknown_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,cat\n3,4,dog\n")
    code, out, _ = typed(f"ingest {tmp_path}/a.csv {tmp_path}/d.zarr --label-column y --dry-run", capsys)
    assert code == 0
    assert "columns a, b, label_column y" in out
    assert "classes: cat, dog" in out


def test_like_resume_and_append(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("ingest scans.h5 d.zarr", capsys)[0] == 0
    assert typed("ingest scans.h5 e.zarr --like d.zarr", capsys)[0] == 0
    assert typed("ingest scans.h5 e.zarr --resume --like d.zarr", capsys)[0] == 0
    assert typed("ingest scans.h5 d.zarr --append", capsys)[0] == 0
    assert len(st.open("d.zarr")) == 2 * len(st.open("e.zarr")) == 120
    with h5py.File("other.h5", "w") as file:
        file["x"], file["y"] = X.astype("f8"), np.arange(60)
    code, _, err = typed("ingest other.h5 f.zarr --like d.zarr", capsys)
    assert code == 3, err
    assert "float64" in err
