"""Worlds of predictions, evaluations of raw files, and exports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

import streamtrain as st
from tests.advice.world import World, X, Y, world

_BATCHES = "training/inference/batches.py:"
_TARGET = "training/inference/writers/target.py:"
_FRAMES = "training/inference/frames.py:"
_EXPORT = "training/inference/export.py:check_export: "
_ROWS = "ingestion/rows.py:"
_PREDICT = "training/inference/predicting.py:"
RAW = "st.rows(frame, like=model), which reads all that an ingest does; of a Trainer, like=dataset"
LIKE = 'st.ingest(frame, "new.zarr", like=dataset), and evaluate on that'
SMALL = "--epochs 1 --memory 16MB --batch-size 20 --threads 1"
TABLE = "a,b,c,y\n" + "1,2.5,u,no\n3,4.5,v,yes\n" * 10


def table_run(w: World, text: str = TABLE, options: str = "--categorical c") -> st.Dataset:
    """Train on a table of two numbers, a category and a class."""
    Path("t.csv").write_text(text)
    w.works(f"ingest t.csv t.zarr --label-column y {options}")
    w.works(f"train t.zarr --model linear --out run {SMALL}")
    return st.open("t.zarr")


def array_run(w: World, **fields: Any) -> st.Dataset:
    """Train on arrays."""
    dataset = w.dataset(**fields)
    w.works(f"train d.zarr --model linear --out run {SMALL}")
    return dataset


def loaded(**given: Any) -> Any:
    return st.load("run", device="cpu", **given)


@world("cli/inference/predict.py:opened_data: leave it out", "ingestion/rows.py:open_rows: leave labels= out")
def splits_of_raw_files(w: World) -> None:
    table_run(w)
    w.refuses("predict run t.csv --split val")
    w.works("predict run t.csv")
    for source in ("t.csv", "t.zarr"):
        w.refuses(f"evaluate run {source} --labels t.csv")
        w.works(f"evaluate run {source}")


@world(
    "cli/inference/evaluate.py:_loss: a stored dataset of a known task; or streamtrain.load(RUN).predict(...), and scores of "
    "your own"
)
def a_loss_that_is_code(w: World) -> None:
    data = w.dataset(y=X[:, 0] / 3)

    def own(output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output.squeeze(1), target)

    trainer = st.Trainer("linear", loss=own, device="cpu")
    trainer.fit(data, max_epochs=1, memory="16MB", checkpoint="run", progress=False)
    np.savez("more.npz", x=X, y=X[:, 0] / 3)
    w.refuses("evaluate run more.npz")
    w.works("evaluate run d.zarr")
    assert len(loaded().predict(data)) == len(data)


@world(
    "cli/inference/predict.py:_check_out: --out predictions.csv, say",
    f"{_TARGET}check_target: out='predictions.csv', say",
    f"{_TARGET}check_target: overwrite=True, or another out=",
    f"{_TARGET}check_target: another out=",
    f"{_TARGET}_check_dataset: overwrite=True, or another out=",
    f"{_TARGET}_check_dataset: another out=",
    f"{_TARGET}_check_outside: another out=",
)
def places_of_predictions(w: World) -> None:
    array_run(w)
    for line in ("--out - --json", "--overwrite", "--out p.xlsx"):
        w.refuses(f"predict run d.zarr {line}")
        w.works("predict run d.zarr --out predictions.csv --overwrite")
    for out in ("p.csv", "p.zarr"):
        w.works(f"predict run d.zarr --out {out}")
        w.typed(f"predict run d.zarr --out {out}")
    Path("folder.csv").mkdir(), Path("folder.zarr").mkdir(), Path("folder.zarr/mine").touch()
    np.save("x.npy", X)
    for out in ("folder.csv", "nowhere/p.csv", "folder.zarr", "x.npy", "d.zarr"):
        w.refuses(f"predict run {'x.npy' if out == 'x.npy' else 'd.zarr'} --out {out} --overwrite")
    w.works("predict run d.zarr --out another.csv")


@world(f"{_PREDICT}_checked_rows: rows='0:1000', say", f"{_PREDICT}_outside: rows={{}}")
def rows_that_are_not_there(w: World) -> None:
    array_run(w)
    w.typed("predict run d.zarr --rows 40:70")
    w.refuses("predict run d.zarr --rows 7")
    w.works("predict run d.zarr --rows 0:60")
    w.followed(loaded().predict, X, rows=(40, 70))


@world(
    f"{_PREDICT}_whole_budget: memory={{}}",
    f"{_PREDICT}hold: out='predictions.npy' writes them as they come",
)
def memory_that_is_too_small(w: World) -> None:
    array_run(w)
    w.typed("predict run d.zarr --out p.csv --memory 100KB")
    w.followed(loaded().predict, np.tile(X, (200, 1)), memory="50KB")


@world(
    "store/schema/arrangement.py:check_columns: rename the columns, if {}",
    "store/schema/arrangement.py:check_columns: data with all of these columns",
    f"{_ROWS}_check_header: rename one of them",
    f"{_ROWS}_check_classes: leave those rows out of the source, or the column",
    f"{_ROWS}_unfit: correct the value in the source, or leave its row out",
    f"{_ROWS}_of_arrays: fields={{}} names it, if it is there",
)
def raw_files_that_do_not_fit(w: World) -> None:
    table_run(w)
    wrong = {
        "nearly": "a,bb,c\n1,2,u\n",
        "other": "x,z,c\n1,2,u\n",
        "twice": "a,a,b,c\n1,1,2,u\n",
        "class": "a,b,c,y\n1,2,u,maybe\n",
        "text": "a,b,c\n1,two,u\n",
    }
    for name, text in wrong.items():
        Path(f"{name}.csv").write_text(text)
        w.refuses(f"predict run {name}.csv")
    Path("right.csv").write_text("c,a,b\nu,1,2\n")
    w.works("predict run right.csv")
    Path("text.csv").write_text("a,b,c,y\n1,two,u,no\n")
    w.refuses("evaluate run text.csv")
    Path("text.csv").write_text("a,b,c,y\n")
    w.refuses("evaluate run text.csv")
    w.works("evaluate run t.csv")
    w.works(f"train {w.dataset().path} --model linear --out arrays {SMALL}")
    model = st.load("arrays", device="cpu")
    assert "fields=" in w.refused(st.rows, {"features": X}, like=model)
    list(st.rows({"features": X}, like=model, fields={"x": "features"}))


@world(f"{_ROWS}_known: a dataset, or streamtrain.load(RUN)", f"{_ROWS}_check_known: a dataset, or train again")
def terms_that_say_nothing(w: World) -> None:
    array_run(w)
    w.refused(st.rows, X, like=5)
    model = loaded()
    list(st.rows(X, like=model))
    model.schema = type(model.schema)()
    w.refused(st.rows, X, like=model)
    list(st.rows(X, like=loaded()))


@world(
    f"{_BATCHES}_opened: streamtrain.rows({{}}, like=model) reads it, or ingest it",
    f"{_BATCHES}_check_has: data with field {{}}",
    f"{_BATCHES}_of_runs: an array, numpy.asarray(x) say; streamtrain.rows(..., like=model) reads raw files",
    f"{_BATCHES}_of_arrays: arrays of one length",
    f"{_BATCHES}_as_array: an array with rows first: x[None]",
    f"{_BATCHES}_as_array: x.to_dense(), or x.to_padded_tensor(0.0) of a nested one",
    f"{_BATCHES}_as_array: fill it in: x.filled(value)",
    f"{_BATCHES}as_known: arrays with rows first, each of that shape",
    f"{_BATCHES}as_known: x.astype({{}}), if it is of that scale",
    "training/inference/predicts.py:Predicts.predict: leave it out",
)
def data_that_a_model_does_not_take(w: World) -> None:
    array_run(w)
    np.save("x.npy", X)
    model = loaded()
    w.refused(model.predict, "x.npy")
    assert len(model.predict(st.rows("x.npy", like=model))) == len(X)
    w.refused(model.predict, {"features": X})
    w.refused(model.predict, {"x": X, "id": np.arange(3)})
    w.refused(model.predict, X.tolist())
    w.refused(model.predict, 5)
    w.refused(model.predict, np.float32(1))
    w.refused(model.predict, X[0])
    w.refused(model.predict, torch.from_numpy(X).to_sparse())
    assert len(model.predict(torch.from_numpy(X).to_sparse().to_dense())) == len(X)
    masked = np.ma.masked_less(X, 0)
    w.refused(model.predict, masked)
    assert len(model.predict(masked.filled(0))) == len(X)
    w.refused(model.predict, X.astype(int))
    w.refused(model.predict, X, overwrite=True)
    assert len(model.predict({"x": np.asarray(X.tolist()), "id": np.arange(len(X))})) == len(X)
    assert len(model.predict(X[0][None])) == 1
    assert len(model.predict(X.astype(int).astype("float32"))) == len(X)


@world(
    f"{_BATCHES}_of_runs: a dict of arrays, {{{{}}}}",
    f"{_FRAMES}frame_arrays: {RAW}",
    "training/inference/given_batches.py:GivenBatches.__init__: " + LIKE,
    f"{_FRAMES}_column: {RAW}",
    f"{_FRAMES}_codes: {RAW}",
    f"{_FRAMES}_numbers: fill it in, or leave the row out",
    f"{_FRAMES}_numbers: round it",
)
def frames_that_a_model_does_not_take(w: World) -> None:
    table_run(w)
    model = loaded()
    w.refused(model.predict, np.ones((2, 2)))
    assert len(model.predict({"x": np.ones((2, 2)), "cat": np.full((2, 1), 2, np.int32)})) == 2
    good = {"a": [1.0], "b": [2.0], "c": ["u"]}
    for bad in ({"a": ["1"]}, {"c": [True]}, {"a": [float("nan")]}):
        w.refused(model.predict, pa.table({**good, **bad}))
    assert len(model.predict(st.rows(pa.table(good), like=model))) == 1
    Path("days.csv").write_text("a,t,y\n1,2020-01-01,no\n2,2020-01-02,yes\n")
    w.works("ingest days.csv days.zarr --label-column y --dates t")
    w.works(f"train days.zarr --model linear --out days {SMALL.replace('20', '2')}")
    dated, frame = st.load("days", device="cpu"), pa.table({"a": [1], "t": ["2020-01-01"]})
    w.refused(dated.predict, frame)
    assert len(dated.predict(st.rows(frame, like=dated))) == 1
    days = st.open("days.zarr")
    trainer = st.Trainer("mlp", normalize="auto", device="cpu")
    trainer.fit(days, max_epochs=1, progress=False, memory="16MB")
    w.refused(trainer.predict, frame)
    assert len(trainer.predict(st.rows(frame, like=days))) == 1
    labelled = pa.table({"a": [1], "t": ["2020-01-01"], "y": ["no"]})
    for unlabelled in (labelled, st.rows(labelled, like=days)):
        w.refused(trainer.evaluate, unlabelled)
    assert trainer.evaluate(st.ingest(labelled, "new.zarr", like=days, progress=False)).n_samples == 1
    Path("whole.csv").write_text("a,y\n1,no\n2,yes\n")
    w.works("ingest whole.csv whole.zarr --label-column y")
    w.works(f"train whole.zarr --model linear --out whole {SMALL.replace('20', '2')}")
    whole = st.load("whole", device="cpu")
    w.refused(whole.predict, pa.table({"a": [1.5]}))
    assert len(whole.predict(pa.table({"a": [2.0]}))) == 1


@world(
    "training/inference/writers/columns.py:columns_of: a file of arrays: .npy or .zarr",
    "training/inference/writers/columns.py:no_probabilities: leave it out: only classes have them",
    "training/inference/predictions.py:check_probabilities: leave it out, for the probability of the predicted class",
    "training/inference/writers/store.py:StoreWriter.finish: a file: .csv",
    f"{_PREDICT}_output: a model that gives one row a sample",
    f"{_PREDICT}_JoinedOutputs.add: a model whose rows are all of one shape",
)
def predictions_that_no_file_holds(w: World) -> None:
    array_run(w, y=X[:, 0])
    w.refuses("predict run d.zarr --out p.csv --probabilities")
    w.works("predict run d.zarr --out p.csv")
    masks = w.dataset("masks.zarr", x=X.reshape(60, 1, 2, 2), y=np.zeros((60, 2, 2), np.int64))
    trainer = st.Trainer(nn.Conv2d(1, 3, 1), loss="cross_entropy", device="cpu")
    trainer.fit(masks, max_epochs=1, memory="16MB", progress=False)
    w.refused(trainer.predict, masks, out="masks.csv")
    trainer.predict(masks, out="masks.npy")
    many = w.dataset("many.zarr", y=np.arange(60) * 17)
    wide = st.Trainer(nn.Linear(4, 1004), loss="cross_entropy", device="cpu")
    wide.fit(many, max_epochs=1, memory="16MB", progress=False)
    w.refused(wide.predict, many, probabilities=True, out="many.csv")
    wide.predict(many, out="many.csv")
    w.refused(wide.predict, X[:0], out="none.zarr")
    wide.predict(X[:0], out="none.csv")
    whole = st.Trainer(nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), loss="cross_entropy", device="cpu")
    w.refused(whole.predict, X)

    class Ragged(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, : 1 + len(x) // 20]

    ragged = st.Trainer(Ragged(4, 3), loss="mse", device="cpu")
    w.refused(ragged.predict, X, batch_size=40, out="ragged.npy")
    st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu").predict(X)


@world(
    "training/inference/raw_stream.py:check_known_labels: leave those rows out of the source",
    "ingestion/rows.py:_of_arrays: labels='FILE' if they are in a file of their own; or {}",
)
def labels_of_raw_arrays(w: World) -> None:
    array_run(w)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    w.refuses("evaluate run x.npy")
    w.works("evaluate run x.npy --labels y.npy")
    np.savez("more.npz", x=X, y=Y + 2)
    w.refuses("evaluate run more.npz")
    np.savez("more.npz", x=X[Y == 0], y=Y[Y == 0] + 2)
    w.works("evaluate run more.npz")


@world(
    "training/inference/writers/parquet.py:check_arrow: pip install 'streamtrain[arrow]', or a file of another kind: .csv, .npy, .zarr"
)
def a_machine_without_arrow(w: World) -> None:
    array_run(w)
    with w.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        w.refuses("predict run d.zarr --out p.parquet")
    w.works("predict run d.zarr --out p.csv")
    w.works("predict run d.zarr --out p.parquet")


@world(
    "training/inference/saved_run.py:build_module: a torch.nn.Module, or the name of code: 'FILE.py:NAME'",
)
def arguments_of_another_type(w: World) -> None:
    array_run(w)
    w.refused(st.load, "run", model=nn.Linear)
    for which in ("best", "last", "3", 3):
        st.load("run", which=which, device="cpu")


@world(
    f"{_EXPORT}import streamtrain, torch; {{}}",
    f"{_EXPORT}out={{}}",
    f"{_EXPORT}another out=",
    f"{_EXPORT}overwrite=True, or another out=",
)
def exports_to_other_files(w: World) -> None:
    array_run(w)
    for name in ("m.onnx", "m.tflite"):
        # What converts to ONNX is not installed.
        assert "torch.onnx.export(streamtrain.load('run'), (x,), 'm.onnx')" in w.refuses(f"export run --out {name}")
    for name in ("m.pt2", "m.ts", "m.pt"):
        code = w.refuses(f"export run --out {name}").partition(", where")[0]
        exec(code, {"x": torch.from_numpy(X)})
    assert torch.load("m.pt", weights_only=True)
    Path("net.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    def __init__(self):\n")
    with Path("net.py").open("a") as file:
        file.write("        super().__init__(4, 3)\n")
    w.works(f"train d.zarr --model net.py:Net --out code {SMALL}")
    exec(w.refuses("export code --out c.pt"), {})
    w.typed("export run --out m")
    Path("folder.safetensors").mkdir()
    w.refuses("export run --out folder.safetensors --overwrite")
    w.works("export run --out another.safetensors")
    w.typed("export run --out another.safetensors")


@world("ingestion/rows.py:_check_header: data with its labels; predict takes data without")
def rows_without_labels_to_measure(w: World) -> None:
    table_run(w)
    Path("u.csv").write_text("\n".join(line.rpartition(",")[0] for line in TABLE.splitlines()) + "\n")
    w.refuses("evaluate run u.csv")
    w.works("predict run u.csv")
    w.works("evaluate run t.csv")


@world("training/loop.py:check_labels: leave these rows out, or fill in their labels")
def labels_that_are_no_numbers(w: World) -> None:
    array_run(w, y=X[:, 0].astype("float64"))
    labels = X[:, 0].astype("float64")
    np.save("x.npy", X)
    np.save("y.npy", np.where(np.arange(len(X)) == 7, np.nan, labels))
    w.refuses("evaluate run x.npy --labels y.npy --memory 16MB")
    np.save("y.npy", labels)
    w.works("evaluate run x.npy --labels y.npy --memory 16MB")
