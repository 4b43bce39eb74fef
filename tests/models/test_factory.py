"""Models by name or from a file, and the refusal of those that cannot be built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from streamtrain.errors import UnknownName, UsageError
from streamtrain.models.factory import ToChannels, build_model, n_parameters


def build(name: str, shape: tuple[int, ...] = (8, 8), n_outputs: int = 3, seed: int = 0) -> nn.Module:
    return build_model(name, input_shape=shape, n_outputs=n_outputs, seed=seed)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", ()),
        ("linear", (5,)),
        ("mlp:7", (2, 3, 4)),
        ("mlp:7, 5", (9,)),
        ("cnn", (8, 9)),
        ("cnn", (9, 8, 3)),
        ("cnn", (3, 9, 8)),
    ],
)
def test_built_in_models_take_samples_of_any_fitting_shape(name: str, shape: tuple[int, ...]) -> None:
    assert build(name, shape)(torch.zeros(2, *shape)).shape == (2, 3)


def test_widths_are_those_asked_for() -> None:
    layers = [layer for layer in build("mlp:32,16", (28, 28), 10) if isinstance(layer, nn.Linear)]  # type: ignore[attr-defined]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(784, 32), (32, 16), (16, 10)]
    assert n_parameters(build("linear", (4,), 2)) == 10


def test_initial_weights_follow_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (next(build("linear", seed=seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_channels_come_to_the_front() -> None:
    images = torch.arange(24).reshape(1, 2, 4, 3)
    assert torch.equal(ToChannels((2, 4, 3))(images), images.permute(0, 3, 1, 2))
    assert ToChannels((2, 4))(images[..., 0]).shape == (1, 1, 2, 4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mpl:256", (8,), "did you mean 'mlp'"),
        ("resnet", (8,), "Known: cnn, linear, mlp"),
        ("mlp:", (8,), "not positive integers. Fix: model='mlp:256,128'"),
        ("mlp:16777217", (8,), "above 16,777,216"),
        ("resnet18", (8,), "FILE.py:NAME, PACKAGE.MODULE:NAME"),
        ("mlp:0", (8,), "not positive integers"),
        ("mlp:8,,8", (8,), "not positive integers"),
        ("linear:5", (8,), "model linear takes no '5'"),
        ("cnn", (8,), r"a cnn needs images; a sample has the shape \(8,\)"),
        ("cnn", (3, 28), "at least 4x4; a sample is 3x28"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(name, shape)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, UnknownName) == ("Known" in str(caught.value))


MODELS_FILE = """
from __future__ import annotations
from dataclasses import dataclass
import math
from torch import nn

@dataclass
class Shape:
    n: int

def alone(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
def named(n_outputs, input_shape): return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), n_outputs))
def positional(shape, n): return named(n, shape)
def optional(width=3): return nn.Sequential(nn.Flatten(), nn.Linear(64, width))
class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 3))
def three(a, b, c): return None
def nothing(): return None
def broken(): raise RuntimeError("no such layer")
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(MODELS_FILE)
    return path


@pytest.mark.parametrize("factory", ["alone", "named", "positional", "optional", "Net"])
def test_a_factory_gets_the_shapes_if_it_takes_them(file: Path, factory: str) -> None:
    assert build(f"{file}:{factory}")(torch.zeros(2, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("three", "needs a, b, c, which are not known here"),
        ("nothing", "returned NoneType, not a torch.nn.Module"),
        ("broken", "failed: RuntimeError: no such layer"),
        ("number", "is int, not a function, class or torch.nn.Module"),
        ("missing", "has no 'missing'"),
        ("", "names no function"),
    ],
)
def test_a_factory_that_makes_no_model_is_refused(file: Path, factory: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(f"{file}:{factory}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'.*PYTHONPATH="),
        ("def build(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_imported_shows_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad_nets.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        build(f"{path}:build")
    assert "streamtrain_user_bad_nets" not in sys.modules


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.py does not exist"):
        build(f"{tmp_path / 'none.py'}:build")
    with pytest.raises(UsageError, match=r"none.py does not exist"):
        build(str(tmp_path / "none.py"))
    (tmp_path / "some.py").write_text("def _own(): ...\ndef build(): ...\nclass Net(nn.Module): ...\n")
    with pytest.raises(UsageError, match=r"names no function.* it has Net, build. Fix: model='.*some.py:Net'"):
        build(str(tmp_path / "some.py"))
