"""The processes of a training: ranks, workers of a DataLoader, and what stays in one process."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, ClassVar, NoReturn, SupportsIndex

from streamtrain.errors import StreamtrainWarning, UsageError

_told: list[int] = []


def world_size() -> int:
    """Count the ranks of the default process group, else those that the launcher names, else 1."""
    # No group exists unless somebody has imported it.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    told = os.environ.get("WORLD_SIZE", "")
    return int(told) if told.isdecimal() and told != "0" else 1


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


def warn_of_ranks() -> None:
    """Warn once per process that several ranks do not share the data."""
    if not _told and (n_ranks := world_size()) > 1:
        _told.append(n_ranks)
        warnings.warn(
            StreamtrainWarning(
                f"{n_ranks} processes train together, and each reads all samples in the same order: a loader does not "
                "share its epoch between ranks yet, so the gradient is that of one process at as many times the work",
                fix="train in one process, or ingest a dataset of its own for each rank",
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
            why="Threads, memory and a device of this process are behind it",
            fix=self._instead,
        )
