"""The number of processes that train together, as torch.distributed or the launcher has it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

_told: list[int] = []


def world_size() -> int:
    """Ranks of the default process group, or as many as the launcher says; 1 where there is neither.

    Examples
    --------
    >>> world_size()
    1
    """
    # Where nobody has imported it there is no group either.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    told = os.environ.get("WORLD_SIZE", "")
    return int(told) if told.isdecimal() and told != "0" else 1


def warn_of_ranks() -> None:
    """Say once in a process that ranks do not share the data, where there are several."""
    if not _told and (n_ranks := world_size()) > 1:
        _told.append(n_ranks)
        warnings.warn(
            f"{n_ranks} processes train together, and each reads all samples in the same order: a loader does not "
            "share its epoch between ranks yet, so the gradient is that of one process at as many times the work. "
            "Train in one process, or ingest a dataset of its own for each rank",
            stacklevel=3,
        )
