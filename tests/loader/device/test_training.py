"""Training on batches that a loader brings to the device: the same weights, and the commands ask for it."""

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain import StreamLoader, Trainer
from streamtrain.cli.inference import evaluate
from streamtrain.cli.main import main
from streamtrain.errors import DeviceError
from streamtrain.loader import shared_budget
from streamtrain.loader.device.transfer import Placement
from streamtrain.training import sized_loaders

WAYS = ("host", "device")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    y = np.arange(600) % 3
    x = np.random.default_rng(0).normal(size=(600, 5)) + y[:, None]
    return streamtrain.ingest(
        {"x": x.astype(np.float32), "y": y}, tmp_path_factory.mktemp("training") / "d.zarr", block="400B"
    )


def new_trainer(model=None):
    torch.manual_seed(0)
    return Trainer(model or torch.nn.Linear(5, 3), loss="cross_entropy", optimizer="adam", device="cpu")


@pytest.mark.parametrize("update", ["batch", "epoch"])
@pytest.mark.parametrize("pool", WAYS)
def test_a_model_learns_the_same(dataset, pool, update):
    weights, losses = [], []
    for device in (None, Placement(device="cpu", pool=pool)):
        torch.manual_seed(0)
        trainer = Trainer(torch.nn.Linear(5, 3), loss="cross_entropy", update=update, device="cpu")
        with StreamLoader(dataset, batch_size=32, memory="32MB", device=device) as loader:
            trainer.fit(loader, max_epochs=2, val=loader, progress=False)
            losses.append(trainer.evaluate(loader).loss)
        weights.append(trainer.model.weight.detach())
    assert torch.equal(*weights)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("act", ["fit", "evaluate"])
def test_a_device_that_fills_up_in_a_step_names_a_batch_size_and_the_training_goes_on(dataset, act):
    class Greedy(torch.nn.Linear):
        greed = 0

        def forward(self, x):
            if self.greed and len(x) == 64:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(x)

    trainer = new_trainer(Greedy(5, 3))
    with StreamLoader(dataset, batch_size=64, memory="32MB") as loader:
        trainer.fit(loader, max_epochs=1, progress=False)
        before, counts = trainer.model.weight.detach().clone(), trainer.counts
        trainer.model.greed = 1
        with pytest.raises(DeviceError, match="out of memory at batch_size 64") as caught:
            trainer.fit(loader, max_epochs=2, progress=False) if act == "fit" else trainer.evaluate(loader)
        assert caught.value.exit_code == 5
        assert torch.equal(trainer.model.weight, before)
        assert trainer.counts == counts
        trainer.model.greed = 0
        trainer.fit(loader, max_epochs=2, progress=False)
    assert trainer.counts.n_epochs == 2


@pytest.mark.parametrize("act", ["check", "working_memory"])
def test_a_device_that_fills_up_in_the_rehearsal_is_no_misfit(dataset, act):
    class Greedy(torch.nn.Linear):
        def forward(self, x):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with (
        pytest.raises(DeviceError, match="out of memory at batch_size"),
        getattr(new_trainer(Greedy(5, 3)), act)(dataset[:9]),
    ):
        pass


def test_the_commands_bring_their_batches_to_the_device(dataset, monkeypatch, tmp_path, capsys):
    asked = []

    def loader(*arguments, device, **options):
        asked.append(device)
        return StreamLoader(*arguments, device=Placement(device=device, pool="host"), **options)

    for module in (sized_loaders, shared_budget, evaluate):
        monkeypatch.setattr(module, "StreamLoader", loader)
    run, data = str(tmp_path / "run"), str(dataset.path)
    options = ["--model", "linear", "--epochs", "1", "--device", "cpu", "--memory", "64MB", "--out", run]
    assert main(["train", data, *options, "--val", data]) == 0, capsys.readouterr().err
    assert main(["evaluate", run, data, "--device", "cpu"]) == 0, capsys.readouterr().err
    assert list(map(str, asked)) == ["cpu"] * 3
