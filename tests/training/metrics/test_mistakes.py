"""The samples of the largest losses: found whatever the batches, named by their rows in the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import streamtrain as st
from streamtrain.models.losses import resolve_loss
from streamtrain.training.metrics.mistakes import MOST_MISTAKES, Mistakes, losses_of_samples

pytestmark = pytest.mark.usefixtures("one_thread")

N = 103


class AsItIs(nn.Module):
    """A model that answers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def told(found: Any) -> list[tuple[int, Any, Any]]:
    return [(each["row"], each["true"], each["predicted"]) for each in found.mistakes]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 30, N])
def test_classes_that_were_mistaken_have_their_rows(tmp_path: Path, batch_size: int, shuffle: bool) -> None:
    rng = np.random.default_rng(1)
    rows = {"x": rng.normal(size=(N, 4)).astype("float32"), "y": rng.integers(0, 3, N)}
    dataset = st.ingest(rows, tmp_path / "d.zarr", classes=["ant", "bee", "cow"], block=16 * 12)
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    with st.StreamLoader(dataset, batch_size=batch_size, memory="8MB", shuffle=shuffle) as loader:
        found = trainer.evaluate(loader)
    with torch.no_grad():
        output = trainer.model(torch.from_numpy(rows["x"]))
    losses = F.cross_entropy(output, torch.from_numpy(rows["y"]), reduction="none")
    order = losses.argsort(descending=True)[:MOST_MISTAKES].tolist()
    names = ["ant", "bee", "cow"]
    assert told(found) == [(i, names[rows["y"][i]], names[int(output[i].argmax())]) for i in order]
    assert [each["loss"] for each in found.mistakes] == pytest.approx(losses[order].tolist(), rel=1e-5)


def test_rows_are_those_of_the_dataset_where_blocks_are_left_out(tmp_path: Path) -> None:
    # What cannot be compressed is stored as it is, and any byte of it is damage.
    x = np.random.default_rng(0).random(N, dtype="float32")[:, None] + np.arange(N, dtype="float32")[::-1, None]
    stored = st.ingest({"x": x, "y": np.zeros(N)}, tmp_path / "d.zarr", block=16 * 12)
    shard = stored.shard_path("x", 0)
    data = bytearray(shard.read_bytes())
    data[20] ^= 255
    shard.write_bytes(data)
    dataset = st.open(tmp_path / "d.zarr")
    trainer = st.Trainer(AsItIs(), loss="l1", device="cpu")
    with st.StreamLoader(dataset, batch_size=5, memory="8MB", on_bad_block="quarantine") as loader:
        with pytest.warns(UserWarning, match="left out: block 0 of field x"):
            found = trainer.evaluate(loader)
        start = loader.quarantined[0].samples[1]
    assert told(found) == [(i, 0.0, float(x[i, 0])) for i in range(start, start + MOST_MISTAKES)]


def test_a_regression_has_them_in_the_units_of_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = {"x": rng.normal(size=(N, 2)).astype("float32"), "y": rng.normal(5e4, 1e4, N)}
    dataset = st.ingest(rows, tmp_path / "d.zarr")
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", normalize_target="auto", device="cpu")
    trainer.fit(dataset, max_epochs=1, batch_size=20)
    found = trainer.evaluate(dataset)
    predicted = trainer.predict(dataset)
    order = np.abs(predicted - rows["y"]).argsort()[::-1][:MOST_MISTAKES].tolist()
    assert [row for row, _, _ in told(found)] == order
    assert [true for _, true, _ in told(found)] == rows["y"][order].tolist()
    assert [value for _, _, value in told(found)] == pytest.approx(predicted[order].tolist(), rel=1e-5)


def test_labels_are_told_by_their_names_and_what_a_loss_does_not_tell_is_left_out(tmp_path: Path) -> None:
    x = np.array([[1, 1, -1], [-1, -1, -1], [5, 5, 5]], dtype="float32")
    dataset = st.ingest(
        {"x": x, "y": np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]], dtype="float32")}, tmp_path / "d.zarr"
    )
    found = st.Trainer(AsItIs(), loss="bce_with_logits", device="cpu").evaluate(dataset)
    assert told(found) == [(2, ["1", "2"], ["0", "1", "2"]), (1, ["0"], []), (0, ["0", "1"], ["0", "1"])]
    mean = st.Trainer(AsItIs(), loss=lambda output, target: (output - target.float()).abs().mean(), device="cpu")
    assert mean.evaluate(dataset).mistakes == ()


def test_equal_losses_keep_the_first_rows_and_nan_is_the_largest() -> None:
    losses = torch.tensor([1.0, 2.0, float("nan"), *[2.0] * 12])
    kept, shares = Mistakes(), [Mistakes(), Mistakes()]
    for i, part in enumerate(losses.split(4)):
        some = slice(4 * i, 4 * i + len(part))
        for mistakes in (kept, shares[i % 2]):
            zeros = torch.zeros(len(part), 1)
            mistakes.add(part, zeros, zeros, lambda some=some: range(some.start, some.stop))
    shares[0].merge(shares[1])
    facts = [each.facts(resolve_loss("mse"), lambda output: output, None) for each in (kept, shares[0])]
    assert [each["row"] for each in facts[0]] == [2, 1, *range(3, 11)]
    assert facts[0] == facts[1]


def test_what_is_ignored_is_no_mistake() -> None:
    loss = resolve_loss("cross_entropy", ignore_index=2)
    output, target = torch.zeros(3, 2), torch.tensor([0, 2, 1])
    *_, each = loss.total_and_each(output, target)
    found = losses_of_samples(each, loss, target)
    assert found is not None
    assert found.isfinite().tolist() == [True, False, True]
    kept = Mistakes()
    kept.add(found, output, target, lambda: range(3))
    assert [row["row"] for row in kept.facts(loss, lambda output: output, None)] == [0, 2]
    assert losses_of_samples(torch.zeros(()), loss, target) is None
    assert losses_of_samples(None, loss, target) is None


@pytest.mark.parametrize(("targets", "outputs"), [((4, 4, 4), (4, 4, 4)), ((), (70_000,))])
def test_of_large_samples_only_row_and_loss_are_kept(targets: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    kept = Mistakes()
    kept.add(torch.tensor([1.0, 2.0]), torch.zeros(2, *outputs), torch.zeros(2, *targets), lambda: range(2))
    assert kept.facts(resolve_loss("mse"), lambda output: output, None) == [
        {"row": 1, "loss": 2.0},
        {"row": 0, "loss": 1.0},
    ]
    assert sum(tensor.numel() for _, _, *tensors in kept._kept for tensor in tensors) == 0
