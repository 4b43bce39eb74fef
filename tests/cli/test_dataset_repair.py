"""``repair``: lists what interrupted ingests left, removes it when told, and leaves every dataset alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main
from streamtrain.store.writing.journal import JOURNAL
from streamtrain.store.writing.lock import writer_lock
from streamtrain.system.files import Files


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return streamtrain.ingest({"x": np.arange(600).reshape(100, 6)}, tmp_path / "d.zarr", block="1KB").path


def _repair(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> dict[str, Any]:
    assert main(["repair", str(path), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_whole_dataset_has_nothing_to_repair(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _tree(dataset.parent)
    assert _repair(capsys, dataset, "--remove") == {
        "dest": str(dataset), "removed": True, "leftovers": [], "dataset": True,
    }  # fmt: skip
    assert main(["repair", str(dataset)]) == 0
    told = capsys.readouterr().out
    assert "no leftovers of interrupted ingests" in told
    assert f"streamtrain verify {dataset} --full" in told
    assert _tree(dataset.parent) == before


def test_a_link_and_a_dot_are_the_dataset_they_lead_to(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = dataset.parent / ".d.zarr.new"
    (left / "_streamtrain").mkdir(parents=True)
    link = dataset.parent / "elsewhere" / "link.zarr"
    link.parent.mkdir()
    link.symlink_to(dataset)
    monkeypatch.chdir(dataset)
    for path in (link, Path(), dataset):
        assert [item.path for item in streamtrain.repair(path)] == [left]
        found = _repair(capsys, path)
        assert [Path(item["path"]) for item in found["leftovers"]] == [left]
        assert found["dataset"]


def test_every_kind_is_listed_and_goes_while_the_dataset_stays(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _tree(dataset.parent)
    folder = dataset.parent
    (folder / ".d.zarr.lock").write_text("{}")
    (dataset / "x" / ".zarr.json.89abcdef.tmp").write_text("half")
    (dataset / JOURNAL).write_text("")
    for name in ("new", "old"):
        (folder / f".d.zarr.{name}" / "_streamtrain").mkdir(parents=True)
        (folder / f".d.zarr.{name}" / "zarr.json").write_text("{}")
    result = _repair(capsys, dataset)
    listed = {Path(item["path"]).name: item["what"] for item in result["leftovers"]}
    assert listed == {
        ".d.zarr.lock": "the lock of a writer that is dead",
        ".zarr.json.89abcdef.tmp": "a file that was not finished",
        "journal": "the journal of an ingest that was committed",
        ".d.zarr.new": "what was replaced",
        ".d.zarr.old": "what was replaced",
    }
    assert not result["removed"]
    assert len(_tree(folder)) == len(before) + 5
    assert _repair(capsys, dataset, "--remove")["removed"]
    assert _tree(folder) == before
    assert len(streamtrain.open(dataset)) == 100


def test_an_interrupted_ingest_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half" / "_streamtrain").mkdir(parents=True)
    (tmp_path / "half" / "zarr.json").unlink(missing_ok=True)
    assert main(["repair", str(tmp_path / "half")]) == 0
    out = capsys.readouterr().out
    assert "an ingest that did not finish" in out
    assert "repair" in out
    assert (tmp_path / "half").exists()
    assert not _repair(capsys, tmp_path / "half", "--remove")["dataset"]
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_never_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half" / "_streamtrain").mkdir(parents=True)
    (tmp_path / "half" / "thesis.tex").write_text("years of work")
    assert main(["repair", str(tmp_path / "half"), "--remove"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "half" / "thesis.tex").read_text() == "years of work"


def test_a_dataset_between_two_names_is_put_back(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _tree(dataset)
    dataset.rename(dataset.with_name(".d.zarr.old"))
    (item,) = _repair(capsys, dataset)["leftovers"]
    assert "the dataset itself, to be put back" in item["what"]
    assert _repair(capsys, dataset, "--remove")["dataset"]
    assert _tree(dataset) == before


def test_a_dataset_whose_name_is_taken_is_not_removed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its writer ended between two renames, and then somebody made a folder of its name."""
    before = _tree(dataset)
    dataset.rename(dataset.with_name(".d.zarr.old"))
    dataset.mkdir()
    (item,) = _repair(capsys, dataset)["leftovers"]
    assert "the dataset itself, to be put back" in item["what"]
    assert main(["repair", str(dataset), "--remove"]) == 2
    assert "in the place of one that was being replaced" in capsys.readouterr().err
    dataset.rmdir()
    assert _repair(capsys, dataset, "--remove")["dataset"]
    assert _tree(dataset) == before


def test_an_interrupted_overwrite_of_what_is_no_dataset_any_more(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset.rename(dataset.with_name(".d.zarr.new"))
    (dataset.with_name(".d.zarr.new") / JOURNAL).write_text("")
    dataset.write_text("a file")
    (item,) = _repair(capsys, dataset)["leftovers"]
    assert item["what"] == "an overwrite or append that did not finish"
    _repair(capsys, dataset, "--remove")
    assert [path.name for path in dataset.parent.iterdir()] == ["d.zarr"]
    assert dataset.read_text() == "a file"


def test_a_living_ingest_is_left_alone(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writer_lock(dataset, Files()):
        assert main(["repair", str(dataset), "--remove"]) == 9
        assert "another process is writing it" in capsys.readouterr().err
