"""``ingest`` and ``info`` from the command line: results on stdout, errors by exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamtrain.cli.main import main


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.arange(2400, dtype=np.uint8).reshape(100, 4, 6))
    np.save(tmp_path / "y.npy", np.arange(100) % 5)
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2,cat\n3,4,ant\n5,6,cat\n")
    np.arange(600, dtype="<f4").tofile(tmp_path / "r.bin")
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main([*words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_ingest_and_info(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(raw / "x.npy"), str(raw / "d.zarr"), "--labels", str(raw / "y.npy"), "--block", "1KB"]
    result = _json(capsys, *words, "--codec", "lz4", "--shard", "1KB", "--memory", "100MB")
    assert result["samples"] == 100
    assert result["fields"] == {"x": {"dtype": "uint8", "shape": [4, 6]}, "y": {"dtype": "int64", "shape": []}}
    assert result["bytes"] == 100 * 32
    assert result["codec"] == "lz4"
    assert result["classes"] is None
    info = _json(capsys, "info", str(raw / "d.zarr"))
    assert info["id"] == result["id"]
    assert info["histogram"] == {str(label): 20 for label in range(5)}
    assert info["n_classes"] == 5
    assert info["fields"]["y"]["mean"] == 2.0  # type: ignore[index]
    assert info["sources"][0]["path"] == str(raw / "x.npy")  # type: ignore[index]


def test_text(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", str(raw / "t.csv"), str(raw / "d.zarr"), "--label-column", "kind", "--columns", "b"]) == 0
    out = capsys.readouterr().out
    assert "3 samples of x" in out
    assert "classes: 0 = ant, 1 = cat" in out
    assert main(["info", str(raw / "d.zarr")]) == 0
    out = capsys.readouterr().out
    assert "labels   ant: 1; cat: 2" in out
    assert "field  dtype" in out


def test_quiet_prints_what_was_stored_not_what_it_took(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(raw / "t.csv"), str(raw / "d.zarr"), "--label-column", "kind", "--columns", "b"]
    assert main([*words, "--quiet"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert "3 samples of x" in first
    assert others == ["classes: 0 = ant, 1 = cat", "label   kind: 2 classes"]
    assert main([*words, "--overwrite"]) == 0
    assert " MB/s" in capsys.readouterr().out


def test_missing_values_are_counted_in_text(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(raw / "n.npy", [[1, np.nan], [np.nan, 2]])
    assert main(["ingest", str(raw / "n.npy"), str(raw / "n.zarr"), "--nan", "keep"]) == 0
    assert "missing 2 NaN in x" in capsys.readouterr().out
    assert main(["info", str(raw / "n.zarr")]) == 0
    assert "missing  2 NaN in x" in capsys.readouterr().out
    assert main(["ingest", str(raw / "x.npy"), str(raw / "d.zarr")]) == 0
    assert "missing " not in capsys.readouterr().out


def test_raw_binary(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(raw / "r.bin"), str(raw / "d.zarr"), "--dtype", "float32", "--shape", "2,3"]
    result = _json(capsys, *words)
    assert result["samples"] == 100
    assert result["fields"] == {"x": {"dtype": "float32", "shape": [2, 3]}}


def test_several_files(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(raw / "x2.npy", np.zeros((10, 4, 6), np.uint8))
    assert _json(capsys, "ingest", str(raw / "x.npy"), str(raw / "x2.npy"), str(raw / "d.zarr"))["samples"] == 110


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["ingest"], 2, "Missing argument 'DEST'"),
        (["ingest", "x.npy"], 2, "DEST is missing"),
        (["ingest", "no.npy", "d.zarr"], 3, "no such file"),
        (["ingest", "x.npy", "y.npy"], 2, "DEST is missing"),
        (["ingest", "x.npy", "d.zarr", "--memory", "512"], 2, "not a size"),
        (["ingest", "x.npy", "d.zarr", "--memory", "1MB"], 5, "smallest that works"),
        (["ingest", "x.npy", "d.zarr", "--codec", "lz"], 2, "did you mean 'lz4'"),
        (["ingest", "r.bin", "d.zarr", "--dtype", "float32", "--shape", "2xx"], 2, "list of integers"),
        (["info", "."], 4, "not a streamtrain dataset"),
        (["info", "no.zarr"], 4, "no such dataset"),
    ],
)
def test_errors(
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(raw)
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert not (raw / "d.zarr").exists()
