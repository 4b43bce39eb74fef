"""``plan`` from the command line: one text, one object, and exit codes; torch stays out."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.system.units import parse_bytes


@pytest.fixture(scope="module")
def sorted_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "d.zarr"
    n = 20_000
    st.ingest({"x": np.zeros((n, 3), np.float32), "y": np.arange(n) * 10 // n}, path, block=20 * 40, codec="lz4")
    return path


def test_json(sorted_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(sorted_data), "--memory", "8MB", "--batch-size", "64", "--drop-last", "--seed", "2", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    assert memory["projected"] == sum(memory["terms"].values()) <= memory["budget"] == 8_000_000
    assert found["steps_per_epoch"] == {"batch": 312, "sample": 312 * 64, "epoch": 1}
    assert found["reads"]["first_epoch"]["ratio"] == 1.0
    assert 0 <= found["reads"]["later_epochs"]["ratio"] <= 1.01
    assert found["order"] == 3
    assert found["samples_of_one_block_in_a_batch"] == max(1, 64 / found["lanes"])
    assert found["at_most"]["batch_variance_ratio"] >= 1
    assert found["rho"] == pytest.approx(1, abs=0.05)
    assert found["quality"]["samples_measured"] == 20_000
    assert found["quality"]["batch_variance_ratio"] < 0.3
    assert found["quality"]["block_pair_coincidence"] > 1
    assert found["quality"]["as_good_as_random"] is True
    assert found["as_good_as_random"]["memory"] <= 8_000_000
    assert found["as_good_as_random"]["lanes"] <= found["lanes"]


def test_text(sorted_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(sorted_data), "--memory", "8MB", "--batch-size", "64", "--lanes", "10"]) == 0
    out = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    terms = [line.split("  ") for line in out.splitlines() if line.startswith(" ")]
    assert all(len(line[-1].split()) > 3 for line in terms), "half a sentence for each"
    assert list(lines) == ["dataset", "memory", "shuffle", "reads", "lanes", "steps", "labels", "quality", "random"]
    assert lines["memory"].endswith("of 8.0 MB")
    assert lines["shuffle"].startswith("10 lanes in 2 groups, 2.00% of the blocks")
    told = "10 lanes for batches of 64: about 6.4 samples of a batch come from the same block; only one does with --m"
    assert lines["lanes"].startswith(told)
    assert "500 blocks (1.000 of those stored" in lines["reads"]
    assert lines["steps"].startswith("313 in an epoch")
    assert lines["labels"].startswith("10 classes, correlation inside blocks ")
    assert "over 20,000 samples of epoch 0" in lines["quality"]
    # The memory it names can be typed as it stands.
    named = re.search(r"from --memory (\S+) on", lines["random"])
    assert named is not None
    assert main(["plan", str(sorted_data), "--memory", named[1], "--batch-size", "64"]) == 0
    assert parse_bytes(named[1]) <= 8_000_000


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest({"x": np.arange(100.0)}, tmp_path / "d.zarr")
    assert main(["plan", str(tmp_path / "d.zarr"), "--memory", "8MB"]) == 0
    assert "not measured: there is no field y" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "d.zarr"), "--memory", "8MB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quality"] is None
    assert found["quality_not_measured_because"] == "there is no field y"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--memory", "100KB"], 5, "the smallest that works is"),
        (["--memory", "512"], 2, "not a size"),
        (["--lanes", "0"], 2, "must be an integer of at least 1"),
        (["--groups", "3"], 2, "256 samples cannot be drawn from 3 groups"),
        (["--lanes", "6", "--groups", "4"], 2, "Fix: --lanes 4"),
        (["--batch-size", "30000", "--drop-last"], 2, "0 batches"),
        (["--batch-size", "0"], 2, "batch_size is 0"),
    ],
)
def test_errors(sorted_data: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str) -> None:
    assert main(["plan", str(sorted_data), *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err


def test_a_missing_dataset(tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path / "no.zarr")]) == 4


def test_torch_stays_out(sorted_data: Path) -> None:
    code = (
        "import sys; from streamtrain.cli.main import main; "
        f"assert main(['plan', {str(sorted_data)!r}, '--memory', '8MB']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_what_fits_in_memory_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest({"x": np.zeros((5, 3), np.float32), "y": np.arange(5)}, tmp_path / "d.zarr")
    assert main(["plan", str(tmp_path / "d.zarr")]) == 0
    out = capsys.readouterr().out
    assert "5 samples in 1 block of 5" in out
    assert "quality  one batch: nothing to mix\n" in out
    assert "full reshuffle" not in out
    assert "100.00% of the blocks at a time" in out
    assert "none (all of it stays in memory) in a later one" in out


@pytest.mark.parametrize(("n_samples", "n_classes"), [(1, 1), (2, 2), (3, 1), (300, 2), (300, 7)])
def test_a_plan_of_the_smallest_batches_and_data_has_figures(
    n_samples: int, n_classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, y in (("classes", np.arange(n_samples) % n_classes), ("floats", np.arange(n_samples) / 3)):
        path = tmp_path / f"{name}.zarr"
        st.ingest({"x": np.zeros((n_samples, 2), "f4"), "y": y}, path, block="16B", progress=False)
        for batch_size in (1, 2, n_samples, n_samples + 1, 1000):
            for more in ([], ["--json"]):
                assert main(["plan", str(path), "--batch-size", str(batch_size), *more]) == 0
                out, err = capsys.readouterr()
                assert "nan" not in out.lower() + err.lower()


def test_validation_data_takes_its_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"x": np.zeros((200, 3), np.float32), "y": np.arange(200) % 2}
    st.ingest(source, tmp_path / "split", split={"val": 0.25}, progress=False)
    st.ingest(source, tmp_path / "whole", progress=False)
    for words, parts in (
        ([tmp_path / "split"], True),
        ([tmp_path / "split", "--val", "none"], False),
        ([tmp_path / "whole"], False),
        ([tmp_path / "whole", "--val", tmp_path / "split"], True),
    ):
        assert main(["plan", *map(str, words), "--memory", "40MB"]) == 0
        out = capsys.readouterr().out
        of_both = "of 30.0 MB for training, which has 3/4; validation has 1/4, 10.0 MB\n"
        assert (of_both if parts else "of 40.0 MB\n") in out
        assert main(["plan", *map(str, words), "--memory", "40MB", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["memory"]["budget"] + found["validation_memory"] == 40_000_000
    assert main(["plan", str(tmp_path / "whole"), "--val", str(tmp_path / "none")]) == 4


def test_plan_and_train_name_the_same_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    source = {"x": rng.normal(size=(5_000, 40)).astype(np.float32), "y": np.arange(5_000) % 3}
    st.ingest(source, tmp_path / "d", split={"val": 0.1}, block="20KB", progress=False)
    data = str(tmp_path / "d")
    train = ["train", data, "--model", "linear", "--dry-run", "--threads", "1", "--memory"]
    said = []
    for words in (["plan", data, "--memory", "3MB"], [*train, "3MB"]):
        assert main(words) == 5
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    [least] = re.findall(r"Fix: --memory (\d+MB)", said[0])
    assert main(["plan", data, "--memory", least]) == 0
    out = capsys.readouterr().out
    [enough] = re.findall(r"random   from --memory (\d+MB) on", out)
    assert parse_bytes(enough) >= parse_bytes(least)
    for size in (least, enough):
        assert main([*train, size]) == 0
    assert main(["plan", data, "--memory", least, "--batch-size", "0"]) == 2


TIMES = r"([\d.e+-]+) times a full reshuffle's"


@settings(max_examples=30, deadline=None)
@given(
    n=st_.integers(2, 400),
    labels=st_.sampled_from(["in turn", "sorted", "drawn", "numbers"]),
    parts=st_.integers(1, 8),
    block_rows=st_.integers(1, 60),
    memory=st_.sampled_from([4, 5, 8, 64]),
    lanes=st_.sampled_from([None, 1, 2, 16]),
)
def test_its_sentences_agree_on_few_batches_too(
    n: int, labels: str, parts: int, block_rows: int, memory: int, lanes: int | None
) -> None:
    y = {
        "in turn": np.arange(n) % 3,
        "sorted": np.arange(n) * 3 // n,
        "drawn": np.random.default_rng(n).integers(0, 3, n),
        "numbers": np.random.default_rng(n).normal(size=n),
    }[labels]
    with tempfile.TemporaryDirectory() as folder:
        dest = f"{folder}/d.zarr"
        st.ingest({"y": y}, dest, block=8 * block_rows, codec="none")
        words = ["plan", dest, "--memory", f"{memory}MB", "--batch-size", str(max(1, n // parts))]
        out = io.StringIO()
        with redirect_stdout(out):
            code = main([*words, *(["--lanes", str(lanes)] if lanes else [])])
        if code == 2:
            assert lanes, "more lanes than samples, or than can be dealt"
            return
    assert code == 0
    found = re.search(r"^quality +(.*)\n", out.getvalue(), re.MULTILINE)
    assert found is not None
    said = re.search(r"^random +(.*)\n", out.getvalue(), re.MULTILINE)
    if said is None:
        assert found[1] == "one batch: nothing to mix"
        return
    is_good = "variance as good as" in found[1] or "within chance" in found[1]
    times, named = re.search(TIMES, found[1]), re.search(r"from --memory (\d+)MB", said[1])
    if is_good:
        assert named is not None
        assert int(named[1]) <= memory
    elif named is not None:
        assert int(named[1]) > memory or (lanes and said[1].startswith("without --lanes"))
    else:
        least = re.search(r"at best ([\d.e+-]+) times", said[1])
        assert times is not None
        assert least is not None
        assert 1.05 <= float(least[1]) <= float(times[1])
