"""Every argument of the public face with every wrong value: an error of ours, or it works; and soon."""

from __future__ import annotations

import inspect
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import nn
from wrong_values import WRONG, OwnError

import streamtrain as st

SECONDS = 10
ROWS = {"x": np.arange(24, dtype=np.float32).reshape(8, 3) / 24, "y": np.arange(8) % 3}


@contextmanager
def watched() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    dataset = st.ingest(ROWS, tmp_path_factory.mktemp("data") / "d.zarr", block=64, codec="none")
    # The first optimizer, and the first comparison without data, import torch's compiler, which takes seconds.
    trained(dataset)
    assert (torch.ones(1, device="meta") == 1).device.type == "meta"
    return dataset


def loader_of(data: st.Dataset, **given: Any) -> st.StreamLoader:
    return st.StreamLoader(**{"dataset": data, "batch_size": 4, "memory": "4MB", **given})


def loaded(data: st.Dataset, **given: Any) -> None:
    with loader_of(data, **given) as loader:
        list(loader)


def trained(data: st.Dataset, **given: Any) -> None:
    options: dict[str, Any] = {"model": nn.Linear(3, 3), "loss": "cross_entropy", "optimizer": "sgd"}
    trainer = st.Trainer(**(options | given))
    with loader_of(data) as loader:
        trainer.fit(loader, max_steps=2)
        trainer.evaluate(loader)


def fitted(data: st.Dataset, **given: Any) -> None:
    trainer = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", optimizer="sgd")
    with loader_of(data) as loader:
        trainer.fit(**{"loader": loader, "max_steps": 2, "max_epochs": 1, "progress": False, **given})


def fitted_data(data: st.Dataset, **given: Any) -> None:
    trainer = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", optimizer="sgd")
    trainer.fit(**{"loader": data, "max_steps": 2, "progress": False, "memory": "4MB", **given})


def resumed(data: st.Dataset, **given: Any) -> None:
    fitted(data, checkpoint="run")
    fitted(data, **{"checkpoint": "run", "resume": "auto", "max_steps": 3, **given})


def of_adam(data: st.Dataset, **given: Any) -> None:
    trained(data, optimizer="adam", **given)


def by_sample(data: st.Dataset, **given: Any) -> None:
    trained(data, update="sample", **given)


def of_lbfgs(data: st.Dataset, **given: Any) -> None:
    trained(data, **{"optimizer": "lbfgs", "update": "epoch", **given})


def scheduled(data: st.Dataset, **given: Any) -> None:
    trained(data, schedule=st.Schedule(**{"name": "step", "options": {"step_size": 1}, **given}))


def scheduled_option(data: st.Dataset, **given: Any) -> None:
    trained(data, schedule=st.Schedule(name="step", options={"step_size": 1, "gamma": 0.5, **given}))


def evaluated(data: st.Dataset, **given: Any) -> None:
    st.Trainer(nn.Linear(3, 3), loss="cross_entropy").evaluate(**given)


def predicted(dataset: st.Dataset, **given: Any) -> None:
    trainer = st.Trainer(nn.Linear(3, 3), loss="cross_entropy")
    trainer.fit(dataset, max_steps=1, memory="4MB", batch_size=4)
    trainer.predict(**{"data": ROWS, "memory": "4MB", **given})
    list(trainer.iter_predict(**{"data": ROWS, "memory": "4MB", **{n: v for n, v in given.items() if n in OF_PARTS}}))


def loaded_model(data: st.Dataset, **given: Any) -> None:
    fitted(data, checkpoint="run")
    st.load(**{"run": "run", "model": nn.Linear(3, 3), **given})


def raw_rows(data: st.Dataset, **given: Any) -> None:
    list(st.rows(**{"source": ROWS, "like": data, **given}))


def set_epoch(data: st.Dataset, **given: Any) -> None:
    with loader_of(data) as loader:
        loader.set_epoch(**given)


def load_state(data: st.Dataset, **given: Any) -> None:
    with loader_of(data) as loader:
        loader.load_state_dict(**given)


def load_state_entry(data: st.Dataset, **given: Any) -> None:
    with loader_of(data) as loader:
        loader.load_state_dict(loader.state_dict() | given)
        list(loader)


def ingested(data: st.Dataset, **given: Any) -> None:
    st.ingest(**{"source": ROWS, "dest": "new.zarr", "progress": False, **given})


def ingested_field(data: st.Dataset, **given: Any) -> None:
    ingested(data, source=ROWS | given)


def ingested_stream(data: st.Dataset, **given: Any) -> None:
    ingested(data, source=iter([ROWS | given, ROWS]))


def ingested_raw(data: st.Dataset, **given: Any) -> None:
    Path("a.bin").write_bytes(bytes(96))
    ingested(data, **{"source": "a.bin", "dtype": "float32", "shape": (3,), **given})


def ingested_table(data: st.Dataset, **given: Any) -> None:
    Path("a.csv").write_text("a,b,c\n1,2,x\n3,4,y\n")
    ingested(data, **{"source": "a.csv", "labels": "c", **given})


def indexed(data: st.Dataset, **given: Any) -> None:
    data[given["rows"]]


def compared(data: st.Dataset, **given: Any) -> None:
    few = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "batch_size": 4, "memory": "4MB"}
    st.compare(**{"model": nn.Linear(3, 3), "dataset": data, **few, **given})


def drawn(data: st.Dataset, **given: Any) -> None:
    st.uniform(**{"keys": torch.arange(2), "shape": (2,), **given})
    st.normal(**{"keys": torch.arange(2), "shape": (2,), **given})


def plain(function: Callable[..., object], **usual: Any) -> Callable[..., None]:
    def call(data: st.Dataset, **given: Any) -> None:
        function(**{**usual, **given})

    return call


def names(function: Callable[..., object], but: str = "") -> list[str]:
    kinds = inspect.signature(function).parameters.values()
    return [
        each.name for each in kinds if each.kind is not each.VAR_KEYWORD and each.name not in ("self", *but.split())
    ]


OF_RAW = ["dtype", "shape", "offset", "labels", "fields"]
OF_TABLE = ["columns", "labels", "classes", "header", "names", "delimiter", "encoding", "na_values"]
OF_TABLE += ["fields", "dtype", "shape"]
OF_PARTS = ["data", "probabilities", "batch_size", "memory", "rows"]
OF_SGD = ["momentum", "nesterov", "weight_decay", "dampening", "maximize", "foreach", "fused", "differentiable"]
STATE = [
    "version",
    "dataset",
    "epoch",
    "batch",
    "lanes",
    "groups",
    "seed",
    "batch_size",
    "shuffle",
    "order",
    "drop_last",
]

CALLS: Final[Mapping[str, tuple[Callable[..., None], list[str]]]] = {
    "ingest": (ingested, names(st.ingest)),
    "ingest, a field": (ingested_field, ["x", "y", "z"]),
    "ingest, a field of a stream": (ingested_stream, ["x", "y", "z"]),
    "ingest, raw": (ingested_raw, OF_RAW),
    "ingest, a table": (ingested_table, OF_TABLE),
    "open": (plain(st.open), ["path"]),
    "verify": (plain(st.verify, path="nowhere"), names(st.verify)),
    "repair": (plain(st.repair, path="nowhere"), names(st.repair)),
    "Dataset[]": (indexed, ["rows"]),
    "StreamLoader": (loaded, names(st.StreamLoader)),
    "set_epoch": (set_epoch, ["epoch"]),
    "load_state_dict": (load_state, ["state"]),
    "load_state_dict, an entry": (load_state_entry, STATE),
    "plan": (lambda data, **given: st.plan(**{"dataset": data, "memory": "4MB", **given}), names(st.plan)),  # type: ignore[misc]
    "uniform": (drawn, names(st.uniform)),
    "Trainer": (trained, names(st.Trainer, "optimizer_options")),
    "Trainer, sgd": (trained, OF_SGD),
    "Trainer, adam": (of_adam, ["lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "capturable", "fused"]),
    "Trainer, sample": (by_sample, ["lr", "momentum", "sample_path", "on_step", "clip_grad_norm", "schedule", "l2"]),
    "Trainer, lbfgs": (of_lbfgs, ["lr", "history_size", "grad_tolerance", "loss_tolerance", "l2", "autocast"]),
    "Schedule": (scheduled, names(st.Schedule)),
    "Schedule, an option": (scheduled_option, ["step_size", "gamma", "last_epoch", "verbose"]),
    "fit": (fitted, names(st.Trainer.fit)),
    "fit, a dataset": (fitted_data, ["batch_size", "seed", "memory", "max_memory", "val"]),
    "fit, resumed": (resumed, ["resume", "checkpoint", "max_steps", "checkpoint_every", "log_every"]),
    "evaluate": (evaluated, ["loader"]),
    "predict": (predicted, names(st.Trainer.predict)),
    "load": (loaded_model, names(st.load)),
    "rows": (raw_rows, names(st.rows)),
    "compare": (compared, names(st.compare)),
    "Field": (plain(st.Field, name="x", dtype=np.dtype("f4"), shape=(3,)), names(st.Field)),
}
FUNCTIONS = {
    "transform",
    "on_step",
    "on_epoch",
    "on_resume",
    "on_point",
    "on_runs",
    "say",
    "tell",
    "loss",
    "beta1",
    "optimizer",
    "schedule",
    "name",
}
CASES = [(call, argument) for call, (_, arguments) in CALLS.items() for argument in arguments]


PARTS: Final = 4
"""Each argument meets one of so many parts of the values, and each value as many arguments; `1` tries them all."""


def chosen(call: str, argument: str) -> dict[str, Callable[[], object]]:
    """Choose the values for an argument, always the same ones."""
    first = zlib.crc32(f"{call} {argument}".encode())
    return {name: make for i, (name, make) in enumerate(WRONG.items()) if (first + i) % PARTS == 0}


def wrong(run: Callable[..., None], data: st.Dataset, argument: str, value: object) -> str | None:
    """Say what is wrong with what a call made of a value; None where nothing is."""
    try:
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(data, **{argument: value})
    except (st.StreamtrainError, OwnError):
        return None
    except BaseException as error:
        tb = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in tb if "/streamtrain/" in frame.filename] or tb
        at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{type(error).__name__} at {at}: {str(error)[:150]}"
    return None


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("call", "argument"), CASES, ids=[f"{call}({argument})" for call, argument in CASES])
def test_a_wrong_value_is_refused_or_works(
    call: str, argument: str, data: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, make in chosen(call, argument).items():
        if argument in FUNCTIONS and callable(make()):
            continue  # a function of the user's, whose errors are the user's
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        monkeypatch.chdir(folder)
        if (what := wrong(CALLS[call][0], data, argument, make())) is not None:
            found[name] = what
    assert not found, "\n" + "\n".join(f"   {name}: {what}" for name, what in found.items())
