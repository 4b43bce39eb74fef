"""Messages of the first hour in Python, row by row: what is refused says so, and its advice, followed, works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shown import works
from torch import nn

import streamtrain as st
from streamtrain.cli.output import headspace_line
from streamtrain.diagnostics.headspace import Headspace
from streamtrain.training.records.history import Speed
from streamtrain.training.run.run_folder import RunFolder
from tests.test_messages import KINDS, OF_PYTHON, RUN, flights, idx, image, write

pytestmark = pytest.mark.usefixtures("one_thread", "in_own_folder")

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3


def refused(call: Callable[[], Any], kind: type[st.StreamtrainError] = st.InputError) -> tuple[str, str]:
    """Make a call that is refused; return what it says, and the fix in it."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value), str(caught.value.fix)


def arguments(fix: str, pattern: str = "(.*)") -> dict[str, Any]:
    """The arguments that a fix names, as a script has them."""
    found = re.search(pattern, fix)
    assert found is not None, fix
    given: dict[str, Any] = eval(f"dict({found[1]})")
    return given


def stored(**fields: Any) -> st.Dataset:
    return st.ingest(fields or {"x": X, "y": Y}, "d.zarr", overwrite=True)


def trainer(model: nn.Module | None = None, **given: Any) -> st.Trainer:
    options: dict[str, Any] = {"loss": "cross_entropy", "device": "cpu"} | given
    return st.Trainer(nn.Linear(4, 3) if model is None else model, **options)


def test_all_columns_that_are_unfit_and_one_call() -> None:
    flights()
    said, fix = refused(lambda: st.ingest("t.csv", "d.zarr", label_column="delay"))
    assert "carrier: 3 texts; when: dates; delay: 9 labels missing" in said
    with pytest.warns(st.StreamtrainWarning, match="9 of 60 rows"):
        st.ingest("t.csv", "d.zarr", label_column="delay", **arguments(fix, "as it is; or by hand, (.*?);"))


@pytest.mark.parametrize("mark", [";", "|"])
def test_the_delimiter(mark: str) -> None:
    write("s.csv", "".join(f"{mark.join(row)}\n" for row in (["a", "b", "c"], ["1", "2", "0"], ["3", "4", "1"])))
    told: list[str] = []
    assert st.ingest("s.csv", "d.zarr", label_column="c", say=told.append)[:]["x"].tolist() == [[1, 2], [3, 4]]
    assert any(f"the delimiter is {mark!r}" in line for line in told)
    said, fix = refused(lambda: st.ingest("s.csv", "e.zarr", label_column="c", delimiter=","))
    assert "no column" not in said
    st.ingest("s.csv", "e.zarr", label_column="c", **arguments(fix))


def test_the_mark_of_utf_16() -> None:
    Path("u.csv").write_bytes("a,b\n1,0\n2,1\n".encode("utf-16"))
    said, fix = refused(lambda: st.ingest("u.csv", "d.zarr", label_column="b"))
    assert "latin" not in said
    st.ingest("u.csv", "d.zarr", label_column="b", **arguments(fix))


def test_labels_called_na() -> None:
    write("n.csv", 'a,b\n1,x\n2,NA\n3,"NA"\n')
    _, fix = refused(lambda: st.ingest("n.csv", "d.zarr", label_column="b"))
    given = arguments(fix, r"; or (na_values=\('',\))")
    assert st.ingest("n.csv", "d.zarr", label_column="b", **given).classes == ("NA", "x")
    assert st.ingest("n.csv", "e.zarr", label_column="b", classes=["NA", "x"]).classes == ("NA", "x")


def test_labels_with_blanks_around_them() -> None:
    write("t.csv", 'a,b\n1," dog"\n2,dog\n3,cat\n4,"dog "\n')
    with pytest.warns(st.StreamtrainWarning, match="2 class names stripped of blanks: ' dog' is 'dog'"):
        dataset = st.ingest("t.csv", "d.zarr", label_column="b")
    assert (dataset.classes, dataset[:]["y"].tolist()) == (("cat", "dog"), [1, 1, 0, 1])
    st.ingest("t.csv", "e.zarr", label_column="b", classes=["cat", "dog", " dog", "dog "])


def test_a_masked_array() -> None:
    x = np.ma.masked_array(X, X > 1)
    _, fix = refused(lambda: st.ingest({"x": x, "y": Y}, "d.zarr"))
    st.ingest({"x": eval(re.findall(r"x\.filled\(0\)", fix)[0], {"x": x}), "y": Y}, "d.zarr")


def test_empty_labels_in_parquet() -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0], "k": ["u", "", "v"]}), "e.parquet")
    said, fix = refused(lambda: st.ingest("e.parquet", "d.zarr", label_column="k"))
    assert "e.parquet row 1: 1 label is empty" in said
    given = arguments(fix, "as it is; or by hand, (.*?);")
    with pytest.warns(st.StreamtrainWarning, match="1 of 3 rows"):
        assert len(st.ingest("e.parquet", "d.zarr", label_column="k", **given)) == 2


def test_an_index_in_parquet() -> None:
    pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": [0, 1, 0]}, index=[5, 6, 7]).to_parquet("i.parquet")
    told: list[str] = []
    assert st.ingest("i.parquet", "d.zarr", label_column="y", say=told.append).columns == ("a",)
    assert any("left out __index_level_0__" in line for line in told)
    both = ["a", "__index_level_0__"]
    assert st.ingest("i.parquet", "e.zarr", label_column="y", columns=both).columns == tuple(both)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_without_a_reader(name: str) -> None:
    make, kind = KINDS[name]
    make()
    said, fix = refused(lambda: st.ingest(name, "d.zarr"))
    assert f"It looks like {kind}." in said
    assert "raw binary" not in said
    if name in RUN:
        works(fix.removeprefix(OF_PYTHON.removeprefix("Fix: ")))
        made = RUN[name]
        assert len(st.ingest(made, "d.zarr", **({"block": "1KB"} if made == "data.zarr" else {})))


def test_a_folder_of_classes() -> None:
    for name in ("pets/cat/1.jpg", "pets/dog/2.jpg"):
        image(name)
    assert st.ingest("pets", "d.zarr").classes == ("cat", "dog")


def test_the_four_files_of_mnist() -> None:
    Path("mnist").mkdir()
    for name, n in (("train", 60), ("t10k", 20)):
        idx(f"mnist/{name}-images-idx3-ubyte.gz", np.zeros((n, 4, 4), np.uint8))
        idx(f"mnist/{name}-labels-idx1-ubyte.gz", (np.arange(n) % 3).astype(np.uint8))
    _, fix = refused(lambda: st.ingest("mnist", "d.zarr"))
    [(images, option)] = re.findall(r"^give (\S+) with (.*)$", fix)
    assert len(st.ingest(images, "d.zarr", **arguments(option))) == 60


def test_fields_of_other_names() -> None:
    np.savez("q.npz", images=X, labels=Y)
    data = st.ingest("q.npz", "d.zarr")
    _, fix = refused(lambda: trainer().fit(data, max_epochs=1, memory="16MB"), st.UnknownName)
    trainer(**arguments(fix, r"Trainer\((.*), \.\.\.\)")).fit(data, max_epochs=1, memory="16MB")
    st.ingest("q.npz", "e.zarr", fields={"x": "images", "y": "labels"})
    trainer().fit("e.zarr", max_epochs=1, memory="16MB")


def test_no_labels() -> None:
    said, fix = refused(lambda: trainer().fit(stored(x=X), max_epochs=1, memory="16MB"), st.UnknownName)
    assert "the data has no labels" in said
    assert "labels=" in fix
    trainer().fit(st.ingest(X, "e.zarr", labels=Y), max_epochs=1, memory="16MB")


def test_data_of_another_shape() -> None:
    data, three = stored(), st.ingest({"x": X[:, :3], "y": Y}, "three.zarr")
    fitted = trainer()
    fitted.fit(data, max_epochs=1, memory="16MB", checkpoint="run")
    model = st.load("run", model=nn.Linear(4, 3), device="cpu")
    for call in (lambda: fitted.evaluate(three), lambda: model.predict(three), lambda: model.predict(X[:, :3])):
        said, _ = refused(call, st.UsageError)
        assert "(3,)" in said
        assert "(4,)" in said
        assert "normalize" not in said


def test_a_run_that_is_not_there() -> None:
    trainer().fit(stored(), max_epochs=1, memory="16MB", checkpoint="run")
    said, fix = refused(lambda: st.load("rnu"), st.CheckpointError)
    assert "no such folder" in said
    assert "config.json" not in said
    [name] = re.findall("did you mean '(.*)'", fix)
    assert st.load(name, model=nn.Linear(4, 3), device="cpu").predict(X).shape == (60,)
    _, fix = refused(lambda: trainer().evaluate("dd.zarr"), st.DatasetError)
    assert fix == "did you mean 'd.zarr'?"


def test_a_run_beside_its_training() -> None:
    """What is read while a trainer goes on is its newest whole checkpoint."""
    data, seen = stored(), []
    model = nn.Linear(4, 3)

    def read(summary: Any) -> None:
        if summary.number > 1:
            loaded = st.load("run", which="last", model=nn.Linear(4, 3), device="cpu")
            seen.append(len(loaded.predict(data)))

    trainer(model).fit(data, max_epochs=3, memory="16MB", checkpoint="run", on_epoch=read)
    assert seen == [60, 60]
    with RunFolder(Path("new"), {}):
        _, fix = refused(lambda: st.load("new", model=model), st.CheckpointError)
    assert fix == "wait for its first checkpoint: it is being trained"


def test_a_comparison_that_diverges() -> None:
    data = stored(x=X * 1e4, y=X[:, 0] * 1e4)
    how: dict[str, Any] = {"rules": ("batch",), "optimizers": ("sgd",), "memory": "16MB", "loss": "mse"}
    [run] = st.compare(nn.Linear(4, 1), data, lr=10.0, max_epochs=3, out="c", **how)
    assert run.diverged is not None
    assert re.search(r"step \d+: the loss is", run.diverged)
    given = arguments(run.diverged, r"(lr=[\d.e-]+)\.$")
    [other] = st.compare(nn.Linear(4, 1), data, max_epochs=1, out="e", **given, **how)
    assert other.diverged is None


def test_a_budget_too_small() -> None:
    data = stored()
    said, fix = refused(lambda: trainer().fit(data, max_epochs=1, max_memory="50MB"), st.BudgetError)
    for term in ("libraries", "weights, gradients and the optimizer's state", "one step", "allocators"):
        assert term in said
    trainer().fit(data, max_epochs=1, **arguments(fix, "(max_memory='.*')"))
    said, fix = refused(lambda: trainer().fit(data, val=data, max_epochs=1, memory="4MB"), st.BudgetError)
    assert "Validation data gets 1/4 of it" in said
    trainer().fit(data, val=data, max_epochs=1, **arguments(fix))


def test_a_last_batch_of_one_under_batch_norm() -> None:
    data = stored()

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    _, fix = refused(lambda: trainer(net()).fit(data, max_epochs=1, memory="16MB", batch_size=59), st.UsageError)
    trainer(net()).fit(data, max_epochs=1, memory="16MB", **arguments(fix, r"(batch_size=\d+)"))
    with st.StreamLoader(data, batch_size=59, memory="16MB", **arguments(fix, "(drop_last=True)")) as loader:
        trainer(net()).fit(loader, max_epochs=1)


def test_a_run_under_a_schedule_that_has_an_end() -> None:
    data = stored()
    for name in ("cosine", "onecycle"):
        how: dict[str, Any] = {"memory": "16MB", "checkpoint": name}
        trainer(schedule=st.Schedule(name=name)).fit(data, max_epochs=1, **how)
        call = lambda how=how, name=name: trainer(schedule=st.Schedule(name=name)).fit(  # noqa: E731
            data, max_epochs=2, resume="auto", **how
        )
        said, fix = refused(call, st.CheckpointError)
        assert "1 there, 2 here" in said
        if name == "cosine":
            assert "its rate rises again" in fix
            options = arguments(fix, r"(options=\{.*?\})")
            trainer(schedule=st.Schedule(name=name, **options)).fit(data, max_epochs=2, resume="auto", **how)


@pytest.mark.parametrize("begins", [False, True])
def test_slices_of_a_run_add_up(begins: bool) -> None:
    data, fitted = stored(), trainer()
    with st.StreamLoader(data, batch_size=8, memory="16MB") as loader:
        if begins:
            fitted.fit(loader, max_steps=5)
        fitted.fit(loader, max_steps=10)
    assert (fitted.counts.n_steps, fitted.counts.n_epochs) == (10, 1)


def test_models_of_float64_lazy_and_compiled_ones() -> None:
    data = stored()
    models = {
        "double": nn.Linear(4, 3).double(),
        "lazy": nn.LazyLinear(3),
        "compiled": torch.compile(nn.Linear(4, 3), backend="eager"),
    }
    for model in models.values():
        fitted = trainer(model, normalize="auto")
        fitted.fit(data, max_epochs=1, memory="16MB")
        with torch.no_grad():
            assert fitted.evaluate(data).n_samples == 60


def speed(rate: float, waiting: float) -> Speed:
    return Speed(n_samples=int(rate), seconds=1.0, wait_seconds=waiting)


def test_headspace_that_waiting_does_not_explain() -> None:
    cores = "read, check and gather on the cores that the steps compute on"
    for waiting, is_told in ((0.0, True), (0.05, True), (1 / 6, False)):
        found = Headspace(ratio=1.2, loader=speed(1000, waiting), perfect=speed(1200, 0.0))
        assert found.shares_cores == is_told
        assert (cores in headspace_line(found)) == is_told
    assert not Headspace(ratio=1.01, loader=speed(1000, 0.0), perfect=speed(1010, 0.0)).shares_cores


def test_the_figures_of_a_step_are_those_that_were_taken() -> None:
    data = stored()
    for optimizer in ("cg", "lbfgs"):
        model = nn.Linear(4, 3)
        seen: list[tuple[float, float]] = []

        def look(summary: Any, model: nn.Module = model, seen: list[tuple[float, float]] = seen) -> None:
            with torch.no_grad():
                output = model(torch.from_numpy(X))
            seen.append((summary.train.loss, float(nn.functional.cross_entropy(output, torch.from_numpy(Y)))))

        fitted = trainer(model, optimizer=optimizer, update="epoch")
        fitted.fit(data, max_epochs=8, memory="16MB", on_epoch=look)
        assert [told for told, _ in seen] == pytest.approx([real for _, real in seen], rel=1e-5)


def test_the_terms_of_a_plan_and_numbers_of_things() -> None:
    data = st.ingest({"x": X.repeat(40, 0), "y": Y.repeat(40)}, "d.zarr", block="2KB")
    plan = st.plan(data, batch_size=32, memory="16MB")
    told = str(plan.projection)
    assert all(name in told for name in plan.projection.terms)
    assert f"= {plan.projection.total_bytes / 1e6:.1f} MB of 16.0 MB" in told
    one = st.ingest({"x": X[:1], "y": Y[:1]}, "one.zarr")
    with st.StreamLoader(one, batch_size=1, memory="16MB") as loader:
        shown = [repr(one), repr(st.plan(one, batch_size=1)), repr(loader)]
    assert not re.search(r"\b1 (samples|batches|lanes|blocks)", "".join(shown)), shown
