"""Totals are totals: a run cut inside an epoch resumes inside it, and until its end the epoch does not count."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doomed import Doomed, Killed
from in_memory import Arrays, Batches
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.comparison.run import TimedStream
from streamtrain.diagnostics.headspace import headspace
from streamtrain.errors import CheckpointError
from streamtrain.optim.schedules import Schedule
from streamtrain.system.signals import Interrupted
from streamtrain.training.records.history import EpochSummary
from streamtrain.training.run.checkpoint import newest_checkpoint
from streamtrain.training.run.run_state import ResumePoint

pytestmark = pytest.mark.usefixtures("one_thread")

N, N_FEATURES, BATCH_SIZE, EPOCH_BATCHES = 230, 6, 20, 12
RULES: dict[str, dict[str, Any]] = {
    "batch": {"update": "batch"},
    "accumulated": {"update": "batch", "accumulate_grad_batches": 5},
    "sample": {"update": "sample", "optimizer": "adam"},
    "sample plain": {"update": "sample", "sample_path": "plain", "optimizer": "sgd", "momentum": 0.9},
    "sample weighted": {"update": "sample", "weight": "w"},
    "epoch": {"update": "epoch", "optimizer": "sgd"},
}
every_rule = pytest.mark.parametrize("rule", RULES)
PLATEAU = Schedule(name="plateau", options={"patience": 0, "threshold": 0.9, "factor": 0.5})


def make_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, N_FEATURES)).astype(np.float32)
    w = rng.integers(0, 3, N).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1), "w": w}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    path = tmp_path_factory.mktemp("data") / "d.zarr"
    return st.ingest(make_arrays(), path, block=6 * N_FEATURES * 4, progress=False)


def make_trainer(rule: str = "batch", **options: Any) -> st.Trainer:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))
    return st.Trainer(model, loss="cross_entropy", device="cpu", **RULES[rule] | options)


def make_loader(dataset: st.Dataset, **how: Any) -> st.StreamLoader:
    return st.StreamLoader(dataset, **{"batch_size": BATCH_SIZE, "memory": "8MB", "seed": 5} | how)


def state(trainer: st.Trainer) -> dict[str, Any]:
    """The weights, the optimizer's state and its rate."""
    found: dict[str, Any] = {f"model.{name}": value.clone() for name, value in trainer.model.state_dict().items()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{i}.{name}": value for name, value in values.items()}
    return found | {"lr": trainer.optimizer.param_groups[0]["lr"], "counts": trainer.counts}


def assert_same(ours: st.Trainer, theirs: st.Trainer) -> None:
    one, other = state(ours), state(theirs)
    assert one.keys() == other.keys()
    for name, value in other.items():
        same = torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value
        assert same, name


def lines(run: Path) -> list[dict[str, Any]]:
    times = ("seconds", "samples_per_second", "stall_fraction")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith(times)} for line in found]


# In Python ------------------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("kind", ["loader", "a new loader each time", "a stream without a state"])
def test_calls_on_one_trainer_add_up(dataset: st.Dataset, rule: str, kind: str) -> None:
    def stream() -> Any:
        memory = Batches(Arrays(**make_arrays()), batch_size=BATCH_SIZE, seed=5)
        return memory if kind.endswith("state") else make_loader(dataset)

    whole, sliced = make_trainer(rule, schedule=PLATEAU), make_trainer(rule, schedule=PLATEAU)
    n_steps = whole.fit(stream(), max_epochs=3).counts.n_steps
    same = stream()
    for cut in sorted({eighth * n_steps // 8 for eighth in range(1, 8)}):
        each = stream() if kind.startswith("a new") else same
        history = sliced.fit(each, max_steps=cut)
        assert (history.stopped_by, history.counts.n_steps) == ("steps", cut)
        if each is not same:
            each.close()
    sliced.fit(same, max_epochs=3)
    assert_same(sliced, whole)


def test_an_epoch_that_is_cut_short_does_not_count(dataset: st.Dataset) -> None:
    trainer = make_trainer(schedule=PLATEAU, optimizer="sgd", lr=1e-30)
    seen: list[EpochSummary] = []
    with make_loader(dataset) as loader:
        for n_steps in range(2, EPOCH_BATCHES, 3):
            history = trainer.fit(loader, max_steps=n_steps, patience=1, monitor="loss", on_epoch=seen.append)
            assert (history.counts.n_epochs, history.counts.n_batches) == (0, n_steps)
            assert history.last is not None
            assert (history.last.partial, history.last.number, history.last.train.n_samples) == (
                True, 1, n_steps * BATCH_SIZE,
            )  # fmt: skip
        assert (seen, trainer.optimizer.param_groups[0]["lr"]) == ([], 1e-30)
        history = trainer.fit(loader, max_steps=EPOCH_BATCHES, patience=1, monitor="loss", on_epoch=seen.append)
        assert [(summary.partial, summary.number, summary.train.n_samples) for summary in seen] == [(False, 1, N)]
        assert history.counts.n_epochs == 1


def test_patience_counts_on_over_calls_as_in_one(dataset: st.Dataset) -> None:
    def make() -> st.Trainer:
        return make_trainer(optimizer="sgd", lr=1e-30)

    whole, sliced = make(), make()
    # Without a shuffle every epoch has the same loss, to the bit.
    with make_loader(dataset, shuffle=False) as loader:
        assert whole.fit(loader, max_epochs=9, patience=2, monitor="loss").stopped_by == "patience"
        for n_steps in (5, 12, 17, 24, 30):
            assert sliced.fit(loader, max_steps=n_steps, patience=2, monitor="loss").stopped_by == "steps"
        assert sliced.fit(loader, max_epochs=9, patience=2, monitor="loss").stopped_by == "patience"
        assert_same(sliced, whole)
        # What it ended does not end the next call at once.
        assert sliced.fit(loader, max_epochs=5, patience=2, monitor="loss").counts.n_epochs == 5


def test_the_last_batch_s_step_ends_its_epoch(dataset: st.Dataset) -> None:
    trainer = make_trainer("accumulated")
    with make_loader(dataset) as loader:
        assert trainer.fit(loader, max_steps=2).counts.n_batches == 10
        counts = trainer.fit(loader, max_steps=3).counts
    assert (counts.n_epochs, counts.n_batches) == (1, EPOCH_BATCHES)


def test_the_sample_rule_is_cut_inside_a_batch(dataset: st.Dataset, tmp_path: Path) -> None:
    trainer = make_trainer("sample")
    with make_loader(dataset) as loader:
        counts = trainer.fit(loader, max_steps=3, checkpoint=tmp_path / "a").counts
        assert (counts.n_epochs, counts.n_batches, counts.n_steps, counts.n_samples) == (0, 0, 3, 3)
        told: list[ResumePoint] = []
        how: dict[str, Any] = {"checkpoint": tmp_path / "a", "resume": "auto", "on_resume": told.append}
        counts = make_trainer("sample").fit(loader, max_steps=25, **how).counts
        assert (told[0].n_batches, told[0].n_batch_samples) == (0, 3)
        assert (counts.n_batches, counts.n_samples) == (1, 25)
    assert lines(tmp_path / "a")[-1]["samples"] == 25


def test_another_stream_begins_the_epoch_anew_and_says_so(dataset: st.Dataset) -> None:
    trainer = make_trainer()
    with make_loader(dataset) as loader, make_loader(dataset, batch_size=10) as other:
        trainer.fit(loader, max_steps=5)
        with pytest.warns(UserWarning, match="epoch 1 was cut short on a stream of other data, or of another order"):
            counts = trainer.fit(other, max_epochs=1).counts
    assert (counts.n_epochs, counts.n_steps) == (1, 5 + 23)


def test_a_run_that_a_signal_stopped_goes_on_without_its_folder_too(dataset: st.Dataset, tmp_path: Path) -> None:
    class Signalled(st.StreamLoader):
        left = 5

        def __iter__(self) -> Any:
            for batch in super().__iter__():
                self.left -= 1
                if not self.left:
                    signal.raise_signal(signal.SIGINT)
                yield batch

    whole, stopped = make_trainer("accumulated"), make_trainer("accumulated")
    with make_loader(dataset) as loader:
        whole.fit(loader, max_epochs=2)
    with Signalled(dataset, batch_size=BATCH_SIZE, memory="8MB", seed=5) as loader:
        with pytest.raises(Interrupted):
            stopped.fit(loader, max_epochs=2, checkpoint=tmp_path / "run")
        stopped.fit(loader, max_epochs=2)
    assert_same(stopped, whole)


def test_the_headspace_after_a_cut_begins_its_own_epoch(dataset: st.Dataset) -> None:
    trainer = make_trainer()
    with make_loader(dataset) as loader, warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(loader, max_steps=5)
        assert headspace(trainer, loader, seconds=0.05).ratio > 0


def test_an_epoch_that_ran_out_of_time_does_not_count_either(dataset: st.Dataset, tmp_path: Path) -> None:
    trainer = make_trainer()
    with make_loader(dataset) as loader:
        stream = TimedStream(loader, lambda: None)
        stream.seconds_left = 0.0
        history = trainer.fit(stream, max_epochs=1, checkpoint=tmp_path / "run")
    assert (history.counts.n_epochs, history.counts.n_batches) == (0, 1)
    assert lines(tmp_path / "run")[-1]["partial"] is True


# From the run's folder ------------------------------------------------------------------------------------------------


def fit(trainer: st.Trainer, dataset: st.Dataset, run: Path, *, killed_after: int | None = None, **how: Any) -> Any:
    options: dict[str, Any] = {
        "max_epochs": 3,
        "checkpoint_every": 5,
        "log_every": 3,
        "patience": 2,
        "monitor": "loss",
    } | how
    loader: Any = make_loader(dataset)
    if killed_after is not None:
        loader = Doomed(dataset, batch_size=BATCH_SIZE, memory="8MB", seed=5)
        loader.left = killed_after
    with loader:
        return trainer.fit(loader, checkpoint=run, resume="auto", progress=False, **options)


@every_rule
def test_slices_add_up_to_the_uncut_run(dataset: st.Dataset, tmp_path: Path, rule: str) -> None:
    whole = make_trainer(rule, schedule=PLATEAU)
    n_steps = fit(whole, dataset, tmp_path / "whole").counts.n_steps
    for cut in range(1, 8):
        fit(make_trainer(rule, schedule=PLATEAU), dataset, tmp_path / "run", max_steps=cut * n_steps // 8)
    last = make_trainer(rule, schedule=PLATEAU)
    fit(last, dataset, tmp_path / "run")
    assert_same(last, whole)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_the_line_of_a_cut_epoch_is_marked_and_stands_until_the_run_goes_on(
    dataset: st.Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with make_loader(dataset) as val:
        fit(make_trainer(), dataset, run, max_steps=5, val=val)
        cut = lines(run)[-1]
        assert (cut["kind"], cut["epoch"], cut["partial"], cut["samples"]) == ("epoch", 1, True, 100)
        assert cut["val_loss"] > 0
        before = (run / "metrics.jsonl").read_bytes()
        assert len(fit(make_trainer(), dataset, run, max_steps=5, val=val)) == 0
        assert (run / "metrics.jsonl").read_bytes() == before, "nothing was left to train"
        fit(make_trainer(), dataset, run, max_steps=7, val=val)
    assert [line["samples"] for line in lines(run) if line.get("partial")] == [140]


@pytest.mark.parametrize("killed_after", [0, 2, 9])
def test_a_run_that_skipped_its_newest_checkpoint_and_was_killed_goes_on(
    dataset: st.Dataset, tmp_path: Path, killed_after: int
) -> None:
    whole = make_trainer()
    fit(whole, dataset, tmp_path / "whole")
    run, away = tmp_path / "run", tmp_path / "away"
    fit(make_trainer(), dataset, run, max_steps=18)
    newest = newest_checkpoint(run).path / "model.safetensors"
    os.rename(newest, away)  # noqa: PTH104
    with pytest.raises(Killed), pytest.warns(UserWarning, match="model.safetensors: is missing"):
        fit(make_trainer(), dataset, run, killed_after=killed_after, log_every=1)
    if newest.parent.exists():
        os.rename(away, newest)  # noqa: PTH104
    last = make_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(last, dataset, run)
    assert_same(last, whole)
    assert lines(run)[-1] == lines(tmp_path / "whole")[-1]
    assert [line for line in lines(run) if line["kind"] == "epoch"] == [
        line for line in lines(tmp_path / "whole") if line["kind"] == "epoch"
    ]


def test_a_newest_checkpoint_without_its_metrics_is_that_of_another_past(dataset: st.Dataset, tmp_path: Path) -> None:
    """As an earlier version left it, which marked nothing."""
    whole = make_trainer()
    fit(whole, dataset, tmp_path / "whole")
    for cut in ("shorter", "inside a line"):
        run = tmp_path / cut
        fit(make_trainer(), dataset, run, max_steps=15)
        n_bytes = newest_checkpoint(run).state["metrics_bytes"]
        older = json.loads((run / "checkpoints" / "00000012" / "state.json").read_bytes())["metrics_bytes"]
        kept = (run / "metrics.jsonl").read_bytes()[:older]
        more = b"" if cut == "shorter" else b" " * (n_bytes - older + 50) + b"\n"
        (run / "metrics.jsonl").write_bytes(kept + more)
        last, told = make_trainer(), list[ResumePoint]()
        fit(last, dataset, run, on_resume=told.append)
        assert told[0].n_batches == 12
        assert "00000015: metrics.jsonl has" in told[0].skipped[0]
        assert_same(last, whole)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: 0 bytes; the checkpoint was made after \d+"):
        fit(make_trainer(), dataset, run, max_epochs=4)


def test_a_checkpoint_that_waits_for_its_name_is_found(dataset: st.Dataset, tmp_path: Path) -> None:
    """A kill between the removal of the one it replaces and its own renaming, where names cannot be exchanged."""
    whole = make_trainer()
    fit(whole, dataset, tmp_path / "whole")
    run = tmp_path / "run"
    fit(make_trainer(), dataset, run, max_steps=15)
    newest = newest_checkpoint(run).path
    newest.rename(newest.with_name(f"{newest.name}.new"))
    (newest / "half").mkdir(parents=True)
    last, told = make_trainer(), list[ResumePoint]()
    fit(last, dataset, run, on_resume=told.append)
    assert told[0].n_batches == 15
    assert_same(last, whole)
    assert lines(run) == lines(tmp_path / "whole")


def test_a_run_that_was_killed_as_its_folder_was_made_begins(dataset: st.Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.0123abcd.tmp").write_bytes(b'{"mo')
    assert fit(make_trainer(), dataset, run, max_epochs=1).counts.n_epochs == 1


def test_what_an_earlier_version_counted_as_an_epoch_is_told_of(dataset: st.Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(make_trainer(), dataset, run, max_steps=5)
    newest = newest_checkpoint(run).path
    text = json.loads((newest / "state.json").read_bytes())
    text["counts"]["n_epochs"] = 1
    training = dict(text["training"]["dict"]) | {"random": None, "metrics": None}
    text["training"]["dict"] = list(map(list, training.items()))
    data = json.dumps(text).encode()
    (newest / "state.json").write_bytes(data)
    manifest = json.loads((newest / "manifest.json").read_bytes())
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newest / "manifest.json").write_bytes(json.dumps(manifest).encode())
    with pytest.warns(UserWarning, match="epoch 1 was cut short by max_steps and counted as one.*last 7 batches"):
        counts = fit(make_trainer(), dataset, run, max_epochs=2).counts
    assert (counts.n_epochs, counts.n_steps) == (2, 5 + EPOCH_BATCHES)


# On the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--update", "sample"), ("--update", "sample", "--weight", "w")])
def test_the_command_in_slices(
    dataset: st.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    words = ["train", str(dataset.path), "--model", "linear", "--epochs", "2", "--batch-size", str(BATCH_SIZE)]
    words += ["--memory", "16MB", "--threads", "1", *options]
    assert main([*words, "--json", "--out", str(tmp_path / "whole")]) == 0
    whole = json.loads(capsys.readouterr().out)
    for n_steps in ("3", "8", "8", "15"):
        assert main([*words, "--out", str(tmp_path / "run"), "--resume", "--max-steps", n_steps]) == 0
    out, err = capsys.readouterr()
    assert "  partial\n" in out
    assert re.search(r"after batch 0 and \d+ samples of the next\n" if options else r"after batch 3\n", err)
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["epochs"], told["last"]["partial"]) == (1 if not options else 0, 1.0)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "and a part of the next" in page
    assert ", partial" in page
    assert main([*words, "--json", "--out", str(tmp_path / "run"), "--resume"]) == 0
    sliced = json.loads(capsys.readouterr().out)
    assert [sliced[name] for name in ("steps", "samples", "loss", "accuracy", "stopped_by")] == [
        whole[name] for name in ("steps", "samples", "loss", "accuracy", "stopped_by")
    ]
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
