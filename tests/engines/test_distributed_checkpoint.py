"""A loader and a model of FSDP2 in a checkpoint of torch, taken up by other numbers of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_runs import BATCH, Ids, N, Net, call_named, ids_in_order, new_loader, run

AT = 50


def steps(loader: Any, model: Any, optimizer: Any, n: int | None = None) -> None:
    from torch.nn.functional import cross_entropy

    for number, batch in enumerate(loader, 1):
        (cross_entropy(model(batch.x), batch.y) * loader.grad_scale).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == n:
            return


def parts(data: str) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    net = Net()
    model = fully_shard(net, mesh=mesh)
    return {"loader": new_loader(data), "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def save(data: str, path: str) -> Ids:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    found = parts(data)
    loader, model = found["loader"], found["model"]
    steps(loader, model, found["optimizer"], AT)
    dcp.save({"model": get_model_state_dict(model), "loader": loader}, checkpoint_id=path)
    loader.close()
    dist.destroy_process_group()
    seen: Ids = model.seen
    return seen


def load(data: str, path: str) -> Ids:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    found = parts(data)
    loader, model = found["loader"], found["model"]
    weights = get_model_state_dict(model)
    dcp.load({"model": weights, "loader": loader}, checkpoint_id=path)
    set_model_state_dict(model, weights)
    steps(loader, model, found["optimizer"])
    loader.close()
    dist.destroy_process_group()
    seen: Ids = model.seen
    return seen


@pytest.fixture(scope="module")
def saved(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that two ranks made inside an epoch."""
    folder = tmp_path_factory.mktemp("saved")
    seen = run(save, 2, folder, data, str(folder / "checkpoint"))
    assert seen == [ids_in_order(data, rank, 2)[:AT] for rank in range(2)]
    return folder / "checkpoint"


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_another_number_of_ranks_goes_on_with_the_next_batch(
    data: str, tmp_path: Path, saved: Path, n_ranks: int
) -> None:
    rest = run(load, n_ranks, tmp_path, data, str(saved))
    assert rest == [ids_in_order(data, rank, n_ranks)[AT:] for rank in range(n_ranks)]
    before = {sample for batch in ids_in_order(data)[:AT] for sample in batch}
    after = [sample for of_rank in rest for batch in of_rank for sample in batch]
    assert len(before) == AT * BATCH
    assert sorted([*before, *after]) == list(range(N))


if __name__ == "__main__":
    call_named(globals())
