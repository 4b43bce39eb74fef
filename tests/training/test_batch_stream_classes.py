"""A label that the loss ignores is not a class: it needs no output and counts in no figure, by any rule or command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as hs
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.comparison.compare import compare
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.training.batch_stream import class_counts

N_CLASSES = 3


def rows(ignored: int, share: float = 0.3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, N_CLASSES, 60)
    return np.eye(N_CLASSES, 4)[y].astype("f4"), np.where(rng.random(60) < share, ignored, y)


def make(path: Path, ignored: int, *, name: str = "y", **options: Any) -> st.Dataset:
    x, y = rows(ignored)
    return st.ingest({"x": x, name: y}, path, block="1KB", **options)


def loader(data: st.Dataset, batch_size: int = 16) -> st.StreamLoader:
    return st.StreamLoader(data, batch_size=batch_size, memory="16MB", seed=0)


def trainer(ignored: int, n_outputs: int = N_CLASSES, **options: Any) -> st.Trainer:
    torch.manual_seed(0)
    kind = options.pop("kind", nn.CrossEntropyLoss)
    end = [nn.LogSoftmax(1)] if kind is nn.NLLLoss else []
    model = nn.Sequential(nn.Linear(4, n_outputs), *end)
    return st.Trainer(model, loss=kind(ignore_index=ignored, **options.pop("loss", {})), device="cpu", **options)


def figures(trained: st.Trainer, x: Any, y: Any, ignored: int) -> tuple[float, float]:
    with torch.no_grad():
        output, target = trained.model(torch.from_numpy(x)), torch.from_numpy(y)
        kept = target != ignored
        return float(trained.loss.mean(output, target)), float((output.argmax(1) == target)[kept].double().mean())


@pytest.mark.parametrize("ignored", [255, 3, 2, 0, -100])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("update", ["sample", "batch", "epoch"])
def test_what_is_ignored_needs_no_output_and_counts_in_no_figure(
    tmp_path: Path, ignored: int, kind: type[nn.Module], update: str
) -> None:
    name = "y" if ignored >= 0 else "labels"
    data = make(tmp_path / "d.zarr", ignored, name=name)
    # Of 0, 1 and 2 with 2 ignored, two outputs are enough.
    for n_outputs in {N_CLASSES, 2 if ignored == 2 else N_CLASSES}:
        trained = trainer(ignored, n_outputs, kind=kind, update=update, target=name)
        with loader(data) as batches:
            history = trained.fit(batches, max_epochs=2, val=batches, progress=False)
            found = trained.evaluate(batches)
        x, y = rows(ignored)
        loss, score = figures(trained, x, y, ignored)
        assert (found.loss, found.score) == (pytest.approx(loss, abs=1e-6), pytest.approx(score, abs=1e-9))
        assert history.last is not None
        assert history.last.val == found


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ({}, {"update": "sample", "sample_path": "plain", "optimizer": "sgd"}),
        ({}, {"update": "sample", "sample_path": "fast", "optimizer": "sgd"}),
        ({"reduction": "sum"}, {"update": "sample", "optimizer": "sgd"}),
        ({"reduction": "none"}, {}),
        ({"label_smoothing": 0.1}, {}),
        ({"weight": torch.tensor([1.0, 2.0, 3.0])}, {}),
        ({}, {"update": "epoch", "optimizer": "lbfgs"}),
    ],
)
def test_every_path_and_every_option_of_the_loss(tmp_path: Path, loss: dict[str, Any], options: dict[str, Any]) -> None:
    with loader(make(tmp_path / "d.zarr", 255)) as batches:
        trained = trainer(255, loss=loss, **options)
        trained.fit(batches, max_epochs=1, progress=False)
        found = trained.evaluate(batches)
    expected = figures(trained, *rows(255), 255)
    assert (found.loss, found.score) == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-9))


def test_a_batch_of_nothing_but_the_ignored(tmp_path: Path) -> None:
    x, y = rows(255)
    y[:32] = 255
    data = st.ingest({"x": x, "y": y}, tmp_path / "d.zarr")
    for update, batch_size in itertools.product(["sample", "batch", "epoch"], [1, 16]):
        with st.StreamLoader(data, batch_size=batch_size, memory="16MB", shuffle=False) as batches:
            trained = trainer(255, update=update)
            assert np.isfinite(trained.fit(batches, max_epochs=1, progress=False).last.train.loss)  # type: ignore[union-attr]


@pytest.mark.parametrize(("n_outputs", "fits"), [(2, False), (3, True), (21, True), (256, True), (257, False)])
def test_the_outputs_that_fit(tmp_path: Path, n_outputs: int, fits: bool) -> None:
    with loader(make(tmp_path / "d.zarr", 255)) as batches:
        if fits:
            trainer(255, n_outputs).fit(batches, max_epochs=1, progress=False)
        else:
            message = f"{n_outputs} outputs for 3 classes, not counting 255, which the loss ignores.*in 3 outputs"
            with pytest.raises(UsageError, match=f"(?s){message}"):
                trainer(255, n_outputs).fit(batches, max_epochs=1, progress=False)


def test_another_label_past_the_classes_is_still_refused(tmp_path: Path) -> None:
    with (
        loader(make(tmp_path / "d.zarr", 255)) as batches,
        pytest.raises(UsageError, match="3 outputs for 256 classes"),
    ):
        trainer(254).fit(batches, max_epochs=1, progress=False)
    with loader(make(tmp_path / "e.zarr", 1)) as batches, pytest.raises(UsageError, match="2 outputs for 3 classes\\."):
        trainer(1, 2).fit(batches, max_epochs=1, progress=False)


def test_named_classes_of_which_the_last_is_void(tmp_path: Path) -> None:
    data = make(tmp_path / "d.zarr", 3, classes=["a", "b", "c", "void"])
    for n_outputs in (3, 4):
        with loader(data) as batches:
            trainer(3, n_outputs).fit(batches, max_epochs=1, progress=False)


def test_a_comparison(tmp_path: Path) -> None:
    settings = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "memory": "32MB", "batch_size": 16}
    data = make(tmp_path / "d.zarr", 255)
    found = compare(nn.Linear(4, 3), data, **settings, loss=nn.CrossEntropyLoss(ignore_index=255))
    assert np.isfinite(next(iter(found)).last.train.loss)  # type: ignore[union-attr]


def write_model(folder: Path) -> str:
    (folder / "net.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 3))\n")
    return f"{folder}/net.py:make"


@pytest.mark.parametrize("ignored", [255, 2])
def test_a_run_keeps_what_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str], ignored: int) -> None:
    data = make(tmp_path / "d.zarr", ignored)
    trained = trainer(ignored)
    with loader(data) as batches:
        trained.fit(batches, max_epochs=1, checkpoint=tmp_path / "run", progress=False)
        found = trained.evaluate(batches)
    assert json.loads((tmp_path / "run/config.json").read_text())["ignore_index"] == ignored
    words = ["evaluate", str(tmp_path / "run"), str(data.path), "--model", write_model(tmp_path), "--json"]
    assert main([*words, "--memory", "16MB", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["loss"], told["accuracy"]) == (pytest.approx(found.loss, rel=1e-6), found.score)
    with loader(data) as batches, pytest.raises((CheckpointError, UsageError), match=r"ignore_index|outputs for"):
        trainer(-100).fit(batches, max_epochs=2, checkpoint=tmp_path / "run", resume="auto", progress=False)
    with loader(data) as batches:
        trainer(ignored).fit(batches, max_epochs=2, checkpoint=tmp_path / "run", resume="auto", progress=False)


def test_a_run_that_ignores_nothing_is_described_as_before(tmp_path: Path) -> None:
    with loader(make(tmp_path / "d.zarr", 1)) as batches:
        assert "ignore_index" not in trainer(-100).describe(batches)


@given(
    labels=hs.lists(hs.integers(0, 6), min_size=1, max_size=12),
    ignored=hs.sampled_from([-100, 0, 3, 5, 6, 255]),
    extra=hs.booleans(),
)
def test_the_count_of_classes(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], ignored: int, extra: bool
) -> None:
    y = np.array([*labels, *([ignored] if extra and ignored >= 0 else [])])
    data = st.ingest({"y": y}, tmp_path_factory.mktemp("d") / "d.zarr")
    found = class_counts(data, "y", resolve_loss(nn.CrossEntropyLoss(ignore_index=ignored)))
    kept = y[y != ignored]
    assert found is not None
    # Every class that counts has an output, and never is one asked for that no label needs.
    assert found.start == (max(kept, default=0) + 1 if y.max() == ignored else y.max() + 1)
    assert found.stop - 1 == y.max() + 1


class Unknown:
    """Data that does not know its labels."""

    n_classes = 4


def test_data_that_knows_the_number_alone() -> None:
    ask: Callable[..., Any] = class_counts
    assert ask(Unknown(), "y", resolve_loss("cross_entropy")) == range(4, 5)
    assert ask(Unknown(), "y", resolve_loss(nn.CrossEntropyLoss(ignore_index=3))) == range(1, 5)
    assert ask(Unknown(), "z", resolve_loss("cross_entropy")) is None
