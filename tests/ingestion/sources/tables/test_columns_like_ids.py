"""Columns that look like ids: taken by ``auto``, and told with the ways out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import StreamtrainWarning

N = 40
RNG = np.random.default_rng(0)


def write(path: Path, **columns: object) -> str:
    names = list(columns)
    rows = zip(*(np.asarray(columns[name]).tolist() for name in names), strict=True)
    path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def some() -> np.ndarray:
    return RNG.normal(size=N).round(3)


def ingest(path: str, *words: str) -> list[str]:
    return ["ingest", path, "d", "--auto", "--label-column", "y", "--overwrite", *words]


@pytest.mark.parametrize("text", [False, True], ids=["numbers alone", "beside text"])
@pytest.mark.parametrize(("first", "step"), [(1, 1), (0, 1), (1000, 10)])
def test_a_column_that_rises_evenly_is_told_with_two_ways_out_that_work(
    in_own_folder: Path, capsys: pytest.CaptureFixture[str], first: int, step: int, text: bool
) -> None:
    texts = {"city": ["Oslo", "Bern"] * (N // 2)} if text else {}
    path = write(in_own_folder / "t.csv", id=first + step * np.arange(N), a=some(), **texts, y=some())
    assert main(ingest(path)) == 0
    err = capsys.readouterr().err
    told = f"hint: column id rises by {step} from row to row, as an id does, and is a feature: --id-column id keeps id "
    assert f"{told}beside the rows, --exclude id leaves it out\n" in err
    assert st.open("d").schema.columns["x"] == ("id", "a")
    for option, fields in (("--id-column id", {"id"}), ("--exclude id", set())):
        assert main(ingest(path, *shlex.split(option))) == 0
        assert "as an id does" not in capsys.readouterr().err
        assert st.open("d").schema.columns["x"] == ("a",)
        assert {field.name for field in st.open("d").fields} & {"id"} == fields


@pytest.mark.parametrize(
    "values",
    [
        lambda: np.arange(N)[::-1],
        lambda: np.arange(N) // 2,
        lambda: np.append(np.arange(N - 1), N + 5),
        lambda: np.arange(N) / 2,
        lambda: RNG.permutation(N),
        lambda: np.full(N, 3),
    ],
    ids=["falling", "twice", "a gap", "fractions", "mixed", "constant"],
)
def test_others_are_features_without_a_word(
    in_own_folder: Path, capsys: pytest.CaptureFixture[str], values: Callable[[], np.ndarray]
) -> None:
    path = write(in_own_folder / "t.csv", id=values(), a=some(), y=some())
    assert main(ingest(path)) == 0
    assert "as an id does" not in capsys.readouterr().err


def test_several_are_told_at_once_and_named_features_are_none(
    in_own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(in_own_folder / "t.csv", id=np.arange(N), row=5 * np.arange(N), a=some(), y=some())
    assert main(ingest(path)) == 0
    told = "columns id, row rise by the same from row to row, as an id does, and are features"
    assert (
        f"{told}: --id-column id keeps id beside the rows, --exclude id,row leaves them out" in capsys.readouterr().err
    )
    assert main(ingest(path, "--columns", "id,a")) == 0
    assert "as an id does" not in capsys.readouterr().err


def test_python_warns_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", id=np.arange(N), a=some(), y=some())
    with pytest.warns(StreamtrainWarning) as caught:
        st.ingest(path, tmp_path / "d", label_column="y", auto=True, progress=False)
    [told] = [str(each.message) for each in caught if "as an id does" in str(each.message)]
    assert "id_column='id' keeps id beside the rows, exclude=['id'] leaves it out" in told
