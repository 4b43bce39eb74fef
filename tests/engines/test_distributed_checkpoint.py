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


def load(data: str, path: str) -> tuple[Ids, list[float]]:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    found = parts(data)
    loader, model = found["loader"], found["model"]
    weights = get_model_state_dict(model)
    dcp.load({"model": weights, "loader": loader}, checkpoint_id=path)
    set_model_state_dict(model, weights)
    steps(loader, model, found["optimizer"])
    loader.close()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    dist.destroy_process_group()
    return model.seen, whole["layer.weight"].flatten().tolist() if whole else []


@pytest.fixture(scope="module")
def saved(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that two ranks made inside an epoch."""
    folder = tmp_path_factory.mktemp("saved")
    seen = run(save, 2, folder, data, str(folder / "checkpoint"))
    assert seen == [ids_in_order(data, rank, 2)[:AT] for rank in range(2)]
    return folder / "checkpoint"


def test_another_number_of_ranks_goes_on_with_the_next_batch(data: str, tmp_path: Path, saved: Path) -> None:
    weights = {}
    before = [sample for batch in ids_in_order(data)[:AT] for sample in batch]
    assert len(before) == AT * BATCH
    for n_ranks in (1, 2, 4):
        told = run(load, n_ranks, tmp_path, data, str(saved))
        rest = [seen for seen, _ in told]
        assert rest == [ids_in_order(data, rank, n_ranks)[AT:] for rank in range(n_ranks)]
        after = [sample for of_rank in rest for batch in of_rank for sample in batch]
        assert sorted([*before, *after]) == list(range(N))
        weights[n_ranks] = told[0][1]
    # The mean over ranks is the mean over the batch, in the uneven last batch too.
    assert len(weights[1]) == 8
    for n_ranks in (2, 4):
        assert weights[n_ranks] == pytest.approx(weights[1], abs=1e-6)


if __name__ == "__main__":
    call_named(globals())
