"""A DataLoader of torch around the loader, in the processes of a group."""

from pathlib import Path

import pytest
from engine_runs import Ids, assert_each_once, call_named, ids_of, new_loader, run


def read(data: str) -> Ids:
    import torch.distributed as dist
    import torch.distributed.nn.functional  # noqa: F401 -- before the group, which it would keep alive
    from torch.utils.data import DataLoader

    with new_loader(data) as loader:
        around = DataLoader(loader, batch_size=None)
        dist.init_process_group("gloo")  # later than the loader, as engines do it
        seen = [ids_of(batch.x) for batch in around]
        dist.destroy_process_group()
    return seen


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_each_sample_comes_once(data: str, tmp_path: Path, n_ranks: int) -> None:
    assert_each_once(run(read, n_ranks, tmp_path, data))


if __name__ == "__main__":
    call_named(globals())
