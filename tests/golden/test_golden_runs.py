"""Runs of version 0.1.0: a later version resumes the interrupted ones, and they end as the finished ones did.

Training is repeated from its beginning, too, finished and interrupted, and compared with what is kept. Whether matrix
products and exponentials come out equal in the last bit is the affair of the processor and of torch, so there are two
measures:

- where stock torch and NumPy compute what they computed when the files were made (`golden_runs.arithmetic`, which knows
  nothing of streamtrain), every file of a run must be equal byte for byte, but for what a clock or a meter said;
- anywhere, counts, place of the stream, and configuration must be equal, and weights and metrics nearly so. But L-BFGS
  finds what it knows of J by the bits of the weights: where they come out otherwise, a resumed run makes a pass again,
  takes another count of steps in as many passes, and only its losses are near.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import golden
import golden_runs
import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from streamtrain.cli.main import main

FIGURES: Any = json.loads((golden.GOLDEN / "figures.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:Dropout under")
every_run = pytest.mark.parametrize("name", golden_runs.RUNS)
every_interrupted = pytest.mark.parametrize("name", golden_runs.INTERRUPTED)
by_command = pytest.mark.parametrize("name", FIGURES["evaluated"])
every_folder = pytest.mark.parametrize(
    "folder", sorted((golden.GOLDEN / "runs").glob("*/*")), ids=lambda path: "-".join(path.parts[-2:])
)


@pytest.fixture
def is_exact(one_thread: None) -> bool:
    """Whether torch and NumPy compute here what they did where the files were made."""
    return golden_runs.arithmetic() == FIGURES["arithmetic"]


def kept(name: str, kind: str) -> Path:
    return golden.GOLDEN / "runs" / name / kind


def copied(name: str, kind: str) -> Path:
    """A run's copy, that may be written."""
    return Path(shutil.copytree(kept(name, kind), "run"))


def assert_same_run(made: Path, expected: Path, *, is_exact: bool) -> None:
    names = [path.name for path in golden_runs.checkpoints(expected)]
    of_made = golden_runs.checkpoints(made)[-len(names) :]
    assert [path.name for path in of_made] == names
    assert_near(golden_runs.metrics(made), golden_runs.metrics(expected))
    assert_near(*configs_of(made, expected))
    for one, other in zip(of_made, golden_runs.checkpoints(expected), strict=True):
        assert_same_state(one, other)
    if is_exact:
        assert golden_runs.metrics(made) == golden_runs.metrics(expected)
        ours, theirs = configs_of(made, expected, whole=True)
        assert json.dumps(ours) == json.dumps(theirs)
        for one, other in zip(of_made, golden_runs.checkpoints(expected), strict=True):
            assert_same_bytes(one, other)


def assert_same_state(made: Path, expected: Path) -> None:
    """What holds on any machine."""
    ours, theirs = state_of(made), state_of(expected)
    assert list(ours) == list(theirs)
    assert (ours["version"], ours["counts"], ours["stream"]) == (theirs["version"], theirs["counts"], theirs["stream"])
    assert_near(golden_runs.weights(made), golden_runs.weights(expected))


def assert_same_bytes(made: Path, expected: Path) -> None:
    """Every file of a checkpoint, which by now names the best; its bytes of metrics depend on the times in them."""
    ours, theirs = golden.tree(made), golden.tree(expected)
    assert list(ours) == list(theirs)
    for name in ours:
        if name.endswith(".safetensors"):
            assert ours[name] == theirs[name], f"{made.name}/{name}"
    assert text_of(made) == text_of(expected)
    listed, expectedly = (json.loads(files["manifest.json"]) for files in (ours, theirs))
    for manifest in (listed, expectedly):
        del manifest["files"]["state.json"]
    assert json.dumps(listed) == json.dumps(expectedly)


def config_of(run: Path, *, whole: bool = False) -> dict[str, Any]:
    """What a run is, but for the defaults of torch's optimizers, which are another set in another version.

    Facts of the labels, torch's threads, versions, and how the run was called were not kept by 0.1.0.
    """
    config: dict[str, Any] = json.loads((run / "config.json").read_bytes())
    for name in ("task", "labels", "threads", "versions", "fit", "command"):
        config.pop(name, None)
    if whole:
        return config
    named = {key: config["optimizer"][key] for key in ("name", "lr")}
    return config | {"optimizer": named}


def configs_of(made: Path, expected: Path, *, whole: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both configurations; in Python 0.1.0 did not keep where the data was, and how it was loaded."""
    ours, theirs = config_of(made, whole=whole), config_of(expected, whole=whole)
    for name in ("dataset", "memory", "lanes", "groups"):
        if name not in theirs:
            ours.pop(name, None)
    return ours, theirs


def state_of(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_bytes())
    state.pop("best", None)
    return state


LATER = ("figures", "measured_at", "reported_at")
"""Entries that the state of a rule has held since version 0.1.0."""


def text_of(checkpoint: Path) -> str:
    """The state as it is written, but for the length of the metrics, and what later versions have put to it."""
    state = state_of(checkpoint)
    for name, part in state["training"]["dict"]:
        if name == "rule":
            part["dict"] = [pair for pair in part["dict"] if pair[0] not in LATER]
    return json.dumps(state | {"metrics_bytes": None})


def assert_near(made: Any, expected: Any) -> None:
    """Equal, and numbers with a fraction within what other processors make of them."""
    match expected:
        case dict():
            assert list(made) == list(expected)
            for key in expected:
                assert_near(made[key], expected[key])
        case list():
            assert len(made) == len(expected)
            for one, other in zip(made, expected, strict=True):
                assert_near(one, other)
        case float() | np.ndarray():
            assert np.allclose(made, expected, rtol=1e-3, atol=1e-4)
        case _:
            assert made == expected


# Trained anew --------------------------------------------------------------------------------------------------------


@every_run
def test_trained_anew_it_is_the_same(name: str, is_exact: bool) -> None:
    told = golden_runs.train(name, "run")
    assert_same_run(Path("run"), kept(name, "whole"), is_exact=is_exact)
    assert told["resumed_from_batch"] == 0
    n_epochs = golden_runs.RUNS[name].n_epochs
    assert [epoch["samples"] for epoch in told["epochs"]] == [230 * n for n in range(1, n_epochs + 1)]
    assert told["loss"] == golden_runs.lines(Path("run"))[-1]["loss"]
    if name != golden_runs.PYTHON:
        assert_same_memory(Path("run"), kept(name, "whole"))


def assert_same_memory(made: Path, expected: Path) -> None:
    """The projected memory; what was measured is the machine's."""
    ours, theirs = (json.loads((run / "memory.json").read_bytes()) for run in (made, expected))
    assert list(ours) == list(theirs)
    assert all(ours[name] == theirs[name] for name in ("budget", "projected", "terms"))


@every_interrupted
def test_interrupted_anew_it_is_the_same(name: str, is_exact: bool) -> None:
    golden_runs.train_until_ctrl_c(name, "run")
    assert_same_run(Path("run"), kept(name, "stopped"), is_exact=is_exact)


# Resumed -------------------------------------------------------------------------------------------------------------


@every_interrupted
def test_it_resumes_inside_its_epoch_and_ends_as_the_finished_one(name: str, is_exact: bool) -> None:
    run = copied(name, "stopped")
    told = golden_runs.train(name, str(run))
    assert told["resumed_from_batch"] == golden_runs.RUNS[name].stop_after
    assert_resumed_run(name, run, is_exact=is_exact)


@every_interrupted
def test_it_resumes_from_the_checkpoint_before(name: str, is_exact: bool) -> None:
    run = copied(name, "stopped")
    before, newest = golden_runs.checkpoints(run)
    shutil.rmtree(newest)
    assert golden_runs.train(name, str(run))["resumed_from_batch"] == int(before.name)
    assert_resumed_run(name, run, is_exact=is_exact)


def assert_resumed_run(name: str, run: Path, *, is_exact: bool) -> None:
    whole = kept(name, "whole")
    if is_exact or name != "lbfgs":
        assert_same_run(run, whole, is_exact=is_exact)
        return
    made, expected = ([line | {"steps": None} for line in golden_runs.metrics(one)] for one in (run, whole))
    assert_near(made, expected)
    ours, theirs = (state_of(golden_runs.checkpoints(one)[-1]) for one in (run, whole))
    assert ours["stream"] == theirs["stream"]


@every_run
def test_a_finished_one_has_nothing_left(name: str) -> None:
    run = copied(name, "whole")
    before = golden.tree(run)
    told = golden_runs.train(name, str(run))
    after = golden.tree(run)
    assert {key for key in after if after[key] != before.get(key)} <= {"memory.json"}
    n_epochs = golden_runs.RUNS[name].n_epochs
    assert (told["resumed_from_batch"], told["samples"], told["epochs"]) == (15 * n_epochs, 230 * n_epochs, [])


@pytest.mark.parametrize("option", [("--lr", "0.3"), ("--seed", "6"), ("--batch-size", "17"), ("--model", "mlp:5")])
def test_what_it_was_trained_with_must_be_the_same(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run = copied("epoch", "stopped")
    words = ("train", "datasets/lz4.zarr", *golden_runs.RUNS["epoch"].options, *option, "--out", str(run), "--resume")
    before = golden.tree(run)
    assert main(words) == 6
    assert "another run" in capsys.readouterr().err
    assert golden.tree(run) == before


# Read ----------------------------------------------------------------------------------------------------------------


@by_command
def test_it_evaluates_to_its_figures(name: str, is_exact: bool) -> None:
    told = golden_runs.evaluate(name, str(copied(name, "whole")))
    assert told == pytest.approx(FIGURES["evaluated"][name], rel=1e-5)
    if is_exact:
        assert told == FIGURES["evaluated"][name]


def test_the_one_of_python_evaluates_in_python() -> None:
    run, trainer = copied(golden_runs.PYTHON, "whole"), golden_runs.make_trainer()
    with golden_runs.make_loader() as loader:
        trainer.fit(loader, max_epochs=3, checkpoint=run, checkpoint_every=5, resume="auto", progress=False)
        found = trainer.evaluate(loader)
    with torch.no_grad():
        x, y = normalized(run, golden.rows_of(golden_runs.TRAINED_ON))
        expected = nn.functional.cross_entropy(trainer.model.eval()(x), y)
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


@by_command
def test_its_weights_are_plain_files_with_a_plain_meaning(name: str) -> None:
    """Stock safetensors, torch and arithmetic rows come to the same figures."""
    newest = golden_runs.checkpoints(kept(name, "whole"))[-1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in golden_runs.weights(newest).items()})
    rows = golden.rows_of("none")
    x, y = normalized(kept(name, "whole"), rows)
    with torch.no_grad():
        out = model(x)
        losses = nn.functional.cross_entropy(out, y, reduction="none").double().numpy()
    weight = rows["w"] if name == "batch" else np.ones(len(rows["y"]))
    hits = (out.argmax(1) == y).numpy()
    figures = {"loss": np.average(losses, weights=weight), "accuracy": np.average(hits, weights=weight)}
    assert FIGURES["evaluated"][name] == pytest.approx(figures, rel=1e-5)


def normalized(run: Path, rows: golden.Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows rescaled by the statistics that a run keeps."""
    kept_with = safetensors.numpy.load_file(golden_runs.checkpoints(run)[-1] / "normalize.safetensors")
    x = (rows["x"] - kept_with["x.mean"]) / kept_with["x.std"]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(rows["y"])


@every_folder
def test_its_checkpoints_are_whole(folder: Path) -> None:
    for checkpoint in golden_runs.checkpoints(folder):
        files = golden.tree(checkpoint)
        manifest = json.loads(files.pop("manifest.json"))
        listed = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        assert manifest == {"version": 1, "files": listed}
        n_bytes = json.loads(files["state.json"])["metrics_bytes"]
        metrics = (folder / "metrics.jsonl").read_bytes()
        assert n_bytes <= len(metrics)
        assert metrics[:n_bytes][-1:] in (b"", b"\n"), "whole lines"
    assert n_bytes == len(metrics), "the newest was saved behind the last line"


@every_folder
def test_it_is_reported(folder: Path) -> None:
    run = Path(shutil.copytree(folder, "run"))
    words = ("report", str(run), "--dataset", "datasets/lz4.zarr", "--json")
    told = json.loads(golden.run_command(*words))
    assert told["epochs"] == len([line for line in golden_runs.metrics(folder) if line["kind"] == "epoch"])
    page = (run / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert golden.open_golden(golden_runs.TRAINED_ON).id[:8] in page


def test_no_file_names_a_machine() -> None:
    for name, data in golden.tree(golden.GOLDEN / "runs").items():
        assert b'"/' not in data, name
