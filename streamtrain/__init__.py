"""Train PyTorch models on datasets larger than memory, streamed from a sharded Zarr store within a byte budget.

The smallest complete example:

>>> import numpy as np, tempfile, torch
>>> import streamtrain as st
>>> images, labels = np.random.default_rng(0).random((100, 784), dtype="float32"), np.arange(100) % 10
>>> dataset = st.ingest({"x": images, "y": labels}, tempfile.mkdtemp() + "/digits.zarr")
>>> with st.StreamLoader(dataset, batch_size=20, memory="64MB", seed=0) as loader:
...     trainer = st.Trainer(torch.nn.Linear(784, 10), loss="cross_entropy", optimizer="adam", lr=1e-3)
...     history = trainer.fit(loader, max_epochs=2)
>>> [epoch.counts.n_steps for epoch in history]
[5, 10]

Importing the package imports neither torch nor zarr; a name brings what it needs when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamtrain.comparison.compare import compare
    from streamtrain.diagnostics.history_plot import plot
    from streamtrain.errors import (
        BudgetError,
        CheckpointError,
        DamagedBlock,
        DamagedSample,
        DatasetError,
        DeviceError,
        DivergedError,
        InputError,
        LockedError,
        MissingArgument,
        NotASequence,
        OutOfRange,
        ResourceError,
        StallError,
        StreamtrainError,
        StreamtrainWarning,
        UnknownArgument,
        UnknownName,
        UsageError,
    )
    from streamtrain.ingestion.ingest import ingest
    from streamtrain.ingestion.rows import rows
    from streamtrain.loader.augmentation import normal, uniform
    from streamtrain.loader.batch import Batch
    from streamtrain.loader.decode.images import Images
    from streamtrain.loader.plan import plan
    from streamtrain.loader.stream_loader import StreamLoader
    from streamtrain.optim.schedules import Schedule
    from streamtrain.store.dataset import Dataset
    from streamtrain.store.dataset import open_dataset as open
    from streamtrain.store.layout import Field, Layout
    from streamtrain.store.verify import repair, verify
    from streamtrain.training.engines.hf_trainer import HFLoaderState
    from streamtrain.training.inference.model import load
    from streamtrain.training.records.history import History
    from streamtrain.training.trainer import Trainer

if os.name != "posix":
    raise ImportError("streamtrain runs on Linux and macOS; on Windows, install it in the Subsystem for Linux (WSL 2)")

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BudgetError",
    "CheckpointError",
    "DamagedBlock",
    "DamagedSample",
    "Dataset",
    "DatasetError",
    "DeviceError",
    "DivergedError",
    "Field",
    "HFLoaderState",
    "History",
    "Images",
    "InputError",
    "Layout",
    "LockedError",
    "MissingArgument",
    "NotASequence",
    "OutOfRange",
    "ResourceError",
    "Schedule",
    "StallError",
    "StreamLoader",
    "StreamtrainError",
    "StreamtrainWarning",
    "Trainer",
    "UnknownArgument",
    "UnknownName",
    "UsageError",
    "__version__",
    "compare",
    "ingest",
    "load",
    "normal",
    "open",
    "plan",
    "plot",
    "repair",
    "rows",
    "uniform",
    "verify",
]

# Where a name lives; the errors, which are most of them, need no line each.
_HOMES = {
    "Batch": "loader.batch",
    "Dataset": "store.dataset",
    "Field": "store.layout",
    "HFLoaderState": "training.engines.hf_trainer",
    "History": "training.records.history",
    "Images": "loader.decode.images",
    "Layout": "store.layout",
    "Schedule": "optim.schedules",
    "StreamLoader": "loader.stream_loader",
    "Trainer": "training.trainer",
    "compare": "comparison.compare",
    "ingest": "ingestion.ingest",
    "load": "training.inference.model",
    "normal": "loader.augmentation",
    "open": "store.dataset",
    "plan": "loader.plan",
    "plot": "diagnostics.history_plot",
    "repair": "store.verify",
    "rows": "ingestion.rows",
    "uniform": "loader.augmentation",
    "verify": "store.verify",
}
_NAMES_AT_HOME = {"open": "open_dataset"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, _NAMES_AT_HOME.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
