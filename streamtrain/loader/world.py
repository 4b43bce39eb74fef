"""The number of processes that train together, as torch.distributed or the launcher has it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from streamtrain.errors import StreamtrainWarning

_told: list[int] = []


def world_size() -> int:
    """Count the ranks of the default process group, else those that the launcher names, else 1."""
    # No group exists unless somebody has imported it.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    told = os.environ.get("WORLD_SIZE", "")
    return int(told) if told.isdecimal() and told != "0" else 1


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
            stacklevel=3,
        )
