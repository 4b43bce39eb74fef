"""skorch with the loader as its iterator of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runs import N_BATCHES, Ids, Net, assert_each_once, call_named, ids_in_order, new_loader, run

import streamtrain as st


def train(data: str) -> list[Ids]:
    import torch
    from skorch import NeuralNet

    dataset = st.open(data)
    seen: Ids = []
    with new_loader(data, transform=lambda batch: (batch.x, batch.y)) as loader:

        def batches(_: Any, **__: Any) -> Any:
            return loader

        loss = torch.nn.CrossEntropyLoss
        how = {"train_split": None, "iterator_train": batches, "max_epochs": 2, "verbose": 0}
        NeuralNet(Net, module__seen=seen, criterion=loss, **how).fit(dataset, None)
    return [seen[:N_BATCHES], seen[N_BATCHES:]]


def test_each_sample_comes_once_an_epoch(data: str, tmp_path: Path) -> None:
    [epochs] = run(train, 1, tmp_path, data)
    assert epochs == [ids_in_order(data, epoch=epoch) for epoch in range(2)]
    for epoch in epochs:
        assert_each_once([epoch])


def train_on_the_loader(data: str) -> str:
    import torch
    from skorch import NeuralNet

    with new_loader(data) as loader:
        net = NeuralNet(Net, criterion=torch.nn.CrossEntropyLoss, train_split=None)
        try:
            net.fit(loader, None)
        except st.UsageError as error:
            return str(error)
    return "trained"


def test_the_loader_in_place_of_a_dataset_is_refused(data: str, tmp_path: Path) -> None:
    assert "DataLoader would put several batches" in run(train_on_the_loader, 1, tmp_path, data)[0]


if __name__ == "__main__":
    call_named(globals())
