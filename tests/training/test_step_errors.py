"""The batch size that fits where a step did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import DeviceError, DivergedError, Fix
from streamtrain.loader.batch import tensor_bytes
from streamtrain.training.step_errors import explain_device, failed_allocation_bytes, suggest_batch_size


@pytest.mark.parametrize(("room_gb", "needed_gb", "expected"), [(3, 4, 128), (1, 8, 32), (0, 8, 0), (-1, 8, 0)])
def test_the_batch_size_is_at_most_half_and_less_where_the_room_is(room_gb, needed_gb, expected):
    assert suggest_batch_size(256, room_bytes=room_gb * 10**9, needed_bytes=needed_gb * 10**9) == expected


@pytest.mark.parametrize(
    ("message", "n_bytes"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...", 1_610_612_736),
        ("CUDA out of memory. Tried to allocate 512 bytes.", 512),
        ("out of memory", 0),
    ],
)
def test_the_failed_allocation_is_read_from_torchs_message(message, n_bytes):
    assert failed_allocation_bytes(RuntimeError(message)) == n_bytes


def test_a_sparse_gradient_and_momentum_are_counted_too() -> None:
    model = nn.Embedding(1000, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.tensor([3, 5])).sum().backward()
    optimizer.step()
    cpu = torch.device("cpu")
    # 16,000 bytes of weights; two rows of 4 numbers, and their places, in the gradient and in the momentum.
    with (
        pytest.raises(DeviceError, match=r"Besides the 16\.1 KB that the model and its optimizer keep"),
        explain_device(cpu, batch_size=8, optimizer=optimizer),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
def test_a_tensor_of_any_layout_has_bytes(layout: torch.layout) -> None:
    dense = torch.eye(100)
    assert tensor_bytes([dense, dense]) == 80_000
    assert 100 * (4 + 8) <= tensor_bytes([dense.to_sparse(layout=layout)]) <= 100 * (4 + 16) + 8


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    return st.ingest({"x": x, "y": x[:, 0]}, tmp_path_factory.mktemp("data") / "d", progress=False)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({}, "lr=0.1, or normalize='auto', or normalize_target='auto', or clip_grad_norm=1.0"),
        ({"lr": 0.9}, "lr=0.09, or normalize='auto', or normalize_target='auto', or clip_grad_norm=1.0"),
        ({"normalize": "auto"}, "lr=0.1, or normalize_target='auto', or clip_grad_norm=1.0"),
        ({"normalize": "auto", "normalize_target": "auto"}, "lr=0.1, or clip_grad_norm=1.0"),
        ({"normalize": "auto", "normalize_target": "auto", "clip_grad_value": 1e30}, "lr=0.1"),
        ({"optimizer": "adam", "clip_grad_norm": 1.0}, "lr=0.001, or normalize='auto', or normalize_target='auto'"),
        ({"loss": "l1"}, "lr=0.1, or normalize='auto', or normalize_target='auto', or clip_grad_norm=1.0"),
    ],
)
def test_a_divergence_names_what_applies(lines: st.Dataset, options: dict[str, object], fix: str) -> None:
    how = {"loss": "mse", "optimizer": "sgd", "lr": 1e30, "device": "cpu", **options}
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    with pytest.raises(DivergedError) as caught:
        st.Trainer(model, **how).fit(lines, max_epochs=40, batch_size=20, memory="16MB", progress=False)
    assert isinstance(caught.value.fix, Fix)
    assert caught.value.fix == f"a lower learning rate, {fix}"
    assert "diverged at a learning rate of" in str(caught.value.why)


def test_values_that_are_not_finite_are_no_matter_of_the_rate(lines: st.Dataset) -> None:
    loader = st.StreamLoader(
        lines, batch_size=20, memory="16MB", transform=lambda batch: {"x": batch.x / 0, "y": batch.y}
    )
    with loader, pytest.raises(DivergedError) as caught:
        st.Trainer(nn.Linear(4, 1), loss="mse", device="cpu").fit(loader, max_epochs=1, progress=False)
    assert caught.value.fix == "leave these samples out, or mend their values where they are made"
    assert str(caught.value.why).startswith("These samples hold values that are not finite: ")


@pytest.mark.parametrize("batch_size", [60, 3])
def test_missing_values_of_the_data_are_counted_by_field(lines: st.Dataset, tmp_path: Path, batch_size: int) -> None:
    x = lines[:]["x"].copy()
    x[40:43, 1] = np.nan
    data = st.ingest({"x": x, "y": lines[:]["y"]}, tmp_path / "d", nan="keep", progress=False)
    trainer = st.Trainer(nn.Linear(4, 1), loss="mse", device="cpu")
    with pytest.raises(DivergedError) as caught:
        trainer.fit(data, max_epochs=1, batch_size=batch_size, memory="16MB", progress=False)
    assert str(caught.value.why).startswith("Field x holds 3 NaN values")
    assert "torch.nan_to_num" in str(caught.value.fix)


def test_a_model_may_take_missing_values(lines: st.Dataset, tmp_path: Path) -> None:
    class Filling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.nan_to_num())

    x = np.where(lines[:]["x"] > 1, np.nan, lines[:]["x"])
    data = st.ingest({"x": x, "y": lines[:]["y"]}, tmp_path / "d", nan="keep", progress=False)
    trainer = st.Trainer(Filling(4, 1), loss="mse", device="cpu")
    assert np.isfinite(trainer.fit(data, max_epochs=1, batch_size=9, memory="16MB", progress=False)[-1].train.loss)
