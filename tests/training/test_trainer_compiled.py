"""Models compiled before a trainer has them: trained as they are, under every rule, and kept by their own names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import CheckpointError, ResourceError, UsageError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|TorchScript|`torch.jit).*"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(x)
        return found


class EmptySized(Net):
    def __len__(self) -> int:
        return 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    rng = np.random.default_rng(0)
    source = {"x": rng.normal(size=(60, 4)).astype("f4"), "y": np.arange(60) % 3}
    return st.ingest(source, tmp_path_factory.mktemp("compiled") / "d.zarr", progress=False)


def seeded(make: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return make()


def compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    found: nn.Module = torch.compile(model, backend="eager")
    return found


def compiled_in_place(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    model.compile(backend="eager")
    return model


def losses(model: nn.Module, data: st.Dataset, **options: object) -> tuple[float, float]:
    trainer = st.Trainer(model, loss="cross_entropy", device="cpu", **options)  # type: ignore[arg-type]
    history = trainer.fit(data, max_epochs=2, batch_size=25, memory="16MB", progress=False)
    assert history.last is not None
    return history.last.train.loss, trainer.evaluate(data).loss


@pytest.mark.parametrize("ready", [compiled, compiled_in_place])
@pytest.mark.parametrize(
    ("update", "optimizer"), [("batch", "adam"), ("sample", "sgd"), ("epoch", "sgd"), ("epoch", "lbfgs")]
)
def test_a_compiled_model_is_trained_as_it_is(
    data: st.Dataset, update: str, optimizer: str, ready: Callable[[nn.Module], nn.Module]
) -> None:
    found = losses(ready(seeded()), data, update=update, optimizer=optimizer)
    assert found == pytest.approx(losses(seeded(), data, update=update, optimizer=optimizer), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: compiled(seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))),
        lambda: seeded(lambda: nn.Sequential(compiled(nn.Linear(4, 8)), nn.Linear(8, 3))),
        lambda: compiled(seeded(EmptySized)),
        lambda: seeded(EmptySized),
        lambda: torch.jit.script(seeded()),
    ],
    ids=["sequential", "a part", "of length 0", "of length 0, plain", "scripted"],
)
def test_so_are_its_neighbours(data: st.Dataset, make: Callable[[], nn.Module]) -> None:
    for options in ({}, {"update": "sample"}, {"autocast": "bf16"}, {"normalize": "auto"}):
        assert np.isfinite(losses(make(), data, **options)).all(), options


def test_the_fast_path_leaves_a_compiled_model_alone() -> None:
    for ready in (compiled, compiled_in_place):
        trainer = st.Trainer(ready(nn.Linear(4, 3)), loss="cross_entropy", update="sample", device="cpu")
        assert trainer.way.startswith("sample (plain path")
    assert st.Trainer(nn.Linear(4, 3), loss="cross_entropy", update="sample", device="cpu").way == "sample (fast path)"


def test_a_checkpoint_has_the_names_of_the_model_inside(data: st.Dataset, tmp_path: Path) -> None:
    run, net = tmp_path / "run", tmp_path / "net.py"
    given = {"checkpoint": run, "memory": "16MB", "progress": False}
    make = lambda: st.Trainer(compiled(seeded()), loss="cross_entropy", device="cpu")  # noqa: E731
    make().fit(data, max_epochs=1, **given)
    assert make().fit(data, max_epochs=2, resume="auto", **given).counts.n_epochs == 2
    plain = st.Trainer(seeded(), loss="cross_entropy", device="cpu")
    with pytest.raises(CheckpointError, match="compile: True there, False here"):
        plain.fit(data, max_epochs=3, resume="auto", **given)
    net.write_text(
        "from torch import nn\nimport torch\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.out = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.out(x)\n"
        "def plain(input_shape, n_outputs):\n    return Net()\n"
        "def ready(input_shape, n_outputs):\n    return torch.compile(Net(), backend='eager')\n"
    )
    for factory in ("plain", "ready"):
        words = ["evaluate", str(run), str(data.path), "--model", f"{net}:{factory}", "--memory", "16MB"]
        assert main(words) == 0


def test_what_cannot_be_compiled_or_trained_is_refused_by_name(data: st.Dataset) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such chip")

    with pytest.raises(ResourceError, match="the model cannot be compiled"):
        losses(torch.compile(seeded(), backend=refuse), data)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the model does not fit the data"):
        losses(compiled(nn.Linear(5, 3)), data)
    exported = torch.export.export(seeded(), (torch.zeros(2, 4),)).module()
    with pytest.raises(UsageError, match=r"the model cannot be trained: .*Fix: the model that was exported"):
        losses(exported, data)


def test_runs_of_a_comparison_copy_a_compiled_model(data: st.Dataset) -> None:
    given = {"max_epochs": 1, "batch_size": 25, "memory": "16MB", "optimizers": ("sgd",)}
    expected = [run.last.train.loss for run in st.compare(seeded(), data, **given)]
    found = [run.last.train.loss for run in st.compare(compiled(seeded()), data, **given)]
    assert found == pytest.approx(expected, rel=1e-6)
