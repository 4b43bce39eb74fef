"""`Trainer.fit` and `Trainer.evaluate` beside data that means something else than the training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import named_tables
import numpy as np
import pytest
import torch
from in_memory import Arrays, Batches
from torch import nn

import streamtrain as st
from streamtrain.comparison.compare import compare
from streamtrain.errors import CheckpointError, UsageError
from streamtrain.store.schema.matching import UnnamedColumns

pytestmark = pytest.mark.usefixtures("one_thread")
Open = Callable[..., st.StreamLoader]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Open]:
    """Loaders over a table whose columns stand in some order."""
    columns, labels = named_tables.rows()
    with ExitStack() as stack:

        def made(*order: str, transform: Any = None, **options: Any) -> st.StreamLoader:
            name = "-".join(["table", *order, *options.get("classes", ())])
            path = named_tables.write(tmp_path / f"{name}.csv", columns, labels, order or named_tables.COLUMNS)
            dataset = st.ingest(path, tmp_path / f"{name}.zarr", label_column="kind", overwrite=True, **options)
            loader = st.StreamLoader(dataset, batch_size=8, memory="8MB", transform=transform)
            return stack.enter_context(loader)

        yield made


def trainer() -> st.Trainer:
    torch.manual_seed(0)
    return st.Trainer(nn.Linear(3, 3), loss="cross_entropy", lr=0.1, normalize="auto", device="cpu")


ORDER = "the columns of x are 'depth', 'height', 'width'; in the training data they are 'height', 'width', 'depth'"


def test_other_columns_and_classes_are_refused_before_the_first_step(load: Open) -> None:
    learner = trainer()
    with pytest.raises(UsageError, match=ORDER):
        learner.fit(load(), max_epochs=1, val=load("depth", "height", "width"))
    with pytest.raises(UsageError, match="label 0 is 'cat' here and 'ant' there"):
        learner.fit(load(), max_epochs=1, val=load(classes=["cat", "bee", "ant"]))
    assert learner.counts.n_batches == 0
    learner.fit(load(), max_epochs=20, val=load(classes=["ant", "bee", "cat"]))
    assert learner.evaluate(load()).score == 1.0


def test_what_was_trained_is_not_measured_or_trained_on_other_data(load: Open) -> None:
    learner = trainer()
    learner.fit(load(), max_epochs=1)
    with pytest.raises(UsageError, match=ORDER):
        learner.evaluate(load("depth", "height", "width"))
    with pytest.raises(UsageError, match=ORDER):
        learner.fit(load("depth", "height", "width"), max_epochs=2)
    assert learner.counts.n_epochs == 1


def test_before_the_first_step_another_dataset_may_take_its_place(load: Open) -> None:
    learner = trainer()
    with pytest.raises(UsageError, match=ORDER):
        learner.fit(load(), max_epochs=1, val=load("depth", "height", "width"))
    learner.fit(load("depth", "height", "width"), max_epochs=1)


def test_a_transform_hides_no_names(load: Open) -> None:
    noisy = load(transform=lambda batch, keys: batch._replace(x=batch.x + 0.01))
    with pytest.raises(UsageError, match=ORDER):
        trainer().fit(noisy, max_epochs=1, val=load("depth", "height", "width"))


def test_dtypes_that_a_transform_makes_are_not_compared(tmp_path: Path) -> None:
    y = np.arange(40) % 3
    x = (np.eye(3)[y] * 200).astype(np.uint8)
    pixels = st.ingest({"x": x, "y": y}, tmp_path / "u.zarr")
    floats = st.ingest({"x": (x / 255).astype(np.float32), "y": y}, tmp_path / "f.zarr")
    learner = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", device="cpu")
    scaled = {"transform": lambda batch, keys: batch._replace(x=batch.x.float() / 255)}
    with (
        st.StreamLoader(pixels, batch_size=8, memory="8MB", **scaled) as train,
        st.StreamLoader(floats, batch_size=8, memory="8MB") as val,
        st.StreamLoader(pixels, batch_size=8, memory="8MB") as unscaled,
    ):
        learner.fit(train, max_epochs=1, val=val)
        whole = st.Trainer(nn.Linear(3, 3), loss="cross_entropy", normalize="auto", device="cpu")
        with pytest.raises(UsageError, match=r"field x is float32 \(3,\); in the training data uint8 \(3,\)"):
            whole.fit(unscaled, max_epochs=1, val=val)


def test_absent_names_are_warned_of_once(load: Open, tmp_path: Path) -> None:
    learner, columns = trainer(), named_tables.rows()[0]
    x = np.array([columns[name] for name in named_tables.COLUMNS]).T
    dataset = st.ingest({"x": x, "y": np.arange(len(x)) % 3}, tmp_path / "arrays.zarr")
    with st.StreamLoader(dataset, batch_size=8, memory="8MB") as arrays:
        told = pytest.warns(UnnamedColumns, match="no names for the columns of x and the classes")
        with told as caught:
            learner.fit(load(), max_epochs=20, val=arrays)
        assert [Path(warning.filename).name for warning in caught] == ["test_trainer_schema.py"]
        # Were it said again, it would be an error.
        assert learner.evaluate(arrays).score == 1.0


def test_streams_without_a_schema_are_compared_by_dtype_and_shape() -> None:
    x, y = np.zeros((24, 4), np.float32), np.arange(24) % 3
    learner = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    learner.fit(Batches(Arrays(x=x, y=y)), max_epochs=1, val=Batches(Arrays(x=x.astype(np.float32), y=y)))
    with pytest.raises(UsageError, match=r"the data: field x is uint8 \(4,\); in the training data float32"):
        learner.evaluate(Batches(Arrays(x=x.astype(np.uint8), y=y)))


def test_a_run_keeps_what_its_data_meant(load: Open, tmp_path: Path) -> None:
    run, loader = tmp_path / "run", load()
    trainer().fit(loader, max_epochs=1, checkpoint=run)
    before = (run / "schema.json").read_bytes()
    renamed = named_tables.write(
        tmp_path / "r.csv", dict(zip(("a", "b", "c"), named_tables.rows()[0].values(), strict=True)),
        named_tables.rows()[1], ("a", "b", "c"),
    )  # fmt: skip
    other = st.ingest(renamed, tmp_path / "r.zarr", label_column="kind")
    assert other.id == loader.dataset.id
    with (
        st.StreamLoader(other, batch_size=8, memory="8MB") as same_numbers,
        pytest.raises(CheckpointError, match="it has no column 'height', which the run's data has"),
    ):
        trainer().fit(same_numbers, max_epochs=2, checkpoint=run, resume="auto")
    with pytest.raises(CheckpointError, match=ORDER.replace("the training", "the run's")):
        trainer().fit(load("depth", "height", "width"), max_epochs=2, checkpoint=run, resume="auto")
    trainer().fit(loader, max_epochs=2, checkpoint=run, resume="auto")
    assert (run / "schema.json").read_bytes() == before


def test_a_run_without_a_checkpoint_begins_with_the_schema_of_its_data(load: Open, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    trainer().fit(load(), max_epochs=1, checkpoint=run)
    first = (run / "schema.json").read_bytes()
    shutil.rmtree(run / "checkpoints")
    trainer().fit(load("depth", "height", "width"), max_epochs=1, checkpoint=run, resume="auto")
    assert (run / "schema.json").read_bytes() != first


def test_compare_refuses_other_validation_data(load: Open) -> None:
    setting = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "batch_size": 8, "memory": "16MB"}
    val = load("depth", "height", "width").dataset
    with pytest.raises(UsageError, match=ORDER):
        compare(nn.Linear(3, 3), load().dataset, **setting, val=val, normalize="auto")
