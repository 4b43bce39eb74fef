"""The loader in Lightning's Trainer: alone, in a DataModule, under DDP, and in its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from engine_runs import N_BATCHES, Ids, Net, assert_each_once, call_named, ids_in_order, new_loader, run

AT = 50
N_RANKS = int(os.environ.get("WORLD_SIZE", "1"))  # which a Trainer of Lightning removes at its end


def new_trainer(**how: Any) -> Any:
    from lightning import Trainer

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = "ddp" if N_RANKS > 1 else "auto"
    how = {"max_epochs": 1, "enable_checkpointing": False, **how}
    return Trainer(accelerator="cpu", devices=N_RANKS, strategy=strategy, **quiet, **how)


def new_module() -> Any:
    import torch
    from lightning import LightningModule
    from torch.nn.functional import cross_entropy

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, _: int) -> Any:
            return cross_entropy(self.net(batch.x), batch.y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def train(data: str) -> dict[str, list[Ids]]:
    """Train for two epochs in each of the ways."""
    from lightning import LightningDataModule
    from torch.utils.data import DataLoader

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader

    seen = {}
    for how in ("loader", "module", "around"):
        module = new_module()
        with new_loader(data) as loader:
            source = {"loader": loader, "module": Data(), "around": DataLoader(loader, batch_size=None)}[how]
            new_trainer(max_epochs=2).fit(module, source)
        seen[how] = [module.net.seen[:N_BATCHES], module.net.seen[N_BATCHES:]]
    return seen


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_each_sample_comes_once_an_epoch(data: str, tmp_path: Path, n_ranks: int) -> None:
    told = run(train, n_ranks, tmp_path, data)
    for how in told[0]:
        for epoch in range(2):
            assert_each_once([of_rank[how][epoch] for of_rank in told])
            assert told[0][how][epoch] == ids_in_order(data, 0, n_ranks, epoch=epoch)


def train_parts(data: str) -> dict[str, Ids]:
    seen = {}
    for limit in ("limit_train_batches", "overfit_batches"):
        module = new_module()
        with new_loader(data, reshuffle="never" if limit == "overfit_batches" else "epoch") as loader:
            new_trainer(max_epochs=2, **{limit: 10}).fit(module, loader)
        seen[limit] = module.net.seen
    return seen


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_parts_of_an_epoch_are_its_first_batches(data: str, tmp_path: Path, n_ranks: int) -> None:
    for rank, seen in enumerate(run(train_parts, n_ranks, tmp_path, data)):
        orders = [ids_in_order(data, rank, n_ranks, epoch=epoch) for epoch in range(2)]
        assert seen["limit_train_batches"] == orders[0][:10] + orders[1][:10]
        assert seen["overfit_batches"] == orders[0][:10] * 2


def resume(data: str) -> dict[str, Any]:
    from lightning import Callback

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == AT:
                trainer.save_checkpoint("inside.ckpt")

    first, rest = new_module(), new_module()
    with new_loader(data) as loader:
        new_trainer(callbacks=[Save()]).fit(first, loader)
    with new_loader(data) as loader:
        trainer = new_trainer()
        trainer.fit(rest, loader, ckpt_path="inside.ckpt")
    expected = ids_in_order(data, trainer.global_rank, trainer.world_size)
    return {
        "first": first.net.seen == expected,
        "rest": rest.net.seen == expected[AT:],
        "steps": trainer.global_step,
    }


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_checkpoint_inside_an_epoch_goes_on_with_the_next_batch(data: str, tmp_path: Path, n_ranks: int) -> None:
    told = {"first": True, "rest": True, "steps": N_BATCHES}
    assert run(resume, n_ranks, tmp_path, data) == [told] * n_ranks


if __name__ == "__main__":
    call_named(globals())
