"""Trainings by other people's trainers, each in processes of its own, which tell the samples that they took."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes_of_ranks import ended, started
from torch import Tensor, nn

import streamtrain as st

N, BATCH = 20_013, 128
N_BATCHES = 157
SHARES = {1: [20_013], 2: [10_007, 10_006]}
"""The samples of each rank in an epoch, by the number of ranks."""
Ids = list[list[int]]
"""The samples of each batch."""
SUPPORT = Path(__file__).parent


def make_data(path: Path) -> None:
    """Store samples that begin with their number."""
    x = np.stack([np.arange(N), np.arange(N) % 7], axis=1).astype(np.float32)
    st.ingest({"x": x, "y": np.arange(N) % 4}, path, block=100 * 16, progress=False)


def new_loader(data: str, **how: Any) -> st.StreamLoader:
    return st.StreamLoader(data, batch_size=BATCH, memory="32MB", seed=0, **how)


class Net(nn.Module):
    """A small net, which writes down the samples that it is trained on."""

    def __init__(self, seen: Ids | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 4)
        self.seen = [] if seen is None else seen

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(ids_of(x))
        output: Tensor = self.layer(x / N)
        return output


def ids_of(x: Tensor) -> list[int]:
    return [int(sample) for sample in x[:, 0].tolist()]


def ids_in_order(data: str, rank: int = 0, world_size: int = 1, *, epoch: int = 0) -> Ids:
    """The batches of an epoch as the loader alone has them."""
    with new_loader(data, rank=rank, world_size=world_size) as loader:
        loader.set_epoch(epoch)
        return [ids_of(batch.x) for batch in loader]


def run(function: Callable[..., Any], n_ranks: int, folder: Path, *words: str, seconds: float = 240) -> list[Any]:
    """Call a function of a test file in ranks of their own; return what each of them returned."""
    told = _start(function, n_ranks, folder, words, seconds)
    for rank, (code, out, err) in enumerate(told):
        assert code == 0, f"rank {rank}: {out}{err}"
    return [json.loads((folder / f"{function.__name__}.{rank}.json").read_text()) for rank in range(n_ranks)]


def run_failing(function: Callable[..., Any], n_ranks: int, folder: Path, *words: str, seconds: float = 240) -> str:
    """Call a function that fails in every rank; return the errors of the first."""
    told = _start(function, n_ranks, folder, words, seconds)
    assert all(code != 0 for code, *_ in told), told
    return told[0][2]


def _start(
    function: Callable[..., Any], n_ranks: int, folder: Path, words: tuple[str, ...], seconds: float
) -> list[tuple[int, str, str]]:
    command = [sys.modules[function.__module__].__file__ or "", function.__name__, *words]
    # Nothing is asked of a hub, and no progress is drawn.
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "LOCAL_WORLD_SIZE": str(n_ranks)}
    with started(command, n_ranks, folder, PYTHONPATH=str(SUPPORT), **quiet) as running:
        return ended(running, seconds)


def call_named(functions: Mapping[str, Any]) -> None:
    """Call the function that the command line names, and keep what it returns."""
    name, *words = sys.argv[1:]
    torch.set_num_threads(1)
    result = functions[name](*words)
    Path(f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(result))


def assert_each_once(by_rank: list[Ids]) -> None:
    """Over all ranks each sample comes once, and ranks have the shares of an epoch."""
    flat = [[sample for batch in batches for sample in batch] for batches in by_rank]
    assert [len(samples) for samples in flat] == SHARES[len(by_rank)]
    assert sorted(sample for samples in flat for sample in samples) == list(range(N))
