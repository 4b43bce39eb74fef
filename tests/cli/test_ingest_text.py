"""``streamtrain ingest`` of delimited text: its options, and ranges of names."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamtrain
from streamtrain.cli.ingest import _parse_list
from streamtrain.cli.main import main
from streamtrain.errors import UsageError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,p1..p3,b", ("a", "p1", "p2", "p3", "b")),
        ("p08..p11", ("p08", "p09", "p10", "p11")),
        ("1..3", ("1", "2", "3")),
        ("p1..q3", ("p1..q3",)),
        ("a..b", ("a..b",)),
        ("x1y1..x1y2", ("x1y1", "x1y2")),
    ],
)
def test_ranges_of_names(text: str, names: tuple[str, ...]) -> None:
    assert _parse_list(text) == names


@pytest.mark.parametrize("text", ["p3..p1", "p1..p99999999999"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a range"):
        _parse_list(text)


def test_a_table_without_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("day.csv").write_text("1\t0.5\t2\n0\t?\t3\n", "latin1")
    told = ["ingest", "day.csv", "d.zarr", "--header", "none", "--names", "label,i1..i2", "--label-column", "label"]
    assert main([*told, "--encoding", "latin1", "--na-values", "?"]) == 3
    assert "day.csv:2" in capsys.readouterr().err
    Path("day.csv").write_text("1\t0.5\t2\n0\t1\t3\n", "latin1")
    assert main([*told, "--columns", "i1..i2"]) == 0
    assert r"day.csv: the delimiter is '\t'" in capsys.readouterr().err
    assert main([*told, "--delimiter", "tab", "--overwrite"]) == 0
    assert "delimiter" not in capsys.readouterr().err
    assert streamtrain.open("d.zarr").columns == ("i1", "i2")
