"""Traps of the first hour in Python, row by row: the call works, or one line says what does."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy import sparse
from shown import MOST_LINES, shown, works
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import streamtrain as st

pytestmark = pytest.mark.usefixtures("one_thread", "in_own_folder")

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [3.0, 4.0, 5.0], "k": ["u", "v", "u"]})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return st.ingest({"x": X, "y": Y}, tmp_path_factory.mktemp("data") / "d.zarr", block=160, codec="none")


def trainer(**given: Any) -> st.Trainer:
    return st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu", **given)


def of_torch() -> TensorDataset:
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


class Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


class Runs(IterableDataset[Any]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, 60, 7):
            yield {"x": X[start : start + 7], "y": Y[start : start + 7]}


class Stream(IterableDataset[Any]):
    """One sample after another, as loaders of files give them."""

    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


CALLS = {
    "a missing file": 'st.ingest("nope.csv", "new.zarr")',
    "a missing dataset": 'st.open("nope.zarr")',
    "a URL": 'st.ingest("https://host/x.npy", "new.zarr")',
    "a bad file": 'Path("a.csv").write_text("a,b\\n1,2\\n3\\n"); st.ingest("a.csv", "new.zarr")',
    "a budget": 'st.StreamLoader(data, memory="1KB")',
    "a sample past the end": "data[1000]",
    "an unknown field": 'data.stats("z")',
    "a schedule": 'st.Schedule(name="cosin")',
    "a field": 'st.Field(name="", dtype=numpy.dtype("f4"), shape=())',
    "too many arguments": "st.StreamLoader(data, 32)",
    "fit": 'trainer.fit(data, max_epochs=1, patience=3, memory="4MB")',
    "fit without an end": "trainer.fit(data)",
    "a model that does not fit": 'wrong.fit(data, max_epochs=1, memory="4MB")',
    "evaluate": "trainer.evaluate([1, 2])",
    "predict": "trainer.predict([1, 2])",
    "parts of predictions": "list(trainer.iter_predict([1, 2]))",
    "plan": 'st.plan(data, memory="many")',
    "compare": 'st.compare("mpl", data, max_epochs=1)',
    "load": 'st.load("no_run")',
    "rows": 'list(st.rows({"x": numpy.ones((3, 9))}, like=data))',
    "verify": 'st.verify("nope.zarr")',
    "a closed loader": "list(closed)",
    "an iterator taken over": "next(old)",
    "pickling a loader": "pickle.dumps(closed)",
}


@pytest.mark.parametrize("code", CALLS.values(), ids=CALLS)
def test_an_error_shows_the_users_line_and_one_of_ours(data: st.Dataset, code: str) -> None:
    with st.StreamLoader(data, memory="4MB", batch_size=8) as closed:
        old = iter(closed)
        next(old), iter(closed)
        wrong = st.Trainer(nn.Linear(7, 3), loss="cross_entropy", device="cpu")
        names = {
            "st": st,
            "data": data,
            "trainer": trainer(),
            "wrong": wrong,
            "numpy": np,
            "pickle": pickle,
            "Path": Path,
        }
        if "closed" in code:
            closed.close()
        error, lines = shown(code, closed=closed, old=old, **names)
    assert "script.py" in lines[1]
    text = str(error).count("\n") + 1
    assert len(lines) - text + 1 <= MOST_LINES, "\n".join(lines)
    assert sum("streamtrain/" in line for line in lines) == 1, "\n".join(lines)


def test_the_cause_and_the_frames_inside_are_kept(data: st.Dataset) -> None:
    wrong = st.Trainer(nn.Linear(7, 3), loss="cross_entropy", device="cpu")
    with pytest.raises(st.UsageError) as caught:
        wrong.fit(data, max_epochs=1, memory="4MB")
    assert isinstance(caught.value.cause, RuntimeError)
    assert caught.value.cause.__traceback__ is not None
    assert caught.value.inner_traceback is not None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_is_not_ours_passes_untouched(data: st.Dataset) -> None:
    def fails(batch: Any) -> Any:
        raise KeyError("mine")

    with st.StreamLoader(data, memory="4MB", transform=fails) as loader, pytest.raises(KeyError) as caught:
        list(loader)
    assert caught.traceback[-1].name == "fails"
    assert caught.value.__notes__ == ["in your transform fails"]

    def refused(summary: Any) -> None:
        st.open("nope.zarr")

    with pytest.raises(st.DatasetError) as inside:
        trainer().fit(data, max_epochs=1, memory="4MB", on_epoch=refused)
    assert "refused" in [entry.name for entry in inside.traceback]


def test_public_functions_keep_their_signatures() -> None:
    assert list(inspect.signature(st.ingest).parameters)[:3] == ["source", "dest", "labels"]
    assert "batch_size" in inspect.signature(st.StreamLoader).parameters
    assert "max_epochs" in str(inspect.signature(st.Trainer.fit))
    assert pickle.loads(pickle.dumps(st.ingest)) is st.ingest
    assert (st.ingest.__doc__ or "").startswith("Store raw data")


NAMES = [
    ("fit", {"epochs": 1}, "max_epochs=1"),
    ("fit", {"num_epochs": 1}, "max_epochs=1"),
    ("fit", {"max_epoch": 1}, "did you mean 'max_epochs'?"),
    ("fit", {"learning_rate": 0.1}, "give lr=0.1 to Trainer"),
    ("fit", {"lr": 0.1}, "give lr=0.1 to Trainer"),
    ("fit", {"validation_data": (X, Y)}, "it is 'val' here"),
    ("fit", {"val_dataloaders": None}, "it is 'val' here"),
    ("fit", {"callbacks": []}, "it is 'on_epoch' here"),
    ("fit", {"num_workers": 4}, "leave it out"),
    ("fit", {"shuffle": True}, "give shuffle=True to StreamLoader"),
    ("Trainer", {"learning_rate": 0.1}, "lr=0.1"),
    ("Trainer", {"criterion": "mse"}, "loss='mse'"),
    ("Trainer", {"epochs": 3}, "give max_epochs=3 to Trainer.fit"),
    ("StreamLoader", {"num_workers": 4}, "leave it out"),
    ("StreamLoader", {"collate_fn": len}, "it is 'transform' here"),
    ("StreamLoader", {"pin_memory": True}, "leave it out"),
    ("StreamLoader", {"batchsize": 4}, "did you mean 'batch_size'?"),
    ("ingest", {"sep": ";"}, "delimiter=';'"),
    ("ingest", {"target": "k"}, "label_column='k'"),
    ("ingest", {"over_write": True}, "did you mean 'overwrite'?"),
    ("open", {"splt": "val"}, "did you mean 'split'?"),
    ("evaluate", {"batch_size": 4}, "give batch_size=4 to StreamLoader"),
]


@pytest.mark.parametrize(("of", "given", "fix"), NAMES)
def test_names_of_other_libraries(data: st.Dataset, of: str, given: dict[str, Any], fix: str) -> None:
    calls: dict[str, Any] = {
        "fit": lambda: trainer().fit(data, **given),
        "evaluate": lambda: trainer().evaluate(data, **given),
        "Trainer": lambda: st.Trainer(nn.Linear(4, 3), **given),
        "StreamLoader": lambda: st.StreamLoader(data, **given),
        "ingest": lambda: st.ingest("a.csv", "new.zarr", **given),
        "open": lambda: st.open("d.zarr", **given),
    }
    with pytest.raises(st.UnknownArgument) as caught:
        calls[of]()
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, st.UsageError)
    assert caught.value.fix == fix
    if "num_workers" in given:
        assert "threads of its own" in str(caught.value)


NEEDED = {
    "plot": (st.plot, "plot is called without history", "plot(history): what fit returned, or trainer.history"),
    "open": (st.open, "open is called without path", "open(path): the folder of a dataset"),
    "load": (st.load, "load is called without run", "load(run): the folder of a run"),
    "Trainer": (st.Trainer, "Trainer is called without model", "Trainer(model): a module of torch, or a name"),
    "ingest": (st.ingest, "ingest is called without source and dest", "ingest(source, dest): source is files"),
    "compare": (
        st.compare,
        "compare is called without model and dataset",
        "compare(model, dataset): model is a module",
    ),
    "fit": (
        lambda: trainer().fit(),
        "Trainer.fit is called without loader",
        "Trainer.fit(loader): a dataset, its folder",
    ),
    "predict": (lambda: trainer().predict(), "predict is called without data", "predict(data): a dataset, files"),
}


@pytest.mark.parametrize("of", NEEDED)
def test_what_a_function_needs(of: str) -> None:
    function, what, fix = NEEDED[of]
    with pytest.raises(st.MissingArgument) as caught:
        function()
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, st.UsageError)
    assert caught.value.what == what
    assert str(caught.value.fix).startswith(fix)


GIVEN = {
    "arrays": ("fit(x, y, max_epochs=1)", lambda: {"x": X, "y": Y}),
    "an array": ("fit(x, max_epochs=1)", lambda: {"x": X, "y": Y}),
    "a DataLoader": ("fit(loader, max_epochs=1)", lambda: {"loader": DataLoader(of_torch(), batch_size=8)}),
    "a shuffled one": ("fit(loader, max_epochs=1)", lambda: {"loader": DataLoader(of_torch(), shuffle=True)}),
    "a torch Dataset": ("fit(loader, max_epochs=1)", lambda: {"loader": of_torch()}),
    "a dict": ("fit(loader, max_epochs=1)", lambda: {"loader": {"x": X, "y": Y}}),
    "a frame": ("fit(loader, max_epochs=1)", lambda: {"loader": pd.DataFrame(X, columns=list("abcd")).assign(y=Y)}),
}


@pytest.mark.parametrize(("call", "names"), GIVEN.values(), ids=GIVEN)
def test_fit_names_the_two_lines_that_work(call: str, names: Any) -> None:
    given = {"st": st, **names()}
    error, lines = shown(f"trainer.{call}", trainer=trainer(), **given)
    assert isinstance(error, st.UsageError)
    assert len(lines) <= MOST_LINES
    assert error.fix is not None
    assert len(error.fix.splitlines()) == 2
    with works(error.fix, **given)["loader"] as loader:
        fitted = st.Trainer(nn.Linear(4, 3).double(), loss="cross_entropy", device="cpu", normalize="auto")
        fitted.fit(loader, max_steps=1)


def test_a_path_or_a_dataset_is_enough(data: st.Dataset) -> None:
    with st.StreamLoader(str(data.path), memory="4MB", batch_size=20) as loader:
        assert len(list(loader)) == 3
    for each in (data, str(data.path), data.path):
        trainer().fit(each, max_steps=1, memory="4MB", batch_size=20)


def test_evaluate_and_predict_take_any_iterable_of_batches(data: st.Dataset) -> None:
    fitted = trainer()
    fitted.fit(data, max_steps=1, memory="4MB")
    whole, predicted = fitted.evaluate(data), fitted.predict(data)
    cuts = [slice(start, start + 7) for start in range(0, 60, 7)]
    batches: list[Any] = [
        DataLoader(of_torch(), batch_size=8),
        [{"x": X[cut], "y": Y[cut]} for cut in cuts],
        ((X[cut], Y[cut]) for cut in cuts),
        Runs(),
    ]
    for each in batches:
        assert fitted.evaluate(each).loss == pytest.approx(whole.loss)
    for each in [*batches[:2], ((X[cut],) for cut in cuts), (torch.from_numpy(X[cut]) for cut in cuts)]:
        np.testing.assert_array_equal(fitted.predict(each), predicted)


FRAMES = {
    "pandas": TABLE,
    "polars": pl.from_pandas(TABLE),
    "Arrow": pa.Table.from_pandas(TABLE),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_data_frames(frame: Any) -> None:
    dataset = st.ingest(frame, "d.zarr", label_column="k")
    assert dataset.columns == ("a", "b")
    assert dataset.classes == ("u", "v")
    assert st.ingest(frame, "c.zarr", label_column="a", categorical="k").categories["k"].names == ("u", "v")


def test_a_reader_of_batches_and_an_index() -> None:
    reader = pa.Table.from_pandas(TABLE).to_reader()
    assert st.ingest(reader, "d.zarr", label_column="a", columns=["b"])[:]["x"].tolist() == [[3.0], [4.0], [5.0]]
    told: list[str] = []
    frame = TABLE.set_index(pd.Index([5, 6, 7]))
    assert st.ingest(frame, "i.zarr", label_column="k", say=told.append).columns == ("a", "b")
    assert any("left out index" in line for line in told)


LABELS = {
    "a series": pd.Series(["b", "a", "b"]),
    "one of polars": pl.Series(["b", "a", "b"]),
    "text": np.array(["b", "a", "b"]),
    "objects": np.array(["b", "a", "b"], object),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_text(labels: Any) -> None:
    dataset = st.ingest(X[:3], "d.zarr", labels=labels)
    assert (dataset.classes, dataset[:]["y"].tolist()) == (("a", "b"), [1, 0, 1])


def test_tensors_with_gradients() -> None:
    for number, x in enumerate((torch.from_numpy(X).requires_grad_(), nn.Parameter(torch.from_numpy(X)))):
        np.testing.assert_array_equal(st.ingest({"x": x}, f"{number}.zarr")[:]["x"], X)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_sparse_matrices() -> None:
    told: list[str] = []
    for number, x in enumerate((sparse.csr_matrix(X), sparse.csr_array(X), torch.from_numpy(X).to_sparse_csr())):
        dataset = st.ingest({"x": x, "y": Y}, f"{number}.zarr", say=told.append)
        np.testing.assert_array_equal(dataset[:]["x"], X)
    assert sum("dense it takes 960 B" in line for line in told) == 3
    for other in (sparse.csc_matrix(X), sparse.coo_matrix(X), sparse.csc_array(X)):
        error, _ = shown('st.ingest({"x": x}, "new.zarr")', st=st, x=other)
        assert isinstance(error, st.InputError)
        assert "x.tocsr()" in str(error)


TORCH = {
    "tensors": (of_torch(), {}, {"x": X, "y": Y}),
    "tuples": (Samples((X[0], 1), (X[1], 2)), {}, {"x": X[:2], "y": np.array([1, 2])}),
    "dicts": (Samples({"a": X[0], "class": 1}, {"a": X[1], "class": 0}), {}, {"a": X[:2], "class": np.array([1, 0])}),
    "numbers": (Samples(1.5, 2.5), {}, {"x": np.array([1.5, 2.5])}),
    "fields": (Samples((X[0], 7, 1)), {"fields": {"x": 0, "y": 2}}, {"x": X[:1], "y": np.array([1])}),
    "a DataLoader": (DataLoader(of_torch(), batch_size=7), {}, {"x": X, "y": Y}),
    "an IterableDataset": (Runs(), {}, {"x": X, "y": Y}),
    "one of tuples": (Stream((X[0], 1), (X[1], 2)), {}, {"x": X[:2], "y": np.array([1, 2])}),
    "one of dicts": (Stream({"a": X[0], "y": 1}, {"a": X[1], "y": 0}), {}, {"a": X[:2], "y": np.array([1, 0])}),
    "one of arrays": (Stream(X[0], X[1], X[2]), {}, {"x": X[:3]}),
    "one of numbers": (Stream(*X[:, 0].tolist()), {}, {"x": X[:, 0].astype(np.float64)}),
    "one with fields": (Stream((X[0], 7, 1)), {"fields": {"x": 0, "y": 2}}, {"x": X[:1], "y": np.array([1])}),
    "one with names": (
        Stream(*((X[0], row, f"name {row}") for row in range(12))),
        {"fields": {"x": 0, "y": 1}},
        {"x": X[[0] * 12], "y": np.arange(12)},
    ),
    "one of many": (Stream(*((X[0], row) for row in range(2500))), {}, {"x": X[[0] * 2500], "y": np.arange(2500)}),
    "a generator": (iter(Runs()), {}, {"x": X, "y": Y}),
}


@pytest.mark.parametrize(("source", "options", "rows"), TORCH.values(), ids=TORCH)
def test_what_torch_reads_is_a_source(source: Any, options: dict[str, Any], rows: dict[str, Any]) -> None:
    told: list[str] = []
    dataset = st.ingest(source, "d.zarr", say=told.append, **options)
    found = dataset[:]
    assert list(found) == list(rows)
    for name, values in rows.items():
        np.testing.assert_array_equal(found[name], values)
    assert any("a second" in line or "cannot be resumed" in line for line in told)


REFUSED = {
    "images": (Samples((Image.new("RGB", (4, 4)), 0)), st.InputError, "transform=numpy.asarray"),
    "three values": (Samples((1.0, 2, 3)), st.UsageError, r"fields=\{'x': 0, 'y': 1\}"),
    "other shapes": (Samples(X[0], X[1, :2]), st.InputError, "one dtype and shape"),
    "other shapes in a stream": (Stream((X[0], 1), (X[1, :2], 2)), st.InputError, "one dtype and shape"),
    "other names in a stream": (Stream({"x": 1.0}, {"y": 1.0}), st.InputError, "one dtype and shape"),
    "three values in a stream": (Stream((1.0, 2, 3)), st.UsageError, r"fields=\{'x': 0, 'y': 1\}"),
    "an empty stream": (Stream(), st.InputError, "yield at least one"),
    "a shuffled DataLoader": (DataLoader(of_torch(), shuffle=True), st.UsageError, "shuffle=False"),
    "one that drops": (DataLoader(of_torch(), batch_size=7, drop_last=True), st.UsageError, "drop_last=False"),
}


@pytest.mark.parametrize(("source", "kind", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_torch_reads_and_a_dataset_does_not_hold(source: Any, kind: type[Exception], fix: str) -> None:
    with pytest.raises(kind, match=f"Fix: .*{fix}"):
        st.ingest(source, "d.zarr")
    assert not Path("d.zarr").exists()


def test_a_stored_dataset_is_a_source(data: st.Dataset) -> None:
    for number, source in enumerate((data, str(data.path))):
        again = st.ingest(source, f"{number}.zarr", block=400, codec="zstd")
        assert (again.layout.codec, again.layout.block_rows) != (data.layout.codec, data.layout.block_rows)
        np.testing.assert_array_equal(again[:]["x"], X)
    assert [field.name for field in st.ingest(data, "x.zarr", fields={"x": "x"}).fields] == ["x"]
    assert len(st.ingest(data, "0.zarr", append=True)) == 120
    st.ingest([data, data], "splits.zarr", split={"val": 0.5})
    assert len(st.ingest(st.open("splits.zarr", split="val"), "val.zarr")) == len(st.open("splits.zarr", split="val"))


def test_a_stored_table_keeps_its_schema() -> None:
    rows = [f"{i},{'uvw'[i % 3]},2020-01-0{i % 9 + 1},{i % 2}\n" for i in range(50)]
    Path("a.csv").write_text("a,k,d,y\n" + "".join(rows))
    table = st.ingest("a.csv", "a.zarr", label_column="y", categorical="k", dates="d", task="regression")
    again = st.ingest("a.zarr", "b.zarr", block=64)
    assert again.schema == table.schema
    assert again.categories == table.categories
    assert again.task == "regression"
    assert st.ingest(table, "c.zarr").id == table.id


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("https://host/x.npy", "curl -LO https://host/x.npy"),
        ("s3://bucket/x.npy", "aws s3 cp s3://bucket/x.npy x.npy"),
        ("s3://bucket/d.zarr", "aws s3 sync s3://bucket/d.zarr d.zarr"),
        ("gs://bucket/x.npy", "gcloud storage cp gs://bucket/x.npy x.npy"),
    ],
)
def test_urls_come_with_the_command_that_fetches_them(url: str, command: str) -> None:
    for call in (lambda: st.ingest(url, "new.zarr"), lambda: st.open(url), lambda: st.ingest(X, url)):
        with pytest.raises(st.UsageError) as caught:
            call()
        assert str(caught.value.fix).endswith(f"; download it first: {command}")
    assert not list(Path().iterdir())


def test_fields_named_by_words_of_python() -> None:
    dataset = st.ingest({"class": X, "lambda": Y, "None": Y}, "d.zarr")
    with st.StreamLoader(dataset, memory="4MB") as loader:
        batch = next(iter(loader))
    assert [batch[name].shape for name in ("class", "lambda", "None")] == [(60, 4), (60,), (60,)]
    assert isinstance(batch, st.Batch)


def test_a_dataset_is_pickled_by_its_path_and_id(data: st.Dataset) -> None:
    assert pickle.loads(pickle.dumps(data)).id == copy.deepcopy(data).id == data.id
    before = pickle.dumps(st.ingest({"x": X}, "d.zarr"))
    st.ingest({"x": X + 1}, "d.zarr", overwrite=True)
    with pytest.raises(st.DatasetError, match="not the one that was passed on"):
        pickle.loads(before)


def test_loaders_and_trainers_are_not_pickled(data: st.Dataset) -> None:
    with st.StreamLoader(data, memory="4MB") as loader:
        for each in (loader, trainer()):
            for attempt in (pickle.dumps, copy.deepcopy):
                with pytest.raises(st.UsageError, match=r"pass (the dataset|its model)"):
                    attempt(each)


def test_a_dataset_in_a_shuffled_data_loader_warns_once(data: st.Dataset) -> None:
    dataset: Any = st.open(data.path)
    with pytest.warns(st.StreamtrainWarning, match="Fix: a StreamLoader") as caught:
        passes = [list(DataLoader(dataset, batch_size=8, shuffle=True)) for _ in range(2)]
    seen = torch.cat([batch["y"] for batch in passes[1]])
    assert len(caught) == 1
    assert sorted(seen.tolist()) == sorted(Y.tolist())
    with warnings.catch_warnings(action="error"):
        ordered: Any = st.open(data.path)
        found = torch.cat([batch["x"] for batch in DataLoader(ordered, batch_size=8)])
    np.testing.assert_array_equal(found.numpy(), X)


def test_a_loader_is_a_stream(data: st.Dataset) -> None:
    with st.StreamLoader(data, memory="4MB", batch_size=8) as loader:
        for call in (lambda: loader[0], lambda: len(iter(loader))):  # type: ignore[arg-type]
            with pytest.raises(TypeError) as caught:
                call()
            assert isinstance(caught.value, st.UsageError)
        assert len(loader) == len(list(loader)) == 8


def test_a_state_of_another_seed_is_refused_by_name(data: st.Dataset) -> None:
    with st.StreamLoader(data, memory="4MB", seed=3) as loader:
        state = loader.state_dict()
    with st.StreamLoader(data, memory="4MB") as loader, pytest.raises(st.UsageError, match="seed: 3 there, 0 here"):
        loader.load_state_dict(state)


def test_parts_in_evaluation_mode_stay_so(data: st.Dataset) -> None:
    norm = nn.BatchNorm1d(4).eval()
    mean = norm.running_mean
    assert mean is not None
    before = mean.clone()
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 3))
    st.Trainer(model, loss="cross_entropy", device="cpu").fit(data, max_epochs=2, val=data, memory="40MB")
    assert (norm.training, model[0].training) == (False, True)
    assert torch.equal(mean, before)
