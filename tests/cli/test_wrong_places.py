"""Arguments in each other's places, names that are nearly right, and remedies that keep what was typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import DatasetError, StreamtrainWarning, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = "--epochs 1 --memory 16MB --batch-size 20 --threads 1"
HEAD = "a,c,y"
ROWS = [f"{i % 7}.5,{'uvw'[i % 3]},{i % 5}.25" for i in range(60)]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("\n".join([HEAD, *ROWS]) + "\n")
    Path("new.csv").write_text("\n".join(["a,c", *(row.rpartition(",")[0] for row in ROWS)]) + "\n")
    assert main(shlex.split("ingest t.csv flights --label-column y --categorical c")) == 0
    assert main(shlex.split(f"train flights --model linear --out run {SMALL}")) == 0
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], line: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(shlex.split(line)) == code
    return capsys.readouterr().err


def remedy(err: str) -> list[str]:
    [line] = re.findall(r"Fix: streamtrain (.+?)\.?$", err, re.MULTILINE)
    return shlex.split(line)


def test_a_run_and_its_data_swapped_are_put_right_with_all_that_was_typed(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, right in (
        ("predict flights run --out p.csv --rows 0:5", "predict run flights --out p.csv --rows 0:5"),
        ("predict --rows 0:5 t.csv run", "predict --rows 0:5 run t.csv"),
        ("evaluate flights run --checkpoint last", "evaluate run flights --checkpoint last"),
    ):
        err = refused(capsys, line)
        assert "the run and the data are swapped. run is a run" in err
        assert remedy(err) == shlex.split(right)
        assert main(remedy(err)) == 0


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_run_before_a_dataset_is_left_out(command: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = " --rules batch --optimizers sgd" if command == "compare" else ""
    err = refused(capsys, f"{command} run flights --model linear {SMALL}{rules}")
    assert f"{command} takes a dataset alone, and run is the folder of a run" in err
    assert remedy(err) == shlex.split(f"{command} flights --model linear {SMALL}{rules}")
    assert main(remedy(err)) == 0
    assert "Got unexpected extra argument (t.csv)" in refused(capsys, f"{command} flights t.csv --model linear")


@pytest.mark.parametrize("line", ["train run --model linear", "plan run", "compare run --model linear"])
def test_a_run_alone_is_no_dataset(line: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "error: run: the folder of a run, not a dataset. Fix: " in refused(capsys, line, 4)


def test_the_folder_of_a_comparison_is_named_with_its_page_and_its_runs(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(shlex.split(f"compare flights --model linear {SMALL} --rules batch,epoch --optimizers sgd --out c")) == 0
    )
    for line in ("info c", "report c", "evaluate c flights", "predict c flights", "export c --out m.safetensors"):
        err = refused(capsys, line, 6)
        told = "c: the folder of a comparison, not a run. Its page is c/comparison.html. "
        assert f"error: {told}Fix: give one of c/batch-sgd, c/epoch-sgd." in err
    assert main(["info", "c/batch-sgd"]) == 0
    for line in ("train c --model linear", "plan c", "verify c"):
        assert "error: c: the folder of a comparison, not a dataset. Fix: " in refused(capsys, line, 4)
    err = refused(capsys, f"train c flights --model linear {SMALL}")
    assert "train takes a dataset alone, and c is the folder of a comparison" in err
    assert main(remedy(err)) == 0
    assert "error: flights: a dataset, not a run. Fix: " in refused(capsys, "report flights", 6)


def test_compare_in_python_says_what_stands_in_a_wrong_place(trained: Path) -> None:
    data, model = st.open("flights"), nn.Linear(1, 1)
    for given in ((data, model), ("flights", model), (data, "flights")):
        with pytest.raises(UsageError, match="the model and the dataset are swapped"):
            st.compare(*given, max_epochs=1)
    trainer = st.Trainer(model, loss="mse", device="cpu")
    for given in ((trainer, data), (model, trainer)):
        with pytest.raises(UsageError, match="compare makes a trainer for each run"):
            st.compare(*given, max_epochs=1)


def test_a_name_that_is_nearly_right_is_that_of_a_dataset(trained: Path) -> None:
    Path("flight.csv").write_text(HEAD)
    Path("flightz").mkdir()
    for wrong in ("flight", "flghts", "flights2"):
        with pytest.raises(DatasetError) as caught:
            st.open(wrong)
        assert caught.value.fix == "did you mean 'flights'?"
    with pytest.raises(DatasetError) as caught:
        st.open("ne")
    assert caught.value.fix == "did you mean the raw file 'new.csv'? Ingest it first, and open the result"
    Path("q.h5").touch()
    Path("a").mkdir()
    with pytest.raises(DatasetError) as caught:
        st.open("q.zarr")
    assert caught.value.fix == "did you mean the raw file 'q.h5'? Ingest it first, and open the result"
    Path("fill.py").write_text("")
    with pytest.raises(DatasetError) as caught:
        st.open("fill.zarr")
    assert caught.value.fix == "check the path", "a program holds no data"
    with pytest.raises(DatasetError) as caught:
        st.open("elsewhere")
    assert caught.value.fix == "check the path"


def test_data_without_labels_is_for_predictions(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "evaluate run new.csv")
    assert "new.csv: it has no column 'y', with the labels that the run learned. " in err
    assert "Fix: data with its labels; predict takes data without." in err
    err = refused(capsys, "ingest new.csv d2 --like flights", 3)
    assert "new.csv: no label column 'y', which flights has. " in err
    assert "Fix: rows with their labels; predict takes rows without." in err
    assert main(shlex.split("predict run new.csv --rows 2:40 --checkpoint last")) == 0
    [line] = re.findall(r"^all of them: streamtrain (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert line == "predict run new.csv --rows 2:40 --checkpoint last --out predictions.csv"
    assert main(shlex.split(line)) == 0
    assert len(Path("predictions.csv").read_text().splitlines()) == 39


def test_a_quantity_of_texts_is_told_at_ingest(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{row.rpartition(',')[0]},n{i % 30}" for i, row in enumerate(ROWS)]
    Path("n.csv").write_text("\n".join(["a,c,name", *names]) + "\n")
    assert main(shlex.split("ingest t.csv n --label-column y --categorical c")) == 0
    before = st.open("n").id
    for more in ("--overwrite", "--overwrite --split val=0.3"):
        err = refused(capsys, f"ingest n.csv n --label-column name --categorical c --task regression {more}")
        told = (
            "n.csv: regression of name, which holds 30 classes. Classes are not quantities. Fix: --task classification."
        )
        assert told in err
        assert st.open("n").id == before
    assert main(shlex.split("ingest n.csv n --label-column name --categorical c --overwrite")) == 0
    out, _ = capsys.readouterr()
    assert "classes: 0 = n0, 1 = n1, 2 = n10, " in out
    assert out.splitlines()[-2].endswith(", and 10 more")


@pytest.mark.parametrize("more", ["", "--overwrite", "--split val=0.3 --overwrite"])
def test_classes_of_fractions_are_refused_before_anything_is_replaced(
    trained: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    rows = [f"{row.rpartition(',')[0]},{i + 0.5}" for i, row in enumerate(ROWS)]
    Path("n.csv").write_text("\n".join(["a,c,size", *rows]) + "\n")
    if more:
        assert main(shlex.split("ingest t.csv n --label-column y --categorical c")) == 0
        before = st.open("n").id
    err = refused(capsys, f"ingest n.csv n --label-column size --categorical c --task classification {more}")
    assert "classification of size, which holds numbers with fractions" in err
    assert "Fix: --task regression." in err
    assert st.open("n").id == before if more else not Path("n").exists()


def test_no_epochs_are_said_to_take_no_step(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(shlex.split(f"train flights --model linear --out none {SMALL.replace('--epochs 1', '--epochs 0')}")) == 0
    )
    assert "hint: --epochs 0 takes no step: the run keeps the model as it was made" in capsys.readouterr().err
    assert main(shlex.split("evaluate none flights")) == 0
    assert main(shlex.split(f"train flights --model linear --out some {SMALL}")) == 0
    assert "takes no step" not in capsys.readouterr().err


def test_unseen_categories_are_counted_in_python_too(trained: Path) -> None:
    rows = {"a": np.arange(6.0), "c": np.array(["u", "x", "v", "y", "x", "w"], object)}
    pandas = pytest.importorskip("pandas")
    frame, told = pandas.DataFrame(rows), "column 'c': 3 values are 'other', which the training did not have"
    model = st.load("run", device="cpu")
    for predict in (
        lambda: model.predict(frame),
        lambda: list(model.iter_predict(frame, batch_size=2)),
        lambda: model.predict(frame, out="p.csv", overwrite=True),
        lambda: model.predict(st.rows(frame, like=model)),
    ):
        with pytest.warns(StreamtrainWarning, match=re.escape(told)) as caught:
            predict()
        assert len(caught) == 1
        assert caught[0].filename == __file__
    # And nothing where all are known.
    assert len(model.predict(frame[frame.c.isin(["u", "v", "w"])].reset_index(drop=True))) == 3
