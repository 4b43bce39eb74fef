"""L-BFGS and conjugate gradients over a stream: the same steps as in memory, and exact resume."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doomed import Doomed, Killed
from torch import Tensor, nn

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.determinism import digest
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.optimizers import FULL_BATCH, build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

N, N_FEATURES, N_CLASSES, BATCH, L2 = 230, 6, 3, 50, 1e-2


def arrays() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.random((N, N_FEATURES))
    y = (x @ rng.normal(size=(N_FEATURES, N_CLASSES)) + rng.gumbel(size=(N, N_CLASSES)) / 3).argmax(1)
    return x, y.astype(np.int64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    x, y = arrays()
    return st.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("data") / "d.zarr", block=6 * N_FEATURES * 8)


def softmax_regression() -> nn.Module:
    model = nn.Linear(N_FEATURES, N_CLASSES).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(N_FEATURES, 5), nn.Tanh(), nn.Linear(5, N_CLASSES)).to(dtype)


def loader_of(dataset: st.Dataset) -> st.StreamLoader:
    return st.StreamLoader(dataset, batch_size=BATCH, memory="16MB", shuffle=False)


def trainer_of(model: nn.Module, optimizer: str, **options: Any) -> st.Trainer:
    return st.Trainer(model, loss="cross_entropy", optimizer=optimizer, update="epoch", **{"l2": L2} | options)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def reference_minimum() -> tuple[float, Any, Any]:
    """Softmax regression by Newton's method, written out in NumPy from J, its gradient and its Hessian."""
    x, y = arrays()
    rows = np.hstack([x, np.ones((N, 1))])
    truth = np.eye(N_CLASSES)[y]
    ridge = np.repeat(np.array([*[L2] * N_FEATURES, 0.0]), N_CLASSES)
    w = np.zeros((N_FEATURES + 1, N_CLASSES))
    for _ in range(30):
        scores = rows @ w
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (rows.T @ (p - truth) / N).ravel() + ridge * w.ravel()
        curvature = np.einsum("ni,nj,nc,cd->icjd", rows, rows, p, np.eye(N_CLASSES), optimize=True)
        curvature -= np.einsum("ni,nj,nc,nd->icjd", rows, rows, p, p, optimize=True)
        hessian = curvature.reshape(w.size, w.size) / N + np.diag(ridge)
        # The biases are free up to a common shift: the least-norm step leaves it.
        w -= (np.linalg.pinv(hessian, rcond=1e-10) @ gradient).reshape(w.shape)
    scores = rows @ w
    logs = scores - scores.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    objective = -logs[np.arange(N), y].mean() + (ridge * w.ravel() ** 2).sum() / 2
    return float(objective), w[:-1].T, w[-1]


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_on_a_convex_problem_they_reach_the_minimum(dataset: st.Dataset, optimizer: str) -> None:
    objective, weight, bias = reference_minimum()
    model = softmax_regression()
    with loader_of(dataset) as loader:
        history = trainer_of(model, optimizer, grad_tolerance=1e-8).fit(loader, max_epochs=400)
    assert history.stopped_by == "grad_tolerance"
    assert history.last is not None
    assert history.last.objective == pytest.approx(objective, abs=1e-12)
    assert history.last.grad_norm is not None
    assert history.last.grad_norm <= 1e-8
    assert np.abs(model.weight.detach().numpy() - weight).max() < 1e-6  # type: ignore[operator]
    shift = model.bias.detach().numpy() - bias  # type: ignore[operator]
    assert np.abs(shift - shift.mean()).max() < 1e-6
    assert history.counts.n_epochs < 150, "an epoch is a pass"
    assert history.counts.n_steps < history.counts.n_epochs
    assert history.counts.n_samples == N * history.counts.n_epochs


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_steps_are_those_of_the_optimizer_in_memory(optimizer: str) -> None:
    # One batch of a power of two, so that the means are the same too; then nothing may differ by a bit.
    n = 128
    x, y = (torch.from_numpy(array[:n]) for array in arrays())
    plain, streamed = perceptron(), perceptron()
    steps = build_optimizer(optimizer, plain.parameters())
    scale = 2.0**20
    n_asked = 0

    def closure() -> float:
        nonlocal n_asked
        n_asked += 1
        steps.zero_grad()
        loss, _ = resolve_loss("cross_entropy").total(plain(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        for p in plain.parameters():
            assert p.grad is not None
            p.grad = p.grad / n * scale
        return loss.item() / n * scale

    learner = Learner(
        model=streamed,
        loss=resolve_loss("cross_entropy"),
        optimizer=build_optimizer(optimizer, streamed.parameters()),
    )
    rule = make_rule("epoch", learner)
    n_passes = 0
    while rule.n_steps < 15:
        rule.learn(TrainingBatch(inputs=(x,), target=y))
        rule.end_epoch()
        n_passes += 1
    for _ in range(15):
        steps.step(closure)
    assert torch.equal(flat(plain), flat(streamed))
    assert n_passes == n_asked - 14, "the value at the end of a step is not measured again"


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_killed_run_goes_on_bit_for_bit_inside_a_line_search_too(
    dataset: st.Dataset, tmp_path: Path, optimizer: str
) -> None:
    def fit(model: nn.Module, loader: Any, run: Path) -> st.History:
        return trainer_of(model, optimizer).fit(
            loader, max_epochs=9, checkpoint=run, checkpoint_every=2, resume="auto", progress=False
        )

    def lines(run: Path) -> list[tuple[Any, ...]]:
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        names = ("epoch", "steps", "loss", "accuracy", "objective", "grad_norm", "trial_loss", "trial_objective")
        return [tuple(line.get(name) for name in names) for line in found if "objective" in line]

    whole = perceptron()
    with loader_of(dataset) as loader:
        fit(whole, loader, tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 9
    for kill_after in (3, 5, 9, 14, 22, 38):
        run = tmp_path / str(kill_after)
        doomed = Doomed(dataset, batch_size=BATCH, memory="16MB", shuffle=False)
        doomed.left = kill_after
        with doomed, pytest.raises(Killed):
            fit(perceptron(), doomed, run)
        resumed = perceptron()
        with loader_of(dataset) as loader:
            fit(resumed, loader, run)
        assert torch.equal(flat(whole), flat(resumed)), kill_after
        assert lines(run) == lines(tmp_path / "whole")


def test_between_passes_the_model_is_never_at_a_trial(dataset: st.Dataset) -> None:
    model = perceptron()
    seen: list[tuple[int, Tensor]] = []
    with loader_of(dataset) as loader:
        trainer = trainer_of(model, "cg")
        history = trainer.fit(loader, max_epochs=12, on_epoch=lambda s: seen.append((s.counts.n_steps, flat(model))))
    assert history.counts.n_steps < 11
    for (before, old), (after, new) in pairwise(seen):
        assert torch.equal(old, new) == (before == after)


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_run_ends_where_no_step_lowers_j(optimizer: str) -> None:
    x = torch.ones(4, 1)
    model = nn.Linear(1, 1, bias=False)
    learner = Learner(model=model, loss=resolve_loss("mse"), optimizer=build_optimizer(optimizer, model.parameters()))
    rule = make_rule("epoch", learner)
    for _ in range(60):
        rule.learn(TrainingBatch(inputs=(x,), target=x))
        rule.end_epoch()
        if rule.converged:
            break
    assert rule.converged == "stuck"
    assert model.weight.item() == pytest.approx(1.0, abs=1e-6)


def test_a_small_change_of_j_ends_a_run(dataset: st.Dataset) -> None:
    with loader_of(dataset) as loader:
        history = trainer_of(softmax_regression(), "lbfgs", loss_tolerance=1e-4).fit(loader, max_epochs=100)
        assert history.stopped_by == "loss_tolerance"
        settled = [epoch.objective for epoch in history]
        assert settled[-2] is not None
        assert settled[-1] is not None
        assert abs(settled[-1] - settled[-2]) <= 1e-4
        trainer_of(softmax_regression(), "cg").fit(loader, max_epochs=100, until_loss=settled[-2] - 0.05)


@pytest.mark.filterwarnings("ignore:BatchNorm1d under", "ignore:Dropout under")
@pytest.mark.parametrize(
    ("layer", "named"),
    [(nn.Dropout(0.5), r"1 \(Dropout\)"), (nn.BatchNorm1d(5), r"1 \(BatchNorm1d\)")],
)
def test_a_forward_that_changes_is_refused_by_name(dataset: st.Dataset, layer: nn.Module, named: str) -> None:
    model = nn.Sequential(nn.Linear(N_FEATURES, 5), layer, nn.Linear(5, N_CLASSES)).double()
    with loader_of(dataset) as loader, pytest.raises(UsageError, match=f"forward changes.*{named}.*p=0") as caught:
        trainer_of(model, "lbfgs").fit(loader, max_epochs=2)
    assert caught.value.exit_code == 2


def test_noise_of_the_model_s_own_is_found_too(dataset: st.Dataset) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(())

    model = Noisy(N_FEATURES, N_CLASSES).double()
    with loader_of(dataset) as loader, pytest.raises(UsageError, match="forward changes between the calls"):
        trainer_of(model, "cg").fit(loader, max_epochs=2)


@pytest.mark.filterwarnings("ignore:Dropout under")
def test_dropout_without_effect_is_no_reason(dataset: st.Dataset) -> None:
    model = nn.Sequential(nn.Linear(N_FEATURES, 5), nn.Dropout(0.0), nn.Linear(5, N_CLASSES)).double()
    with loader_of(dataset) as loader:
        assert len(trainer_of(model, "lbfgs").fit(loader, max_epochs=2)) == 2


def test_equal_values_have_equal_digests() -> None:
    assert digest([torch.zeros(2)]) == digest([-torch.zeros(2)]) != digest([torch.ones(2)])


def test_data_that_changes_between_passes_is_refused() -> None:
    x, y = (torch.from_numpy(array) for array in arrays())
    model = perceptron()
    learner = Learner(
        model=model, loss=resolve_loss("cross_entropy"), optimizer=build_optimizer("cg", model.parameters())
    )
    rule = make_rule("epoch", learner)
    rule.learn(TrainingBatch(inputs=(x,), target=y))
    rule.end_epoch()
    with pytest.raises(UsageError, match="the data changes between the calls of a line search"):
        rule.learn(TrainingBatch(inputs=(x + 1e-3,), target=y))


@pytest.mark.parametrize("update", ["batch", "sample"])
@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_other_rules_are_refused(update: str, optimizer: str) -> None:
    with pytest.raises(UsageError, match=f"with update='{update}'.*update='epoch'") as caught:
        st.Trainer(perceptron(), loss="cross_entropy", optimizer=optimizer, update=update)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_tolerance": 0.0}, "grad_tolerance is 0.0; it must be positive"),
        ({"optimizer": "adam", "grad_tolerance": 1e-3}, "grad_tolerance with Adam"),
        ({"clip_grad_norm": 1.0}, "clip_grad_norm with LBFGS"),
        ({"history_size": 0}, "history_size is 0"),
        ({"max_iter": 20}, "unknown argument 'max_iter' of Trainer"),
        ({"l2": -1.0}, "l2 is -1.0"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    how = {"optimizer": "lbfgs", "update": "epoch", **options}
    with pytest.raises(UsageError, match=message):
        st.Trainer(perceptron(), loss="cross_entropy", **how)


@pytest.mark.parametrize(
    ("options", "named"),
    [({}, "max_iter=20"), ({"max_iter": 1, "max_eval": 26}, "line_search_fn=None"), ({"max_iter": 1}, "max_eval=1,")],
)
def test_a_finished_lbfgs_of_many_iterations_a_step_or_without_a_search_is_refused(
    options: dict[str, Any], named: str
) -> None:
    model = perceptron()
    finished = torch.optim.LBFGS(model.parameters(), **options)
    with pytest.raises(UsageError, match=rf"{named}.*max_iter=1, max_eval=26, line_search_fn='strong_wolfe'"):
        st.Trainer(model, loss="cross_entropy", optimizer=finished, update="epoch")


def test_a_finished_lbfgs_as_the_message_has_it_reaches_the_minimum(dataset: st.Dataset) -> None:
    model = softmax_regression()
    finished = torch.optim.LBFGS(model.parameters(), max_iter=1, max_eval=26, line_search_fn="strong_wolfe")
    with loader_of(dataset) as loader:
        trainer = st.Trainer(
            model, loss="cross_entropy", optimizer=finished, update="epoch", grad_tolerance=1e-6, l2=L2
        )
        assert trainer.fit(loader, max_epochs=150).stopped_by == "grad_tolerance"
