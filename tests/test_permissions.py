"""Files that may not be read or written: an error that says so, never a bug, and never "missing" for what is there.

Numbers are the rows of the list of bad inputs that the design keeps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from privileges import without_privileges

import streamtrain
from streamtrain.cli.main import main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are otherwise elsewhere")

MISSING = r"Permission denied.*Fix: give this user the permission \(chmod, chown\)"


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """Take permissions away for a while."""
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        with without_privileges():
            yield
    finally:
        path.chmod(before)


def refused(capsys: pytest.CaptureFixture[str], words: list[object], code: int, match: str) -> None:
    found = main([str(word) for word in words])
    err = capsys.readouterr().err
    assert re.search(match, err, re.DOTALL), err
    assert found == code, err


@pytest.mark.parametrize("hidden", ["x.npy", "."], ids=["the file", "its folder"])
def test_5_a_source(tmp_path: Path, hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros((9, 2)))
    np.save(tmp_path / "y.npy", np.arange(9))
    for words in ([folder / "x.npy"], [tmp_path / "y.npy", "--labels", folder / "x.npy"], [folder]):
        with mode(folder / hidden, 0):
            refused(capsys, ["ingest", *words, tmp_path / "out"], 3, rf"raw.*{MISSING}")
    assert not (tmp_path / "out").exists()


def test_5_a_folder_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npy").mkdir()
    refused(capsys, ["ingest", tmp_path / "x.npy", tmp_path / "out"], 3, r"x\.npy: no files in the folder")


def test_59_a_target_where_nothing_may_be_written(
    dataset_to_harm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source := tmp_path / "raw").mkdir()
    np.save(source / "x.npy", np.zeros((9, 2)))
    words = ["ingest", source / "x.npy"]
    with mode(tmp_path, 0o555):
        refused(capsys, [*words, tmp_path / "new"], 5, rf"new.*cannot (create|lock): {MISSING}")
        refused(capsys, [*words, dataset_to_harm, "--overwrite"], 5, rf"cannot (create|lock): {MISSING}")
    refused(capsys, [*words, source / "x.npy" / "out"], 5, r"x\.npy: .*something else is in its place\. Fix: choose")
    assert len(streamtrain.open(dataset_to_harm)) == 100


@pytest.mark.parametrize("key", [".", "..", "zarr.json", "_streamtrain", "_streamtrain/manifest.json", "x", "x/c"])
@pytest.mark.parametrize("command", ["info", "verify", "repair", "ingest"])
def test_74_a_dataset(dataset_to_harm: Path, key: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = dataset_to_harm.parent.parent / f"{dataset_to_harm.parent.name}.npy"
    np.save(source, np.zeros((9, 2)))
    words: list[object] = ["ingest", source] if command == "ingest" else [command]
    with mode(dataset_to_harm / key, 0):
        code = main([str(word) for word in [*words, dataset_to_harm]])
        out, err = capsys.readouterr()
    source.unlink()
    # Repair and ingest look no further than whether it is a dataset: nothing to repair, and in the way.
    seen = {"repair": "/" in key or key[0] in "xz", "ingest": key[0] != "."}.get(command, False)
    expected = {"repair": 0, "ingest": 2}[command] if seen else 4
    assert code == expected, err
    if expected == 4:
        assert "Permission denied" in out + err
        assert "give this user the permission" in out + err
        assert "missing" not in out + err
    assert len(streamtrain.open(dataset_to_harm)) == 100


def test_74_a_block(dataset_to_harm: Path) -> None:
    dataset = streamtrain.open(dataset_to_harm)
    with mode(dataset.shard_path("x", 0), 0):
        with pytest.raises(streamtrain.DatasetError, match=r"block \d+ of field x \(samples.*Permission denied"):
            dataset[:]
        with (
            streamtrain.StreamLoader(dataset, batch_size=10, memory="16MB", timeout=20) as loader,
            pytest.raises(
                streamtrain.DatasetError, match=r"block \d+ of field x \(samples.*Permission denied"
            ) as caught,
        ):
            list(loader)
    assert caught.value.exit_code == 4


def test_90_a_checkpoint_that_may_not_be_read_is_not_passed_over(
    whole_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To go on from an older one, or afresh, would in time remove it."""
    run = tmp_path / "run"
    train = ["train", whole_dataset, "--model", "linear", "--memory", "16MB", "--out", run, "--epochs"]
    assert main([str(word) for word in [*train, 1]]) == 0
    capsys.readouterr()
    (checkpoint,) = (run / "checkpoints").iterdir()
    whole = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for path in [*whole, checkpoint, checkpoint.parent, run]:
        for words in (["evaluate", run, whole_dataset], [*train, 2, "--resume"]):
            with mode(path, 0):
                refused(capsys, words, 6, MISSING)
    with mode(run / "config.json", 0):
        refused(capsys, ["evaluate", run, whole_dataset], 6, rf"config\.json: cannot be read: {MISSING}")
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == whole
    with mode(tmp_path, 0o555):
        refused(capsys, [*train[:-2], tmp_path / "another", "--epochs", 1], 5, rf"another.*{MISSING}")
