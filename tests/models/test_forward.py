"""A model's forward pass, in a narrower precision and compiled; its names and weights stay the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from streamtrain import Trainer
from streamtrain.errors import ResourceError
from streamtrain.models.forward import make_forward

CPU = torch.device("cpu")


def test_autocast_gives_float32_and_float32_gradients():
    model = nn.Linear(4, 2)
    x = torch.ones(3, 4)
    output = make_forward(model, device=CPU, autocast=torch.bfloat16)(x)
    assert output.dtype is torch.float32
    assert torch.equal(output, output.bfloat16().float())
    assert not torch.equal(output, model(x))
    output.sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.dtype is torch.float32


def test_a_compiled_model_has_the_names_it_had(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    trainer = Trainer(nn.Linear(4, 2), loss="mse", compile=True, device="cpu")
    assert list(trainer.model.state_dict()) == ["weight", "bias"]
    assert trainer.model is trainer._normalized_model.model
    assert len(list(trainer._normalized_model.parameters())) == 2


def test_no_compiler_is_said_plainly(monkeypatch):
    class Broken(Exception):
        pass

    Broken.__module__ = "torch._inductor.exc"

    def fails(*inputs):
        raise Broken("No working C++ compiler found in\nhere")

    monkeypatch.setattr(torch, "compile", lambda model: fails)
    run = make_forward(nn.Linear(4, 2), device=CPU, compiled=True)
    with pytest.raises(ResourceError, match="the model cannot be compiled: No working C") as caught:
        run(torch.ones(1, 4))
    assert "or train without it: compile=False" in str(caught.value)


def test_what_the_model_takes_and_the_compiler_does_not_is_said_plainly(monkeypatch):
    def fails(*inputs):
        raise torch._dynamo.exc.TorchRuntimeError("RuntimeError when making fake tensor call")

    monkeypatch.setattr(torch, "compile", lambda model: fails)
    with pytest.raises(ResourceError, match="the model cannot be compiled: RuntimeError when") as caught:
        make_forward(nn.Linear(4, 2), device=CPU, compiled=True)(torch.ones(1, 4))
    assert caught.value.fix == "train without it: compile=False"


def test_a_model_that_does_not_fit_is_no_missing_compiler():
    # The real one, in a process of its own; it comes to this before it needs a C++ compiler.
    code = """
    import numpy as np, torch, streamtrain as st
    torch.set_num_threads(1)
    trainer = st.Trainer(torch.nn.Linear(5, 3), loss="cross_entropy", compile=True, device="cpu")
    rows = {"x": np.ones((8, 4), np.float32), "y": np.zeros(8, np.int64)}
    try:
        trainer.check(rows)
    except st.UsageError as error:
        print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *_, error = done.stdout.strip().splitlines()
    assert head == "the model does not fit the data"
    assert "error  mat1 and mat2 shapes cannot be multiplied" in error
    assert error.endswith("Fix: a model that takes samples of shape (4,).")
    assert "Traceback" not in done.stderr


def test_an_error_of_the_models_own_stays_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    run = make_forward(nn.Linear(4, 2), device=CPU, compiled=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(torch.ones(1, 3))


def test_a_compiled_run_is_the_plain_one_to_rounding():
    # In a process of its own: the compiler leaves threads behind, and files in a cache of its own.
    code = """
    import numpy as np, tempfile, torch, streamtrain as st
    from torch import nn
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        data = st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, folder + "/d.zarr")
        found = []
        for compiled in (False, True):
            torch.manual_seed(0)
            trainer = st.Trainer(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), loss="cross_entropy",
                                 optimizer="sgd", compile=compiled, device="cpu")
            with st.StreamLoader(data, batch_size=32, memory="8MB") as loader:
                trainer.fit(loader, max_epochs=2, checkpoint=f"{folder}/{compiled}")
                resumes = st.Trainer(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), loss="cross_entropy",
                                     optimizer="sgd", compile=compiled, device="cpu")
                resumes.fit(loader, max_epochs=3, checkpoint=f"{folder}/{compiled}", resume="auto")
                trainer.fit(loader, max_epochs=3)
            for name, weight in trainer.model.state_dict().items():
                assert torch.equal(weight, resumes.model.state_dict()[name]), name
            found.append(trainer.model.state_dict())
        for name, weight in found[0].items():
            assert torch.allclose(weight, found[1][name], rtol=1e-5, atol=1e-6), name
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        assert "the model cannot be compiled" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
