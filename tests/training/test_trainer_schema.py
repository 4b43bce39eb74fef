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
from streamtrain.store.schema.matching import MatchedColumns, UnnamedColumns

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
    with pytest.raises(UsageError, match="no column 'width', which the training data has"):
        learner.fit(load(), max_epochs=1, val=load("depth", "height"))
    with pytest.raises(UsageError, match="label 0 is 'cat' here and 'ant' there"):
        learner.fit(load(), max_epochs=1, val=load(classes=["cat", "bee", "ant"]))
    assert learner.counts.n_batches == 0
    learner.fit(load(), max_epochs=20, val=load(classes=["ant", "bee", "cat"]))
    assert learner.evaluate(load()).score == 1.0


ANOTHER_ORDER = "the columns of x are put in the order of the training data"


@pytest.mark.parametrize("rule", ["batch", "sample", "epoch"])
def test_columns_in_another_order_are_put_in_order_and_said_once(load: Open, rule: str) -> None:
    torch.manual_seed(0)
    learner = st.Trainer(
        nn.Linear(3, 3), loss="cross_entropy", lr=0.1, normalize="auto", device="cpu", update=rule, optimizer="sgd"
    )
    data, other = load(), load("depth", "height", "width")
    with pytest.warns(MatchedColumns, match=ANOTHER_ORDER) as caught:
        history = learner.fit(data, max_epochs=2, val=other)
    assert [Path(warning.filename).name for warning in caught] == ["test_trainer_schema.py"]
    expected = learner.evaluate(data).facts()
    assert history.last is not None
    assert history.last.val is not None
    assert history.last.val.loss == expected["loss"]
    # Were it said again, it would be an error.
    assert learner.evaluate(other).facts() == expected


def test_further_columns_are_ignored_and_named(tmp_path: Path) -> None:
    columns, labels = named_tables.rows()
    further = {"weight": [9.0] * len(labels), **columns}
    made = {
        name: st.ingest(
            named_tables.write(tmp_path / f"{name}.csv", of, labels, tuple(of)), tmp_path / name, label_column="kind"
        )
        for name, of in (("a", columns), ("b", further))
    }
    learner = trainer()
    with pytest.warns(MatchedColumns, match="ignored, since the training data has no such columns: 'weight'"):
        learner.fit(made["a"], val=made["b"], max_epochs=1, batch_size=8, progress=False)
    with pytest.raises(UsageError, match="it has no column 'weight'"):
        st.Trainer(nn.Linear(4, 3), normalize="auto").fit(
            made["b"], val=made["a"], max_epochs=1, batch_size=8, progress=False
        )


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_targets_in_another_order_are_put_in_order_with_their_names(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=40), "b": rng.normal(size=40)}
    if task == "regression":
        values |= {"u": values["a"] * 2, "v": rng.normal(size=40) * 5}
    else:
        values |= {"u": (values["a"] > 0) * 1, "v": (values["b"] > 0.5) * 1}
    made = {}
    for targets in ("u,v", "v,u"):
        path = named_tables.write(tmp_path / f"{targets}.csv", values, ["-"] * 40, tuple(values))
        options = {"label_column": targets.split(","), "columns": ["a", "b"][:: 1 if targets == "u,v" else -1]}
        made[targets] = st.ingest(path, tmp_path / targets, **options)
    learner = st.Trainer(nn.Linear(2, 2), task=task, normalize="auto", device="cpu")
    with pytest.warns(MatchedColumns):
        learner.fit(made["u,v"], val=made["v,u"], max_epochs=1, progress=False)
    assert learner.evaluate(made["v,u"]).facts() == learner.evaluate(made["u,v"]).facts()


def test_a_transform_of_other_columns_is_left_alone(load: Open) -> None:
    other = load("depth", "height", "width", transform=lambda batch, keys: batch)
    with pytest.raises(UsageError, match=ORDER):
        trainer().fit(load(), max_epochs=1, val=other)


def test_what_was_trained_is_not_trained_on_other_data(load: Open) -> None:
    learner = trainer()
    learner.fit(load(), max_epochs=1)
    with pytest.raises(UsageError, match=ORDER):
        learner.fit(load("depth", "height", "width"), max_epochs=2)
    assert learner.counts.n_epochs == 1


def test_before_the_first_step_another_dataset_may_take_its_place(load: Open) -> None:
    learner = trainer()
    with pytest.raises(UsageError, match="no column 'width'"):
        learner.fit(load(), max_epochs=1, val=load("depth", "height"))
    learner.fit(load("depth", "height", "width"), max_epochs=1)


def test_a_transform_hides_no_names(load: Open) -> None:
    noisy = load(transform=lambda batch, keys: batch._replace(x=batch.x + 0.01))
    with pytest.warns(MatchedColumns, match=ANOTHER_ORDER):
        trainer().fit(noisy, max_epochs=1, val=load("depth", "height", "width"))
    with pytest.raises(UsageError, match="no column 'width'"):
        trainer().fit(noisy, max_epochs=1, val=load("depth", "height"))


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
        pytest.raises(CheckpointError, match="it has no columns 'height', 'width', 'depth', which the run's data has"),
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


def test_compare_puts_the_columns_of_validation_data_in_order(load: Open) -> None:
    setting = {"rules": ("batch",), "optimizers": ("sgd",), "max_epochs": 1, "batch_size": 8, "memory": "16MB"}
    data, other = load().dataset, load("depth", "height", "width").dataset
    model = nn.Linear(3, 3)
    with pytest.warns(MatchedColumns, match=ANOTHER_ORDER) as caught:
        found = compare(model, data, **setting, val=other, normalize="auto")
    assert len(caught) == 1
    assert [point.val.loss for point in found.runs[0].points] == [point.train.loss for point in found.runs[0].points]
    with pytest.raises(UsageError, match="no column 'width'"):
        compare(model, data, **setting, val=load("depth", "height").dataset, normalize="auto")
