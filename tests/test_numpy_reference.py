"""Gradient descent written out in NumPy from its equations; the rules on a stream match it step for step.

A perceptron is ``net = x W + b`` under softmax; the two-layer network has ``tanh`` between two of them. The error of
a sample with label k is ``J = -ln softmax(net)_k``, so that ``∇net = softmax(net) - onehot(k)``; from there the chain
rule gives ``∇W = xᵀ ∇net`` and ``∇b = Σ ∇net``, and ``∇h = ∇net Wᵀ`` for the layer before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from streamtrain import StreamLoader, Trainer, ingest
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import RULES
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.optimizers import build_optimizer
from streamtrain.store.dataset import Dataset

Array = npt.NDArray[np.float64]
Weights = list[Array]
Gradient = Callable[[Weights, Array, npt.NDArray[np.int64]], Weights]
Update = Callable[[Weights], Weights]

N_SAMPLES, N_FEATURES, N_HIDDEN, N_CLASSES, BATCH = 23, 5, 7, 3, 4
N_STEPS = 200
LR = 0.05


def softmax(net: Array) -> Array:
    e = np.exp(net - net.max(axis=1, keepdims=True))
    result: Array = e / e.sum(axis=1, keepdims=True)
    return result


def perceptron_gradient(weights: Weights, x: Array, y: npt.NDArray[np.int64]) -> Weights:
    w, b = weights
    d_net = (softmax(x @ w + b) - np.eye(N_CLASSES)[y]) / len(x)
    return [x.T @ d_net, d_net.sum(axis=0)]


def two_layer_gradient(weights: Weights, x: Array, y: npt.NDArray[np.int64]) -> Weights:
    w1, b1, w2, b2 = weights
    h = np.tanh(x @ w1 + b1)
    d_net2 = (softmax(h @ w2 + b2) - np.eye(N_CLASSES)[y]) / len(x)
    d_net1 = (d_net2 @ w2.T) * (1 - h**2)
    return [x.T @ d_net1, d_net1.sum(axis=0), h.T @ d_net2, d_net2.sum(axis=0)]


def vanilla() -> Update:
    return lambda gradients: [-LR * g for g in gradients]


def momentum(mu: float = 0.9) -> Update:
    """``v ← μ v + g``, ``ΔW = -η v``."""
    velocity: Weights = []

    def update(gradients: Weights) -> Weights:
        velocity[:] = [mu * v + g for v, g in zip(velocity, gradients, strict=True)] if velocity else gradients
        return [-LR * v for v in velocity]

    return update


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Update:
    """D. P. Kingma, J. Ba, ICLR 2015, algorithm 1."""
    t = 0
    m: Weights = []
    v: Weights = []

    def update(gradients: Weights) -> Weights:
        nonlocal t, m, v
        m, v = m or [np.zeros_like(g) for g in gradients], v or [np.zeros_like(g) for g in gradients]
        t += 1
        m = [beta1 * a + (1 - beta1) * g for a, g in zip(m, gradients, strict=True)]
        v = [beta2 * a + (1 - beta2) * g**2 for a, g in zip(v, gradients, strict=True)]
        m_hat = [a / (1 - beta1**t) for a in m]
        v_hat = [a / (1 - beta2**t) for a in v]
        return [-LR * a / (np.sqrt(b) + eps) for a, b in zip(m_hat, v_hat, strict=True)]

    return update


NETWORKS: dict[str, tuple[Gradient, Callable[[], nn.Sequential]]] = {
    "perceptron": (perceptron_gradient, lambda: nn.Sequential(nn.Linear(N_FEATURES, N_CLASSES))),
    "two-layer": (
        two_layer_gradient,
        lambda: nn.Sequential(nn.Linear(N_FEATURES, N_HIDDEN), nn.Tanh(), nn.Linear(N_HIDDEN, N_CLASSES)),
    ),
}
OPTIMIZERS: dict[str, tuple[Callable[[], Update], str, dict[str, Any]]] = {
    "vanilla": (vanilla, "sgd", {}),
    "momentum": (momentum, "sgd", {"momentum": 0.9}),
    "adam": (adam, "adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
}
UNITS = {"batch": BATCH, "sample": 1, "epoch": N_SAMPLES}
"""Update rule -> how many samples a step is taken on."""


def reference(gradient: Gradient, update: Update, weights: Weights, x: Array, y: Any, unit: int) -> Iterator[Weights]:
    """The weights after every step, epoch after epoch."""
    while True:
        for start in range(0, len(x), unit):
            change = update(gradient(weights, x[start : start + unit], y[start : start + unit]))
            weights = [w + d for w, d in zip(weights, change, strict=True)]
            yield weights


def streamed(rule_name: str, learner: Learner, x: Array, y: Any) -> Iterator[Weights]:
    """The weights after every step of a rule that is handed batches; a limit makes the sample rule stop at each."""
    rule = RULES[rule_name](learner)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    while True:
        for start in range(0, len(x), BATCH):
            done, stop = start, min(start + BATCH, len(x))
            while done < stop:
                before = rule.n_steps
                limit = before + 1 if rule_name == "sample" else None
                done += rule.learn(
                    TrainingBatch(inputs=(tensors[0][done:stop],), target=tensors[1][done:stop]), limit
                ).n_samples
                if limit is not None:
                    # What comes next is handed over as a batch of its own, not as the rest of this one.
                    rule.abandon()
                if rule.n_steps > before:
                    yield weights_of(learner.model)
        before = rule.n_steps
        rule.end_epoch()
        if rule.n_steps > before:
            yield weights_of(learner.model)


def weights_of(model: nn.Module) -> Weights:
    """torch keeps a layer's weights as (out, in); the equations have (in, out)."""
    return [parameter.detach().numpy().T.copy() for parameter in model.parameters()]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> tuple[Array, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(N_SAMPLES, N_FEATURES)), rng.integers(0, N_CLASSES, N_SAMPLES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_step_is_that_of_the_equations(
    network: str, rule: str, optimizer: str, data: tuple[Array, npt.NDArray[np.int64]]
) -> None:
    gradient, make_network = NETWORKS[network]
    make_update, name, options = OPTIMIZERS[optimizer]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make_network().double()
    made = build_optimizer(name, model.parameters(), lr=LR, **options)
    learner = Learner(model=model, loss=resolve_loss("cross_entropy"), optimizer=made)
    expected = reference(gradient, make_update(), weights_of(model), *data, UNITS[rule])
    for step, (ours, theirs) in enumerate(zip(streamed(rule, learner, *data), expected, strict=False), start=1):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=f"step {step}")
        if step == N_STEPS:
            break


def steps_of(loader: StreamLoader, rule: str) -> Iterator[npt.NDArray[np.int64]]:
    """The samples of each step, epoch after epoch."""
    if rule == "epoch":
        while True:
            yield np.arange(N_SAMPLES)
    while True:
        for _ in loader:
            samples = loader.last_samples()
            yield from [samples] if rule == "batch" else samples[:, None]


def expected_weights(
    gradient: Gradient, update: Update, weights: Weights, x: Array, y: Any, steps: Iterator[npt.NDArray[np.int64]]
) -> Iterator[Weights]:
    for samples in steps:
        change = update(gradient(weights, x[samples], y[samples]))
        weights = [w + d for w, d in zip(weights, change, strict=True)]
        yield weights


@pytest.fixture(scope="module")
def stored(data: tuple[Array, npt.NDArray[np.int64]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    x, y = data
    return ingest({"x": x, "y": y}, tmp_path_factory.mktemp("reference") / "d.zarr", block=3 * 48, codec="none")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_step_on_a_stored_dataset_is_that_of_the_equations(
    network: str, rule: str, optimizer: str, data: tuple[Array, npt.NDArray[np.int64]], stored: Dataset
) -> None:
    gradient, make_network = NETWORKS[network]
    make_update, name, options = OPTIMIZERS[optimizer]
    models = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            models.append(make_network().double())
    # Of a rule whose step is an epoch fewer are taken: each reads the dataset, three times.
    n_steps = N_STEPS // 5 if rule == "epoch" else N_STEPS
    whole = {"loss": "cross_entropy", "optimizer": name, "lr": LR, "update": rule, "device": "cpu", **options}
    trainer, unwatched = (Trainer(model, **whole) for model in models)
    with StreamLoader(stored, batch_size=BATCH, memory="8MB", seed=2) as loader:
        steps = list(islice(steps_of(loader, rule), n_steps))
    expected = list(expected_weights(gradient, make_update(), weights_of(models[0]), *data, iter(steps)))
    found: list[Weights] = []
    trainer.optimizer.register_step_post_hook(lambda *_: found.append(weights_of(models[0])))
    for each in (trainer, unwatched):
        with StreamLoader(stored, batch_size=BATCH, memory="8MB", seed=2) as loader:
            each.fit(loader, max_steps=n_steps, progress=False)
    assert len(found) == n_steps
    # Without a hook on its optimizer the rule "sample" takes its fast path, of which the last step is seen.
    for step, (ours, theirs) in enumerate(zip([*found, weights_of(models[1])], [*expected, expected[-1]], strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=f"step {step + 1}")
