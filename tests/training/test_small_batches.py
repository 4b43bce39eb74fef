"""Batches too small for a layer over the batch: refused before the first step, wherever they are known beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st_
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import UsageError
from streamtrain.training.batch_stream import last_batch

pytestmark = [
    pytest.mark.usefixtures("one_thread", "in_own_folder"),
    pytest.mark.filterwarnings("ignore:BatchNorm1d under"),
]

N = 41  # in batches of 10, one is left over


def ingested(folder: Path, n: int) -> st.Dataset:
    rng = np.random.default_rng(0)
    source = {"x": rng.normal(size=(n, 4)).astype("f4"), "y": np.arange(n) % 3}
    return st.ingest(source, folder / f"{n}.zarr", block=64, progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[int, st.Dataset]:
    folder = tmp_path_factory.mktemp("small")
    return {n: ingested(folder, n) for n in (1, 40, N)}


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(x).squeeze()
        return found


def net(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))


def batch_norm() -> nn.Module:
    return net(nn.BatchNorm1d(8))


FAILING: list[Callable[[], nn.Module]] = [batch_norm, lambda: net(nn.GroupNorm(8, 8)), Squeezed]
WORKING: list[Callable[[], nn.Module]] = [
    lambda: net(nn.LayerNorm(8)),
    lambda: net(nn.GroupNorm(4, 8)),
    lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(6, 3)
    ),
]


def fit(
    model: nn.Module, train: st.Dataset, val: st.Dataset | None = None, *, batch_size: int = 10, **options: Any
) -> tuple[int, int]:
    trainer = st.Trainer(model, loss="cross_entropy", device="cpu", **options)
    how: dict[str, Any] = {"max_epochs": 1, "batch_size": batch_size, "memory": "16MB", "progress": False}
    trainer.fit(train, val=val, checkpoint=Path(f"run-{len(train)}-{batch_size}"), **how)
    return trainer.counts.n_steps, trainer.counts.n_samples


@pytest.mark.parametrize("make", FAILING)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"update": "epoch", "optimizer": "sgd"},
        {"accumulate_grad_batches": 2},
    ],
)
def test_a_last_batch_of_one_is_refused_before_the_first_step(
    data: dict[int, st.Dataset], make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        UsageError, match=r"cannot train on a batch of 1 sample.*last of a pass: 41 samples in batches"
    ) as e:
        fit(model, data[N], **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(Path().glob("run*")) == []
    assert e.value.fix is not None
    assert ("drop_last=True" in e.value.fix) == (options.get("update") != "epoch")
    size = e.value.fix.argument("batch_size").value  # type: ignore[attr-defined]
    assert fit(model, data[N], batch_size=size, **options)[1] == N, "the remedy works"


@pytest.mark.parametrize("make", [*FAILING, *WORKING])
def test_what_can_work_does(data: dict[int, st.Dataset], make: Callable[[], nn.Module]) -> None:
    assert fit(make(), data[40]) == (4, 40)
    trainer = st.Trainer(make(), loss="cross_entropy", device="cpu")
    with st.StreamLoader(data[N], batch_size=10, memory="16MB", drop_last=True) as loader:
        assert trainer.fit(loader, max_epochs=2, progress=False).counts.n_steps == 8
    with st.StreamLoader(data[N], batch_size=10, memory="16MB") as loader, warnings.catch_warnings():
        cut = st.Trainer(make(), loss="cross_entropy", device="cpu")
        warnings.simplefilter("ignore")
        assert cut.fit(loader, max_steps=3, progress=False).counts.n_steps == 3, "it never comes to the last batch"


@pytest.mark.parametrize("make", WORKING)
def test_layers_that_need_no_more_than_one_sample_train_on_it(
    data: dict[int, st.Dataset], make: Callable[[], nn.Module]
) -> None:
    assert fit(make(), data[N]) == (5, N)
    assert fit(make(), data[N], update="sample", batch_size=20)[0] == N


def test_where_every_batch_has_one_sample_that_is_the_reason(data: dict[int, st.Dataset]) -> None:
    with pytest.raises(
        UsageError, match=r"update='sample' steps on one sample\. Fix: update='batch', or a model without"
    ):
        fit(batch_norm(), data[N], update="sample")
    narrow = nn.Sequential(batch_norm(), nn.Linear(3, 1))
    for model, n, size in ((batch_norm(), N, 1), (narrow, 1, 10)):
        with pytest.raises(
            UsageError, match=r"1 sample: Expected more.*first batch has no more\. Fix: batches of more"
        ):
            fit(model, data[n], batch_size=size)
    with pytest.raises(UsageError, match="does not fit the data"):
        fit(nn.Linear(5, 1), data[1])


def test_what_is_measured_on_one_sample_is_refused_before_the_first_epoch(data: dict[int, st.Dataset]) -> None:
    without_averages = net(nn.BatchNorm1d(8, track_running_stats=False))
    for model in (without_averages, net(nn.GroupNorm(8, 8))):
        with pytest.raises(UsageError, match="cannot be measured on a batch of 1 sample"):
            fit(model, data[40], data[N])
        assert list(Path().glob("run*")) == []
        trainer = st.Trainer(model, loss="cross_entropy", device="cpu")
        with (
            st.StreamLoader(data[N], batch_size=10, memory="16MB", shuffle=False) as loader,
            pytest.raises(UsageError, match="cannot be measured on a batch of 1 sample"),
        ):
            trainer.evaluate(loader)
    assert fit(batch_norm(), data[40], data[N]) == (4, 40), "its averages are taken there"
    for n in (1, N):
        assert np.isfinite(st.Trainer(batch_norm(), loss="cross_entropy", device="cpu").evaluate(data[n]).loss)


def test_a_comparison_is_refused_before_its_first_run(data: dict[int, st.Dataset]) -> None:
    told: list[object] = []
    how: dict[str, Any] = {"max_epochs": 1, "batch_size": 10, "memory": "16MB", "optimizers": ("sgd",)}
    for rules in (("epoch",), ("batch",)):
        with pytest.raises(UsageError, match=r"It is the last of a pass.*Fix: batch_size=9, or a model"):
            st.compare(batch_norm(), data[N], rules=rules, on_point=lambda *_: told.append(1), **how)
    group = net(nn.GroupNorm(8, 8))
    with pytest.raises(UsageError, match="cannot be measured on a batch of 1"):
        st.compare(group, data[40], val=data[N], rules=("batch",), on_point=lambda *_: told.append(1), **how)
    assert told == []
    assert len(st.compare(batch_norm(), data[40], rules=("batch",), **how)) == 1


def test_a_batch_that_damage_leaves_one_sample_is_refused_by_name(tmp_path: Path) -> None:
    x = np.arange(160, dtype="f4").reshape(40, 4)
    path = tmp_path / "d.zarr"
    st.ingest({"x": x, "y": np.arange(40) % 3}, path, block=3 * (16 + 8), codec="none", progress=False)
    # Samples 12 to 23 are lost: of the second batch of 11, one is left.
    file = next(f for f in path.rglob("*") if f.is_file() and x[12].tobytes() in f.read_bytes())
    content = bytearray(file.read_bytes())
    for first in range(12, 24, 3):
        content[content.find(x[first].tobytes())] ^= 255
    file.write_bytes(content)
    trainer = st.Trainer(batch_norm(), loss="cross_entropy", device="cpu")
    how: dict[str, Any] = {"memory": "16MB", "shuffle": False, "on_bad_block": "quarantine"}
    with (
        st.StreamLoader(st.open(path), batch_size=11, **how) as loader,
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UsageError, match=r"cannot train on a batch of 1 sample.*Blocks of the dataset are left out"),
    ):
        trainer.fit(loader, max_epochs=2, progress=False)
    assert trainer.counts.n_steps == 1


def test_the_command_line_says_it_too(data: dict[int, st.Dataset], capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, n_outputs):\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, n_outputs))\n"
    )
    words = [
        "train",
        str(data[N].path),
        "--model",
        "net.py:build",
        "--batch-size",
        "10",
        "--memory",
        "16MB",
        "--out",
        "r",
    ]
    assert main([*words, "--epochs", "1"]) == 2
    assert "Fix: --drop-last, or --batch-size 9, or a model" in capsys.readouterr().err
    assert not Path("r").exists()
    assert main([*words, "--epochs", "1", "--drop-last"]) == 0
    assert main(["evaluate", "r", str(data[1].path), "--model", "net.py:build"]) == 0


@given(n_samples=st_.integers(1, 300), batch_size=st_.integers(1, 320))
def test_a_batch_size_that_is_named_leaves_no_batch_as_small(n_samples: int, batch_size: int) -> None:
    found = last_batch(n_samples, batch_size)
    n_last = n_samples % batch_size
    assert (found is None) == (n_last == 0 or n_samples < batch_size)
    if found is not None:
        size = found.fix.argument("batch_size").value  # type: ignore[attr-defined]
        assert found.n_samples == n_last
        fits = [each for each in range(2, n_samples + 1) if not 0 < n_samples % each <= n_last]
        assert size == min(fits, key=lambda each: abs(each - batch_size))
        assert last_batch(n_samples, batch_size, drop_last=True) is None


def test_a_batch_size_is_named_however_many_samples_there_are() -> None:
    found = last_batch(10**15 + 1, 100)
    assert found is not None
    assert found.fix.argument("batch_size").value == 99  # type: ignore[attr-defined]
