"""Complex weights: sums, norms, penalties and clips equal those of the same model in real and imaginary parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_memory import Arrays, Batches
from torch import Tensor, nn

import streamtrain as st
from streamtrain.comparison.surface import flatten_parameters, set_parameters
from streamtrain.comparison.variance import UpdateVariance
from streamtrain.errors import UsageError
from streamtrain.models.real_view import as_real
from streamtrain.optim.gradient_sum import GRAD_SUM_DTYPES, GradientSum
from streamtrain.optim.gradients import Clipping, grad_norm, penalty

pytestmark = pytest.mark.usefixtures("one_thread")

N = 40


def initial(*shape: int) -> Tensor:
    parts = torch.sin(torch.arange(float(np.prod(shape)) * 2).double() * 1.7)
    return torch.view_as_complex(parts.view(*shape, 2))


class Waves(nn.Module):
    """The modulus of a product with complex weights, which are parameters themselves or of their two parts."""

    def __init__(self, is_complex: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_complex = is_complex
        weights = initial(3, 2), initial(2)
        kept = [w.to(dtype) if is_complex else torch.view_as_real(w.to(dtype)).contiguous() for w in weights]
        # A bias has one axis here as there, or the penalty would not be the same.
        self.weight, self.bias = nn.Parameter(kept[0]), nn.Parameter(kept[1] if is_complex else kept[1].reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self.is_complex:
            weight, bias = torch.view_as_complex(weight), torch.view_as_complex(bias.view(-1, 2))
        return (x.to(weight.dtype) @ weight + bias).abs()


def data(dtype: Any) -> Batches:
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=(N, 3)), "y": rng.normal(size=(N, 2)) ** 2}
    return Batches(
        Arrays(**{name: a.astype(dtype) for name, a in rows.items()}, w=rng.integers(0, 3, N)), batch_size=12
    )


HOW: list[dict[str, Any]] = [
    {"update": "batch", "optimizer": "sgd"},
    {"update": "batch", "optimizer": "adam", "accumulate_grad_batches": 2, "weight": "w"},
    {"update": "batch", "optimizer": "sgd", "clip_grad_norm": 0.1},
    {"update": "batch", "optimizer": "sgd", "clip_grad_value": 0.05},
    {"update": "sample", "optimizer": "sgd", "lr": 0.01},
    {"update": "epoch", "optimizer": "sgd", "weight": "w"},
    {"update": "epoch", "optimizer": "sgd", "grad_sum_dtype": "compensated"},
    {"update": "epoch", "optimizer": "sgd", "grad_sum_dtype": "float32"},
    {"update": "epoch", "optimizer": "lbfgs"},
    {"update": "epoch", "optimizer": "cg"},
]


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
def test_a_run_is_that_of_the_two_parts(how: dict[str, Any], l2: float) -> None:
    models = [Waves(is_complex, torch.complex128) for is_complex in (True, False)]
    told: list[list[dict[str, float]]] = []
    for model in models:
        trainer = st.Trainer(model, loss="mse", l2=l2, device="cpu", **how)
        epochs = [summary.named() for summary in trainer.fit(data(np.float64), max_epochs=4)]
        told.append([{k: v for k, v in e.items() if not k.endswith(("seconds", "second", "fraction"))} for e in epochs])
    for one, other in zip(*told, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(as_real(ours).flatten(), theirs.flatten(), rtol=1e-6, atol=1e-8)
    assert initial(3, 2).imag.sub(models[0].weight.detach().imag).abs().max() > 1e-4, "or nothing is learnt of them"


@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
def test_a_checkpoint_inside_an_epoch_holds_them(tmp_path: Path, how: dict[str, Any]) -> None:
    rows = dict(data(np.float32).dataset.arrays)  # type: ignore[attr-defined]
    dataset = st.ingest(rows, tmp_path / "d.zarr")
    found: list[Tensor] = []
    for cuts in ((4,), (1, 2, 4)):
        for n_epochs in cuts:
            model = Waves(True, torch.complex64)
            trainer = st.Trainer(model, loss="mse", l2=0.1, device="cpu", **how)
            with st.StreamLoader(dataset, batch_size=12, memory="8MB") as loader:
                run = {"checkpoint": tmp_path / str(len(cuts)), "checkpoint_every": 1, "resume": "auto"}
                trainer.fit(loader, max_epochs=n_epochs, **run)
        found.append(flatten_parameters(list(model.parameters())))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", GRAD_SUM_DTYPES)
def test_sums_keep_both_parts(dtype: str) -> None:
    weight, total = nn.Parameter(torch.zeros(2, dtype=torch.complex64)), GradientSum(dtype)
    for gradient in (1 + 2j, -3 + 0.5j, 1e-3j):
        weight.grad = torch.tensor([gradient, 2 * gradient])
        total.add([weight], 1)
    total.put([weight], 2.0)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([-1 + 1.2505j, -2 + 2.501j]))


def test_norms_penalties_and_clips_are_over_both_parts() -> None:
    weight = nn.Parameter(torch.tensor([[3 + 4j]]))
    assert penalty([weight], 0.5) == 0.25 * 25
    weight.grad = torch.tensor([[6 - 8j]])
    assert grad_norm([weight]) == 10
    Clipping(norm=5.0).clip([weight])
    torch.testing.assert_close(weight.grad, torch.tensor([[3 - 4j]]))
    Clipping(value=3.5).clip([weight])
    torch.testing.assert_close(weight.grad, torch.tensor([[3 - 3.5j]]))


def test_they_can_be_compared() -> None:
    weight = nn.Parameter(torch.tensor([1 + 2j, 3j]))
    flat = flatten_parameters([weight])
    assert flat.tolist() == [1, 2, 0, 3]
    variance = UpdateVariance()
    variance.begin([weight])
    for update in (1.0, 3.0):
        weight.data += update * 1j
        variance.stepped()
    assert variance.value() == pytest.approx(0.25)
    set_parameters([weight], flat)
    assert weight.tolist() == [1 + 2j, 3j]


def test_a_complex_loss_is_refused() -> None:
    def no_modulus(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 2 * 1j).mean()

    with pytest.raises(UsageError, match=r"no_modulus of an output of shape .* returns a complex number"):
        st.Trainer(Waves(True, torch.complex128), loss=no_modulus, device="cpu").fit(data(np.float64), max_epochs=1)
