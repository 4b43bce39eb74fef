"""The trainer's arguments: those of a step are declared once, and all of them can be seen."""

import inspect
from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.optim.step_options import StepOptions


def test_the_options_of_a_step_are_arguments_of_the_trainer_with_the_same_defaults():
    arguments = inspect.signature(st.Trainer).parameters
    declared = {each.name: None if each.default is MISSING else each.default for each in fields(StepOptions)}
    assert {name: arguments[name].default for name in declared} == declared


def test_help_names_every_option():
    text = st.Trainer.__doc__ + str(inspect.signature(st.Trainer))
    for each in fields(StepOptions):
        assert each.name in st.Trainer.__doc__
    for name in ("momentum", "betas", "eps", "weight_decay", "nesterov"):
        assert name in text


def test_an_option_reaches_the_step():
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu", l2=0.5, clip_grad_norm=1.0, momentum=None)
    assert trainer._learner.l2 == 0.5
    assert trainer._learner.clipping.norm == 1.0


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown argument 'clip_gradnorm'.*did you mean 'clip_grad_norm'\?"):
        st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu", clip_gradnorm=1.0)
    with pytest.raises(UsageError, match="adam takes no 'dampening'"):
        st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu", dampening=1.0)


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: st.StreamLoader(None, batchsize=2), "batch_size"),
        (lambda: st.plan(None, batchsize=2), "batch_size"),
        (lambda: st.compare(None, None, max_epoch=2), "max_epochs"),
        (lambda: st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu").fit(None, max_step=2), "max_steps"),
    ],
)
def test_functions_name_the_nearest_argument(call, near):
    with pytest.raises(UsageError, match=rf"unknown argument .*did you mean '{near}'\?"):
        call()


def test_an_option_of_one_optimizer_is_passed_on():
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu", optimizer="rmsprop", alpha=0.5)
    assert isinstance(trainer.optimizer, torch.optim.RMSprop)
    assert trainer.optimizer.defaults["alpha"] == 0.5


def test_a_trainer_says_in_a_line_what_it_is(tmp_path):
    data = st.ingest({"x": np.ones((20, 2), np.float32), "y": np.zeros(20, np.float32)}, tmp_path / "d.zarr")
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu")
    trainer.fit(data, batch_size=10, max_epochs=3, progress=False)
    assert repr(trainer) == "Trainer(Linear, 3 weights, mse, adam lr 0.001, batch rule: epoch 3)"


def test_an_option_of_an_optimizer_is_not_taken_for_a_misspelt_one():
    trainer = st.Trainer(nn.Linear(2, 1), loss="mse", device="cpu", optimizer="rprop", etas=(0.5, 1.2))
    assert trainer.optimizer.defaults["etas"] == (0.5, 1.2)
