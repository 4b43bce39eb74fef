"""Worlds of what a training reads and where it writes: batches, streams, processes and places."""

from __future__ import annotations

import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import streamtrain as st
from streamtrain.system.syscalls import Syscalls
from tests.advice.training import fit, net
from tests.advice.world import World, X, Y, changed_arguments, world


@world("training/batch_stream.py:last_batch: drop_last=True, or {}")
def a_last_batch_of_one(w: World) -> None:
    data, model = w.dataset(), batch_norm()
    w.followed(fit, data, model, batch_size=59)
    (change,) = changed_arguments(w.warned(fit, data, model, batch_size=59, max_epochs=None, max_steps=1))[1:]
    fit(data, model, **change)


def batch_norm() -> nn.Module:
    return nn.Sequential(net(), nn.BatchNorm1d(3))


@world(
    "training/loop.py:EpochLoop._lone_sample: update='batch'",
    "training/loop.py:EpochLoop._lone_sample: batches of more samples (batch_size=)",
    "training/preflight.py:too_small: {}, or a model without layers over the batch",
)
def batches_of_one(w: World) -> None:
    data = w.dataset()
    w.followed(fit, data, batch_norm(), update="sample", optimizer="sgd")
    w.refused(fit, data, batch_norm(), batch_size=1)
    fit(data, batch_norm(), batch_size=20)
    fit(data, nn.Sequential(net(), nn.LayerNorm(3)), batch_size=1)


@world("training/loop.py:EpochLoop._check_once: a larger batch_size=")
def a_batch_of_which_damage_leaves_one(w: World) -> None:
    x = np.arange(160, dtype="f4").reshape(40, 4)
    w.dataset("d.zarr", x=x, y=Y[:40], block=3 * (16 + 8), codec="none")
    # Samples 12 to 23 are lost: of the second batch of 11, one is left.
    file = next(f for f in Path("d.zarr").rglob("*") if f.is_file() and x[12].tobytes() in f.read_bytes())
    content = bytearray(file.read_bytes())
    for first in range(12, 24, 3):
        content[content.find(x[first].tobytes())] ^= 255
    file.write_bytes(content)
    warnings.simplefilter("ignore")
    how = {"shuffle": False, "on_bad_block": "quarantine"}
    w.refused(fit, st.open("d.zarr"), batch_norm(), batch_size=11, **how)
    fit(st.open("d.zarr"), batch_norm(), batch_size=20, **how)


@world(
    "system/arguments.py:check_dataset: give a dataset or its path; arrays are ingested first",
)
def data_of_another_kind(w: World) -> None:
    data, trainer = w.dataset(), st.Trainer(net(), loss="cross_entropy", device="cpu")
    w.refused(trainer.fit, torch.utils.data.DataLoader([X]), max_epochs=1)  # type: ignore[arg-type]
    trainer.fit(data, max_epochs=1, progress=False, memory="16MB")
    w.refused(st.StreamLoader, {"x": X})
    st.StreamLoader(st.ingest({"x": X}, "x.zarr", progress=False), memory="16MB").close()
    st.StreamLoader("x.zarr", memory="16MB").close()


@world(
    "loader/world.py:refuse_worker: iterate the StreamLoader itself, or num_workers=0; a Dataset's rows can be read in workers"
)
def workers_of_a_data_loader(w: World) -> None:
    class Batches(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader)

    def read(data: Any, **how: Any) -> None:
        # A worker is a process of its own, whose loader this world cannot hear.
        with w.monkeypatch.context() as patch:
            if how["num_workers"]:
                worker = types.SimpleNamespace(id=0, num_workers=1)
                patch.setattr(torch.utils.data, "get_worker_info", lambda: worker)
            list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=0))

    data = w.dataset()
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        w.refused(read, Batches(), num_workers=1)
        read(Batches(), num_workers=0)
        list(loader)
    read(data, num_workers=1)


@world(
    "loader/world.py:refuse_reader: DataLoader(loader, batch_size=None), or iterate the StreamLoader itself",
    "loader/world.py:refuse_reader: give prepare() the StreamLoader itself, or leave it out there",
    "loader/augmentation.py:_by_name: return batch._replace(...) or a dict from it",
    "training/engines/hf_trainer.py:HFLoaderState.__new__: the StreamLoader of the training",
)
def readers_of_other_people(w: World) -> None:
    class DataLoaderDispatcher(torch.utils.data.DataLoader[Any]):
        """It goes by the name of accelerate's, and reads in one process of two as that does."""

    def read(data: Any, **how: Any) -> None:
        list(DataLoaderDispatcher(data, **how))

    data = w.dataset()
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        w.refused(read, loader)
        read(loader, batch_size=None)
        w.refused(st.HFLoaderState, data)
        st.HFLoaderState(loader)
        list(loader)
    with st.StreamLoader(data, batch_size=20, memory="16MB", rank=0, world_size=2, groups=2) as loader:
        w.refused(read, loader, batch_size=None)
        list(loader)
    made = {"tuples": lambda batch: (batch.x, batch.y), "dicts": lambda batch: {"x": batch.x}}
    for name, transform in {**made, "batches": lambda batch: batch._replace(x=batch.x + 1)}.items():
        with st.StreamLoader(data, batch_size=20, memory="16MB", as_dict=True, transform=transform) as loader:
            if name == "tuples":
                w.refused(list, loader)
            else:
                list(loader)


@world(
    "loader/stream_loader.py:StreamLoader: pass the dataset, which can be pickled, and make a loader of it there",
    "training/trainer.py:Trainer: train here, and pass its model or its checkpoints",
    "store/dataset.py:_opened_again: open it again, and pass that on",
    "store/dataset.py:replaced: open it again",
)
def what_is_handed_to_another_process(w: World) -> None:
    data = w.dataset()
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        w.refused(pickle.dumps, loader)
    fit(pickle.loads(pickle.dumps(data)))
    trainer = fit(data, checkpoint=w.folder / "run")
    w.refused(pickle.dumps, trainer)
    pickle.dumps(trainer.model)
    fit(data, on=trainer, checkpoint=w.folder / "next", max_epochs=2)
    fit(data, checkpoint=w.folder / "run", resume="auto", max_epochs=2)
    handed, still_open = pickle.dumps(data), st.open("d.zarr")
    w.dataset(y=Y[::-1], overwrite=True)
    w.refused(pickle.loads, handed)
    pickle.loads(pickle.dumps(st.open("d.zarr")))
    w.refused(still_open.__getitem__, slice(0, 60))
    st.open("d.zarr")[0:60]


@world("models/forward.py:check_model: the model that was exported")
def an_exported_model(w: World) -> None:
    data, model = w.dataset(), net()
    w.refused(fit, data, torch.export.export(model, (torch.zeros(20, 4),)).module())
    fit(data, model)


@world(
    "training/run/run_folder.py:_try_folder: another checkpoint=",
    "training/run/run_folder.py:_try_folder: choose another path",
    "training/run/run_folder.py:check_room: free some space, or {}",
)
def places_for_a_run(w: World) -> None:
    data = w.dataset()
    Path("file").write_text("")
    w.refused(fit, data, checkpoint="d.zarr/run")
    w.refused(fit, data, checkpoint="file/run")
    fit(data, checkpoint="run")
    for free_bytes, hear in ((10, w.refused), (100, w.warned)):
        with w.monkeypatch.context() as patch:
            patch.setattr(
                Syscalls,
                "free",
                lambda self, folder, n=free_bytes: (n, 9) if "other" not in str(folder) else (10**9, 9),
            )
            hear(fit, data, checkpoint=f"full/{free_bytes}", optimizer="sgd")
            Path("other").mkdir(exist_ok=True)
            fit(data, checkpoint=f"other/{free_bytes}", optimizer="sgd")
        fit(data, checkpoint=f"freed/{free_bytes}", optimizer="sgd")
