"""A run that is stopped and resumed equals the run that was never stopped, bit for bit: weights and metrics."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doomed import Doomed, Killed
from torch import nn

import streamtrain as st
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.system.signals import Interrupted
from streamtrain.training.run.checkpoint import newest_checkpoint
from streamtrain.training.run.run_state import ResumePoint

N, N_FEATURES, BATCH_SIZE = 230, 6, 20
EPOCH_BATCHES = 12
OPTIMIZERS: dict[str, dict[str, Any]] = {"momentum": {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}, "adam": {}}
TIMES = ("seconds", "samples_per_second", "stall_fraction")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, N_FEATURES)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)
    return st.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("data") / "d.zarr", block=6 * N_FEATURES * 4)


def make_trainer(update: str, optimizer: str, **options: Any) -> st.Trainer:
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(8) if update != "sample" else nn.Identity()
    model = nn.Sequential(nn.Linear(N_FEATURES, 8), norm, nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return st.Trainer(model, loss="cross_entropy", update=update, normalize="auto", **OPTIMIZERS[optimizer], **options)


def make_loader(dataset: st.Dataset, update: str, memory: str = "16MB") -> st.StreamLoader:
    return st.StreamLoader(dataset, batch_size=BATCH_SIZE, memory=memory, seed=5, shuffle=update != "epoch")


def weights(trainer: st.Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if not name.endswith(TIMES)} for line in lines]


def fit(trainer: st.Trainer, loader: st.StreamLoader, run: Path, every: int = 4, **how: Any) -> Any:
    return trainer.fit(
        loader, max_epochs=3, checkpoint=run, checkpoint_every=every, resume="auto", log_every=3, progress=False, **how
    )


@pytest.mark.filterwarnings("ignore:BatchNorm")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_a_killed_run_goes_on_bit_for_bit(dataset: st.Dataset, tmp_path: Path, update: str, optimizer: str) -> None:
    whole = make_trainer(update, optimizer)
    with make_loader(dataset, update) as loader:
        fit(whole, loader, tmp_path / "whole")
    for kill_after in (2, 7, 12, 13, 24, 33):
        run = tmp_path / str(kill_after)
        doomed = Doomed(dataset, batch_size=BATCH_SIZE, memory="16MB", seed=5, shuffle=update != "epoch")
        doomed.left = kill_after
        with doomed, pytest.raises(Killed):
            fit(make_trainer(update, optimizer), doomed, run)
        resumed = make_trainer(update, optimizer)
        told: list[ResumePoint] = []
        # Another budget, of the same lanes.
        with make_loader(dataset, update, "17MB") as loader:
            history = fit(resumed, loader, run, on_resume=told.append)
        expected = max(kill_after // 4 * 4, kill_after // EPOCH_BATCHES * EPOCH_BATCHES)
        assert history.resumed_from_batch == told[0].n_batches == expected
        assert metrics(run) == metrics(tmp_path / "whole")
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(resumed)[name], tensor), f"{name} after a kill at {kill_after}"
        assert len(list((run / "checkpoints").iterdir())) == 2, "the newest, and the one before it"


@pytest.mark.filterwarnings("ignore:BatchNorm")
@pytest.mark.parametrize("dtype", ["float64", "compensated"])
def test_a_run_killed_inside_a_window_of_accumulated_batches_goes_on_bit_for_bit(
    dataset: st.Dataset, tmp_path: Path, dtype: str
) -> None:
    options = {"accumulate_grad_batches": 5, "grad_sum_dtype": dtype}
    whole = make_trainer("batch", "adam", **options)
    with make_loader(dataset, "batch") as loader:
        history = fit(whole, loader, tmp_path / "whole")
    assert history.counts.n_steps == 3 * 3, "windows of 5, 5 and 2 batches"
    # Saved after 4 and 8 batches, inside the first and the second window, and at 28, inside the third epoch's first.
    for kill_after in (4, 9, 30):
        run = tmp_path / str(kill_after)
        doomed = Doomed(dataset, batch_size=BATCH_SIZE, memory="16MB", seed=5)
        doomed.left = kill_after
        with doomed, pytest.raises(Killed):
            fit(make_trainer("batch", "adam", **options), doomed, run)
        resumed = make_trainer("batch", "adam", **options)
        with make_loader(dataset, "batch") as loader:
            assert fit(resumed, loader, run).resumed_from_batch == kill_after // 4 * 4
        assert metrics(run) == metrics(tmp_path / "whole")
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(resumed)[name], tensor), f"{name} after a kill at {kill_after}"


def test_a_signal_ends_the_run_after_its_step_saved(dataset: st.Dataset, tmp_path: Path) -> None:
    whole = make_trainer("batch", "adam")
    with make_loader(dataset, "batch") as loader:
        fit(whole, loader, tmp_path / "whole")

    class Signalled(st.StreamLoader):
        def __iter__(self) -> Any:
            for i, batch in enumerate(super().__iter__()):
                if i == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    run = tmp_path / "run"
    with (
        Signalled(dataset, batch_size=BATCH_SIZE, memory="16MB", seed=5) as loader,
        pytest.raises(Interrupted, match=r"SIGTERM; saved .*00000006") as caught,
    ):
        fit(make_trainer("batch", "adam"), loader, run, every=1000)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = make_trainer("batch", "adam")
    with make_loader(dataset, "batch") as loader:
        fit(resumed, loader, run)
    assert metrics(run) == metrics(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"update": "epoch", "optimizer": "sgd"},
        {"update": "epoch", "optimizer": "lbfgs"},
        {"update": "epoch", "optimizer": "cg"},
        {"accumulate_grad_batches": 5},
    ],
)
def test_what_a_signal_saves_has_the_sum_so_far_also_for_the_trainer_it_stopped(
    dataset: st.Dataset, tmp_path: Path, options: dict[str, Any], is_same: bool
) -> None:
    class Signalled(st.StreamLoader):
        n_left = EPOCH_BATCHES + 5

        def __iter__(self) -> Any:
            for batch in super().__iter__():
                self.n_left -= 1
                if not self.n_left:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    def make() -> st.Trainer:
        torch.manual_seed(3)
        return st.Trainer(nn.Linear(N_FEATURES, 3), loss="cross_entropy", **options)

    whole, stopped = make(), make()
    how = {"batch_size": BATCH_SIZE, "memory": "16MB", "seed": 5, "shuffle": "update" not in options}
    with st.StreamLoader(dataset, **how) as loader:
        fit(whole, loader, tmp_path / "whole")
    run = tmp_path / "run"
    with Signalled(dataset, **how) as loader, pytest.raises(Interrupted, match=r"SIGINT; saved .*00000017"):
        fit(stopped, loader, run, every=1000)
    resumed = stopped if is_same else make()
    with st.StreamLoader(dataset, **how) as loader:
        assert fit(resumed, loader, run).resumed_from_batch == EPOCH_BATCHES + 5
    assert metrics(run) == metrics(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_what_differs_is_named_and_what_may_differ_too(dataset: st.Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with make_loader(dataset, "batch") as loader:
        fit(make_trainer("batch", "adam"), loader, run)
        other = st.Trainer(make_trainer("batch", "adam").model, loss="cross_entropy", optimizer="sgd", normalize="auto")
        with pytest.raises(CheckpointError, match="another run") as caught:
            fit(other, loader, run)
    assert caught.value.exit_code == 6
    message = str(caught.value)
    for words in ("optimizer.name: 'Adam' there, 'SGD' here", "optimizer.lr: 0.001 there, 0.1 here", "Free to change"):
        assert words in message
    with (
        st.StreamLoader(dataset, batch_size=BATCH_SIZE + 1, memory="16MB", seed=6) as loader,
        pytest.raises(CheckpointError, match=r"batch_size: 20 there, 21 here\n(.*\n)?  seed: 5 there, 6 here"),
    ):
        fit(make_trainer("batch", "adam"), loader, run)


def test_damaged_checkpoints_are_skipped_and_named(dataset: st.Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with make_loader(dataset, "batch") as loader:
        fit(make_trainer("batch", "adam"), loader, run)
        whole = metrics(run)
        newest = newest_checkpoint(run).path
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
        told: list[ResumePoint] = []
        fit(make_trainer("batch", "adam"), loader, run, on_resume=told.append)
        assert told[0].n_batches == 32
        assert "model.safetensors: is not as it was written" in told[0].skipped[0]
        assert metrics(run) == whole
        for checkpoint in (run / "checkpoints").iterdir():
            (checkpoint / "manifest.json").unlink()
        with pytest.warns(UserWarning, match="manifest.json is missing"):
            history = fit(make_trainer("batch", "adam"), loader, run)
        assert history.resumed_from_batch == 0
        assert metrics(run) == whole, "afresh"


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(dataset: st.Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with make_loader(dataset, "batch") as loader:
        fit(make_trainer("batch", "adam"), loader, run)
        for state in run.glob("checkpoints/*/state.json"):
            state.write_bytes(state.read_bytes()[:-1])
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match="no whole checkpoint to resume from") as caught:
            fit(make_trainer("batch", "adam"), loader, run)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert "state.json: has " in (caught.value.why or "")
        assert f"remove {run / 'checkpoints'} to start afresh" in str(caught.value.fix)
        shutil.rmtree(run / "checkpoints")
        assert fit(make_trainer("batch", "adam"), loader, run).counts.n_epochs == 3


def test_a_complete_run_has_nothing_left(dataset: st.Dataset, tmp_path: Path) -> None:
    with make_loader(dataset, "batch") as loader:
        fit(make_trainer("batch", "adam"), loader, tmp_path / "run")
        history = fit(make_trainer("batch", "adam"), loader, tmp_path / "run")
    assert (len(history), history.resumed_from_batch, history.counts.n_epochs) == (0, 36, 3)


def test_resume_needs_a_folder(dataset: st.Dataset) -> None:
    with make_loader(dataset, "batch") as loader, pytest.raises(UsageError, match="resume without checkpoint"):
        make_trainer("batch", "adam").fit(loader, max_epochs=1, resume="auto")


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_checkpoint_every_counts_batches(dataset: st.Dataset, tmp_path: Path, every: Any) -> None:
    with make_loader(dataset, "batch") as loader, pytest.raises(UsageError, match="at least 1"):
        fit(make_trainer("batch", "adam"), loader, tmp_path / "run", every=every)
