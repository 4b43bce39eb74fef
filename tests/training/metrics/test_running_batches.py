"""Batches are kept and scored at once: how they are cut, and of what shapes they are, changes no figure."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from streamtrain.models.losses import resolve_loss
from streamtrain.training.metrics.classification import largest
from streamtrain.training.metrics.running import RunningMetrics


@pytest.mark.parametrize("n_classes", [1, 2, 3, 30])
def test_the_largest_output_is_torchs_argmax(n_classes: int) -> None:
    values = torch.tensor([0.0, -1.0, 1.0, math.nan, math.inf, -math.inf])
    few = torch.tensor(list(itertools.product(values.tolist(), repeat=min(n_classes, 3))))
    output = torch.cat([few, few.new_full((len(few), n_classes - few.shape[1]), -math.inf)], 1)
    assert torch.equal(largest(output), output.argmax(1))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits"])
def test_shapes_that_change_on_the_way_change_no_figure(loss: str, full: bool) -> None:
    torch.manual_seed(0)
    output = torch.randn(100, 2 if loss == "cross_entropy" else 1)
    target = torch.randn(100) if loss == "mse" else torch.randint(0, 2, (100,))
    found = []
    for sizes in ([100], [1] * 100, [7, 7, 7, 7, 60, 12], [40, 60]):
        running = RunningMetrics(resolve_loss(loss), full=full)
        halves = running
        for number, part in enumerate(torch.arange(100).split(sizes)):
            # The axis of one is there or not, from batch to batch, and a state is taken on the way.
            shape = target[part] if number % 3 or loss == "cross_entropy" else target[part][:, None]
            halves.add(0.5, output[part], shape, weight=float(len(part)))
            assert running.loss == 0.5
        assert running.weight == 100
        found.append(running.mean())
    assert len({each.n_samples for each in found}) == 1
    for each in found:
        assert each.named(full=full) == pytest.approx(found[0].named(full=full), rel=1e-12)
