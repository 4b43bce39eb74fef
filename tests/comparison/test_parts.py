"""The parts of a comparison: the variance of updates, the path of the weights, its plane, the surface around it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamtrain.comparison.settings import ComparisonSettings
from streamtrain.comparison.surface import (
    PATH_BYTES,
    Snapshot,
    Trajectory,
    measure_surface,
    n_snapshots,
    principal_plane,
    weight_names,
)
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import BudgetError, UnknownName, UsageError


def by_definition(weights: np.ndarray) -> float:
    """E|u - mean u|² / |mean u|² over the updates u between the rows, as it is written down."""
    updates = np.diff(weights, axis=0)
    mean = updates.mean(axis=0)
    return float((np.square(updates - mean).sum(axis=1)).mean() / np.square(mean).sum())


def flat(parameters: list[nn.Parameter]) -> np.ndarray:
    return np.concatenate([parameter.detach().double().numpy().ravel() for parameter in parameters])


@given(
    seed=st.integers(0, 999),
    n_steps=st.integers(2, 30),
    window=st.integers(2, 30),
    optimizer=st.sampled_from(["SGD", "Adam"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_variance_is_its_definition(seed: int, n_steps: int, window: int, optimizer: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    parameters = [nn.Parameter(torch.tensor(rng.normal(size=shape), dtype=dtype)) for shape in ((3, 2), (4,))]
    torch_optimizer = getattr(torch.optim, optimizer)(parameters, lr=0.1)
    seen = [flat(parameters)]
    variance = UpdateVariance(window)
    variance.begin(parameters)
    for _ in range(n_steps):
        for parameter in parameters:
            parameter.grad = torch.tensor(rng.normal(1.0, 1.0, parameter.shape), dtype=dtype)
        torch_optimizer.step()
        variance.stepped()
        seen.append(flat(parameters))
    n_seen = min(n_steps, window)
    assert variance.n_seen == n_seen
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    expected = by_definition(np.array(seen[: n_seen + 1]))
    assert variance.value() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_equal_updates_have_no_variance_and_a_full_window_takes_no_more() -> None:
    weight = nn.Parameter(torch.zeros(5))
    variance = UpdateVariance(2)

    def step(update: float) -> None:
        weight.data += update
        variance.stepped()

    step(7.0)
    assert variance.value() is None, "no window has begun"
    variance.begin([weight])
    assert variance.value() is None, "no step yet"
    step(1.0)
    assert variance.value() is None, "of one step nothing is known"
    step(1.0)
    assert variance.value() == 0.0
    step(9.0)
    assert (variance.n_seen, variance.value()) == (2, 0.0)
    variance.begin([weight])
    step(1.0)
    step(-1.0)
    assert variance.value() is None, "updates without a mean have no variance relative to it"


@given(most=st.integers(2, 12).map(lambda half: 2 * half), n_offered=st.integers(1, 400))
def test_a_path_keeps_few_snapshots_evenly(most: int, n_offered: int) -> None:
    weight = nn.Parameter(torch.zeros(1))
    path = Trajectory([weight], most)
    for i in range(n_offered):
        with torch.no_grad():
            weight.fill_(i)
        path.offer(i)
    assert len(path.kept) <= most
    path.end(n_offered - 1)
    steps = [snapshot.n_steps for snapshot in path.kept]
    assert steps[0] == 0
    assert steps[-1] == n_offered - 1
    assert [float(snapshot.weights) for snapshot in path.kept] == steps, "each is a copy of its own"
    gaps = {b - a for a, b in pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert len(steps) >= min(n_offered, most // 2)


def test_snapshots_are_bounded_in_bytes() -> None:
    assert n_snapshots(6, 10**6) * 6 * 10**6 <= PATH_BYTES
    assert [n_snapshots(6, n_bytes) for n_bytes in (235_146 * 4, 8)] == [45, 200]
    with pytest.raises(BudgetError, match=r"4 snapshots of 6 runs take 9\.60 GB; the path of the weights has 256"):
        n_snapshots(6, 400 * 10**6)


@given(seed=st.integers(0, 99), n=st.integers(2, 8), n_weights=st.integers(3, 20))
def test_the_plane_is_that_of_principal_components(seed: int, n: int, n_weights: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, n_weights)) * np.linspace(3, 0.1, n_weights)
    plane = principal_plane((), [Snapshot(n_steps=i, weights=torch.tensor(row)) for i, row in enumerate(rows)])
    centred = rows - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    assert plane.shares is not None
    np.testing.assert_allclose(plane.shares, (sizes**2 / (sizes**2).sum())[:2], atol=1e-5)
    ours = np.array([direction.numpy() for direction in plane.directions])
    np.testing.assert_allclose(ours @ ours.T, np.eye(2), atol=1e-9)
    for i in range(min(2, n - 1)):
        assert abs(ours[i] @ directions[i]) == pytest.approx(1.0, abs=1e-6)
        assert ours[i] @ (rows[-1] - rows[0]) >= -1e-9, "the way of the run goes to the right and up"
    place = plane.place(torch.tensor(rows[0]))
    np.testing.assert_allclose(place, ours @ centred[0], atol=1e-9)
    np.testing.assert_allclose(plane.at(*place).numpy(), rows.mean(axis=0) + ours.T @ (ours @ centred[0]), atol=1e-9)


def test_weights_that_never_move_have_a_plane() -> None:
    plane = principal_plane((), [Snapshot(n_steps=i, weights=torch.ones(4)) for i in range(3)])
    gram = plane.directions @ plane.directions.T
    assert torch.allclose(gram, torch.eye(2, dtype=torch.float64))


def test_a_surface_puts_the_weights_back() -> None:
    model = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    path = [Snapshot(n_steps=i, weights=torch.randn(8, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    n_done = 0

    def done() -> None:
        nonlocal n_done
        n_done += 1

    found = measure_surface(model, lambda: float("inf"), [("a", path), ("b", path[:1])], grid=4, done=done)
    assert n_done == 16
    assert np.isnan(found.loss).all()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    for run in found.paths:
        for x, y in run.places:
            assert found.xs[0] < x < found.xs[-1]
            assert found.ys[0] < y < found.ys[-1]
    assert "direction 1 of the paths" in found.labels[0]


def test_weights_have_names() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].weight.requires_grad_(False)
    assert weight_names(model, 2) == ["0.bias[0]", "1.weight[0,0]"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": ("bach",)}, "unknown update rule 'bach'"),
        ({"rules": ()}, "rules are none"),
        ({"optimizers": ("sgd", "sgd")}, "optimizers are sgd, sgd. Fix: each one once"),
        ({"lr": {"sgdd": 0.1}}, "unknown optimizer to give a learning rate 'sgdd'"),
        ({"lr": {"sgd": -1.0}}, r"lr of sgd is -1.0; it must be positive"),
        ({"max_epochs": None}, "neither epochs nor seconds"),
        ({"max_epochs": -1}, "max_epochs is -1"),
        ({"seconds": 0.0}, "seconds is 0.0; it must be positive"),
        ({"target_loss": float("nan")}, "target_loss is nan"),
        ({"grid": 1}, "the grid is 1; it must be from 2 to 201$"),
        ({"grid": 0}, "the grid is 0; it must be from 2 to 201$"),
        ({"batch_size": 0}, "batch_size is 0; it must be a positive integer"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5; it must be a positive integer"),
        ({"optimizers": ("SGD", "sgd")}, "optimizers are SGD, sgd. Fix: each one once"),
    ],
)
def test_a_setting_refuses_what_it_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ComparisonSettings(**{"max_epochs": 1, **wrong})


def test_learning_rates_go_from_the_special_to_the_general() -> None:
    setting = ComparisonSettings(max_epochs=1, lr={"every": 0.5, "adam": 0.2, "sample:adam": 0.1})
    rates = {pair: setting.lr_of(*pair) for pair in setting.pairs()}
    assert rates["sample", "adam"] == 0.1
    assert rates["batch", "adam"] == 0.2
    assert rates["epoch", "sgd"] == 0.5
    assert ComparisonSettings(max_epochs=1).lr_of("batch", "sgd") is None
    with pytest.raises(UnknownName):
        ComparisonSettings(max_epochs=1, lr={"batch:rmsprop": 0.1})
