"""The processes of a training: ranks, workers of a DataLoader, and what stays in one process."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType
from typing import Any, ClassVar, Final, NoReturn, SupportsIndex

from streamtrain.errors import StreamtrainWarning, UsageError
from streamtrain.shuffle.share import Rank
from streamtrain.system.arguments import check_int

_told: list[int] = []
_READERS: Final = ("streamtrain.", "torch.utils.data", "accelerate.")


def told_rank(rank: int | None, world_size: int | None) -> Rank | None:
    """Check a rank and a world size that were given; None where neither was."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise UsageError(
            f"rank is {rank} and world_size is {world_size}",
            fix="both of them, or neither: torch.distributed is then asked when an epoch begins",
        )
    check_int(world_size, "world_size")
    check_int(rank, "rank", least=0)
    if rank >= world_size:
        raise UsageError(f"rank is {rank} of a world_size of {world_size}", why="Ranks count from 0")
    return Rank(rank=rank, world_size=world_size)


def present_rank() -> Rank:
    """Ask torch.distributed for this process's rank; one of one where there is no group."""
    # No group exists unless somebody has imported it.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return Rank()
    return Rank(rank=distributed.get_rank(), world_size=distributed.get_world_size())


def refuse_worker() -> None:
    """Refuse to read in a worker process of torch's DataLoader, where each worker would read all samples."""
    # A worker has imported it.
    data: Any = sys.modules.get("torch.utils.data")
    worker = data and data.get_worker_info()
    if worker is not None:
        raise UsageError(
            f"a StreamLoader is iterated in worker {worker.id} of {worker.num_workers} of a DataLoader",
            why="It reads with threads of its own, and every worker would read all samples",
            fix="iterate the StreamLoader itself, or num_workers=0; a Dataset's rows can be read in workers",
        )


def refuse_reader(n_ranks: int) -> None:
    """Refuse to be read where batches would be put together once more, or one rank would read for all."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (room := str(frame.f_globals.get("__name__"))).startswith(_READERS):
        # A DataLoader tells what it reads nothing of itself, but it is among the callers.
        if room == "torch.utils.data._utils.fetch" and frame.f_locals.get("auto_collation"):
            raise UsageError(
                "a DataLoader would put several batches of the StreamLoader together",
                why="What it is given are whole batches, and its batch_size counts those",
                fix="DataLoader(loader, batch_size=None), or iterate the StreamLoader itself",
            )
        if n_ranks > 1 and type(frame.f_locals.get("self")).__name__ == "DataLoaderDispatcher":
            raise UsageError(
                f"accelerate reads this DataLoader in one process for all {n_ranks}",
                why="A StreamLoader has its own process's share of every batch, and not those of the others",
                fix="give prepare() the StreamLoader itself, or leave it out there",
            )
        frame = frame.f_back


def warn_of_ranks() -> None:
    """Warn once per process that a launcher named several ranks, which no process group joins."""
    named = os.environ.get("WORLD_SIZE", "")
    n_ranks = int(named) if named.isdecimal() and "RANK" in os.environ else 1
    if not _told and n_ranks > 1 and present_rank() == Rank():
        _told.append(n_ranks)
        warnings.warn(
            StreamtrainWarning(
                f"RANK and WORLD_SIZE name {n_ranks} processes, but torch.distributed has no process group: "
                "each process reads all samples, in the same order",
                fix="torch.distributed.init_process_group() before the first epoch, or rank= and world_size=",
            ),
            stacklevel=4,
        )


class OfOneProcess:
    """An object with threads, memory or a device behind it; pickling and copying are refused, with what to do instead.

    Spawned processes, ``copy.deepcopy`` and ``torch.save`` all pickle.
    """

    _instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise UsageError(
            f"a {name} cannot be pickled or copied",
            why="It owns threads, memory and a device of this process",
            fix=self._instead,
        )
