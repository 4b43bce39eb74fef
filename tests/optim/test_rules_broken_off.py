"""A pass that is broken off leaves only the steps that were taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_memory import Arrays, Batches
from torch import Tensor, nn

from streamtrain.errors import UsageError
from streamtrain.optim.optimizers import FULL_BATCH
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.run.checkpoint import MODEL, newest_checkpoint
from streamtrain.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

N, N_FEATURES, N_CLASSES, BATCH = 50, 6, 3, 8
EPOCH_BATCHES = 7


class Fragile(Batches):
    """Batches in stored order, of a stream that can say where it stands and breaks once, after ``left`` batches."""

    left: int | None = None
    error: type[BaseException] = KeyboardInterrupt

    def sequential(self) -> BatchStream:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"batch": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if self.left == 0:
                self.left = None
                raise self.error
            if self.left is not None:
                self.left -= 1
            yield batch


def make_stream(n_features: int = N_FEATURES, left: int | None = None) -> Fragile:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, n_features)).astype(np.float32)
    stream = Fragile(Arrays(x=x, y=x[:, :N_CLASSES].argmax(1).astype(np.int64)), batch_size=BATCH, shuffle=False)
    stream.left = left
    return stream


def make_model(n_outputs: int = N_CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(N_FEATURES, 5), nn.Tanh(), nn.Linear(5, n_outputs))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trainer_of(how: dict[str, Any]) -> Trainer:
    return Trainer(make_model(), loss="cross_entropy", **how)


RULES: dict[str, dict[str, Any]] = {
    "epoch": {"update": "epoch", "optimizer": "sgd"},
    "compensated": {"update": "epoch", "optimizer": "sgd", "grad_sum_dtype": "compensated"},
    "cg": {"update": "epoch", "optimizer": "cg"},
    "lbfgs": {"update": "epoch", "optimizer": "lbfgs"},
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("left", [1, 3, 10, 17])
@pytest.mark.parametrize("rule", RULES)
def test_training_after_a_broken_pass_begins_it_anew(rule: str, left: int, error: type[BaseException]) -> None:
    whole, broken = (trainer_of(RULES[rule]) for _ in "ab")
    history = whole.fit(make_stream(), max_epochs=6)
    stream = make_stream(left=left)
    stream.error = error
    with pytest.raises(error):
        broken.fit(stream, max_epochs=6)
    assert broken.counts.n_batches == left
    again = broken.fit(stream, max_epochs=6)
    assert torch.equal(weights(broken.model), weights(whole.model))
    assert again.last is not None
    assert history.last is not None
    assert (again.last.objective, again.last.grad_norm) == (history.last.objective, history.last.grad_norm)


def test_a_window_of_batches_that_was_broken_off_is_none() -> None:
    how = {"update": "batch", "optimizer": "sgd", "accumulate_grad_batches": EPOCH_BATCHES}
    whole, broken = (trainer_of(how) for _ in "ab")
    whole.fit(make_stream(), max_epochs=1)
    stream = make_stream(left=3)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(stream, max_epochs=1)
    assert broken.fit(stream, max_epochs=1).counts.n_steps == 1
    assert torch.equal(weights(broken.model), weights(whole.model))


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_pass_that_its_reader_leaves_puts_the_weights_of_the_last_step_back(optimizer: str) -> None:
    trainer = trainer_of({"update": "epoch", "optimizer": optimizer})
    before = weights(trainer.model)
    stream = make_stream(left=EPOCH_BATCHES + 2)
    inside: list[Tensor] = []
    stream.error = type("Left", (Exception,), {"__init__": lambda _: inside.append(weights(trainer.model))})
    with pytest.raises(stream.error):
        trainer.fit(stream, max_epochs=2)
    assert not torch.equal(inside[0], before), "the second pass is a trial's"
    assert torch.equal(weights(trainer.model), before)


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_checkpoint_s_model_is_that_of_the_last_step(tmp_path: Path, optimizer: str) -> None:
    how = {"update": "epoch", "optimizer": optimizer}
    whole = trainer_of(how)
    after: list[dict[str, Tensor]] = []
    whole.fit(make_stream(), max_epochs=5, on_epoch=lambda _: after.append(copy.deepcopy(whole.model.state_dict())))
    for left in range(8, 30, 2):
        run = tmp_path / str(left)
        with pytest.raises(KeyboardInterrupt):
            trainer_of(how).fit(make_stream(left=left), max_epochs=9, checkpoint=run, checkpoint_every=1)
        found = newest_checkpoint(run)
        assert found.state["counts"]["n_batches"] == left
        of_step = after[left // EPOCH_BATCHES - 1]
        assert all(torch.equal(saved, of_step[name]) for name, saved in found.tensors(MODEL).items()), left


def test_resume_that_finds_nothing_is_for_a_trainer_that_has_taken_no_step(tmp_path: Path) -> None:
    trainer = trainer_of({"optimizer": "sgd"})
    how: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": "auto"}
    assert trainer.fit(make_stream(), max_epochs=1, **how).counts.n_epochs == 1
    assert trainer.fit(make_stream(), max_epochs=2, **how).counts.n_epochs == 2
    before = weights(trainer.model)
    with pytest.raises(UsageError, match=r"no checkpoint in .*other, and the trainer has taken steps") as caught:
        trainer.fit(make_stream(), max_epochs=1, **how | {"checkpoint": tmp_path / "other"})
    assert caught.value.exit_code == 2
    assert trainer.counts.n_epochs == 2
    assert torch.equal(weights(trainer.model), before)
    assert not (tmp_path / "other").exists()


def test_other_data_is_checked_again() -> None:
    trainer = trainer_of({})
    trainer.fit(make_stream(), max_epochs=1)
    for use in (trainer.evaluate, lambda stream: trainer.fit(stream, max_epochs=2)):
        with pytest.raises(UsageError, match=r"x is float32 \(7,\); in the training data float32 \(6,\)"):
            use(make_stream(N_FEATURES + 1))
    assert trainer.evaluate(make_stream()).n_samples == N


def test_a_check_of_a_few_rows_is_none_of_what_is_trained_on() -> None:
    trainer = Trainer(make_model(2), loss="cross_entropy")
    stream = make_stream()
    assert isinstance(stream.dataset, Arrays)
    trainer.check({name: array[:1] * 0 for name, array in stream.dataset.arrays.items()})
    with pytest.raises(UsageError, match="2 outputs for 3 classes"):
        trainer.fit(stream, max_epochs=1)


def test_data_of_a_kind_that_was_trained_on_is_measured_in_any_batches() -> None:
    # One sample has no batch statistics: a rehearsal of a step on it is refused.
    model = nn.Sequential(nn.Linear(N_FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, N_CLASSES))
    trainer = Trainer(model, loss="cross_entropy")
    stream = make_stream()
    trainer.fit(stream, max_epochs=1)
    single = Batches(stream.dataset, batch_size=1)
    assert trainer.evaluate(single).score == trainer.evaluate(stream).score
