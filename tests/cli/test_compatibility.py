"""A run or a dataset, and data whose columns or classes are others: refused by name in every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import named_tables
import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

TRAIN = ("--model", "linear", "--lr", "0.1", "--memory", "16MB", "--epochs", "10", "--batch-size", "4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as a dataset, a run over it, and the same rows in other orders."""
    folder = tmp_path_factory.mktemp("made")
    columns, labels = named_tables.rows()

    def ingest(name: str, order: tuple[str, ...] = named_tables.COLUMNS, **options: Any) -> None:
        path = named_tables.write(folder / f"{name}.csv", columns, labels, order)
        st.ingest(path, folder / f"{name}.zarr", label_column="kind", codec="none", **options)

    ingest("train")
    ingest("columns", ("depth", "height", "width"))
    ingest("classes", classes=["bee", "ant", "cat"])
    names = {"height": "length", "width": "width", "depth": "depth"}
    renamed = {new: columns[old] for old, new in names.items()}
    st.ingest(
        named_tables.write(folder / "renamed.csv", renamed, labels, tuple(renamed)),
        folder / "renamed.zarr", label_column="kind", codec="none",
    )  # fmt: skip
    few, of_few = named_tables.rows(kinds=("bee", "cat"))
    st.ingest(named_tables.write(folder / "few.csv", few, of_few), folder / "few.zarr", label_column="kind")
    x = np.array([columns[name] for name in named_tables.COLUMNS]).T
    y = np.array([named_tables.KINDS.index(label) for label in labels])
    st.ingest({"x": x, "y": y}, folder / "arrays.zarr", codec="none")
    assert main(["train", str(folder / "train.zarr"), *TRAIN, "--out", str(folder / "run")]) == 0
    return folder


REFUSED = [
    ("renamed", "it has no column 'height', which OURS has", "data with all of these columns"),
    ("classes", "its labels 0, 1, ... are 'bee', 'ant', 'cat'; in OURS they are 'ant', 'bee'", "--classes ant,bee,cat"),
    ("few", "label 0 is 'bee' here and 'ant' there", "--classes ant,bee,cat"),
]
every_refused = pytest.mark.parametrize(("name", "message", "fix"), REFUSED, ids=[row[0] for row in REFUSED])


@every_refused
def test_evaluate_refuses_it(made: Path, capsys: pytest.CaptureFixture[str], name: str, message: str, fix: str) -> None:
    assert main(["evaluate", str(made / "run"), str(made / f"{name}.zarr")]) == 2
    told = capsys.readouterr()
    assert message.replace("OURS", f"run {made / 'run'}") in told.err
    assert fix in told.err
    assert told.out == ""


def test_evaluate_puts_columns_in_order_and_says_so(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(made / "run"), str(made / "columns.zarr")]) == 0
    assert "are put in the order of" in capsys.readouterr().err
    assert accuracy(made / "run", made / "columns.zarr") == 1.0


@pytest.mark.parametrize("command", ["train", "compare"])
def test_validation_data_is_put_in_order_and_said_once(
    made: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    data = (str(made / "train.zarr"), "--val", str(made / "columns.zarr"))
    of_compare = ("--rules", "batch", "--optimizers", "sgd", "--lr", "0.1", "--epochs", "2")
    words = TRAIN if command == "train" else ("--model", "linear", "--memory", "16MB", *of_compare)
    capsys.readouterr()
    assert main([command, *data, *words, "--out", "out", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err.count("are put in the order of") == told.err.count("warning") == 1
    found = json.loads(told.out)
    if command == "train":
        assert found["val"]["accuracy"] == 1.0
    else:
        points = found["runs"][0]["epochs"]
        assert [point["val_loss"] for point in points] == [point["loss"] for point in points]


@every_refused
@pytest.mark.parametrize("command", ["train", "compare"])
def test_validation_data_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, message: str, fix: str
) -> None:
    val = ("--val", str(made / f"{name}.zarr"), "--out", "out")
    assert main([command, str(made / "train.zarr"), "--model", "linear", "--memory", "16MB", *val]) == 2
    err = capsys.readouterr().err
    assert message.replace("OURS", "the training data") in err
    assert fix in err
    assert not Path("out").exists()


def test_the_remedy_that_is_named_works(made: Path) -> None:
    remedy = ("--label-column", "kind", "--classes", "ant,bee,cat")
    assert main(["ingest", str(made / "classes.csv"), "d.zarr", *remedy]) == 0
    assert accuracy(made / "run", Path("d.zarr")) == 1.0


def accuracy(run: Path, dataset: Path) -> Any:
    from click.testing import CliRunner

    from streamtrain.cli.commands.inference_commands import evaluate_command

    told = CliRunner().invoke(evaluate_command, [str(run), str(dataset), "--json"], catch_exceptions=False)
    return json.loads(told.stdout)["accuracy"]


OTHER_ORDER = "the columns of x are 'depth', 'height', 'width'; in OURS they are 'height', 'width', 'depth'"


@pytest.mark.parametrize(("name", "message"), [*(row[:2] for row in REFUSED), ("columns", OTHER_ORDER)])
def test_resume_refuses_it(made: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    run = shutil.copytree(made / "run", "run")
    capsys.readouterr()
    assert main(["train", str(made / f"{name}.zarr"), *TRAIN, "--out", str(run), "--resume"]) == 6
    assert message.replace("OURS", "the run's data") in capsys.readouterr().err


def test_only_the_names_tell_the_renamed_one(made: Path) -> None:
    assert st.open(made / "renamed.zarr").id == st.open(made / "train.zarr").id


def test_a_class_less_changes_no_number(made: Path) -> None:
    columns, labels = named_tables.rows(kinds=("ant", "bee"))
    st.ingest(named_tables.write(Path("two.csv"), columns, labels), "two.zarr", label_column="kind")
    assert accuracy(made / "run", Path("two.zarr")) == 1.0
    val = ("--val", "two.zarr", "--out", "out")
    assert main(["train", str(made / "train.zarr"), *TRAIN, *val]) == 0


@pytest.mark.parametrize("command", ["evaluate", "train", "compare"])
def test_what_has_no_names_is_matched_by_position_and_said_once(
    made: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arrays = str(made / "arrays.zarr")
    words = {
        "evaluate": ("evaluate", str(made / "run"), arrays),
        "train": ("train", str(made / "train.zarr"), *TRAIN, "--val", arrays, "--out", "out"),
        "compare": ("compare", str(made / "train.zarr"), "--model", "linear", "--memory", "16MB", "--val", arrays),
    }
    capsys.readouterr()
    assert main([*words[command], *(("--rules", "batch", "--epochs", "2") if command == "compare" else ())]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: ") == err.count("matched by position") == 1
    assert "arrays.zarr has no names for the columns of x and the classes" in err


def test_a_run_of_before_there_were_names_is_evaluated_and_goes_on(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made / "run", "run"))
    (run / "schema.json").unlink()
    capsys.readouterr()
    for name in ("train", "arrays"):
        assert main(["evaluate", str(run), str(made / f"{name}.zarr")]) == 0
        assert capsys.readouterr().err.count("matched by position") == (name == "train")
    more = [*TRAIN[:-4], "--epochs", "11", "--batch-size", "4"]
    assert main(["train", str(made / "train.zarr"), *more, "--out", str(run), "--resume"]) == 0
    assert not (run / "schema.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9}', '{"version": 1, "fields": {"x": 5}}'])
def test_a_damaged_schema_is_told_as_damage(made: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    run = Path(shutil.copytree(made / "run", "run"))
    (run / "schema.json").write_text(text)
    for words in (("evaluate", str(run), str(made / "train.zarr")),
                  ("train", str(made / "train.zarr"), *TRAIN, "--out", str(run), "--resume")):  # fmt: skip
        assert main(words) == 6
        assert "run/schema.json: is damaged" in capsys.readouterr().err


def test_a_dataset_of_tables_that_disagree_is_warned_of(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an append of version 0.1.0 left it."""
    import hashlib

    path = Path(shutil.copytree(made / "train.zarr", "d.zarr"))
    file, root = path / "_streamtrain/manifest.json", path / "zarr.json"
    manifest, head = json.loads(file.read_bytes()), json.loads(root.read_bytes())
    manifest["sources"].append({**manifest["sources"][0], "columns": ["width", "height", "depth"]})
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    head["attributes"]["streamtrain"]["manifest_sha256"] = hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    root.write_text(json.dumps(head))
    assert st.open(path).columns is None
    assert main(["train", "d.zarr", *TRAIN, "--out", "out"]) == 0
    assert "its sources do not agree on the columns of x: 'height', 'width', 'depth', then" in capsys.readouterr().err


def test_categories_in_another_order_are_put_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=60).tolist(), "c": rng.choice(list("uvw"), 60), "e": rng.choice(list("xy"), 60)}
    labels = [str(kind) for kind in rng.choice(["n", "y"], 60)]
    for name, order in (("one", ("a", "c", "e")), ("other", ("e", "c", "a"))):
        named_tables.write(Path(f"{name}.csv"), columns, labels, order)
        categorical = [each for each in order if each != "a"]
        st.ingest(f"{name}.csv", f"{name}.zarr", label_column="kind", categorical=categorical)
    words = ("--model", "mlp:4", "--memory", "16MB", "--epochs", "1", "--out", "run", "--json")
    capsys.readouterr()
    assert main(["train", "one.zarr", "--val", "other.zarr", *words]) == 0
    told = capsys.readouterr()
    assert told.err.count("the columns of cat are put in the order of the training data") == 1
    losses = [json.loads(told.out)["val"]["loss"]]
    for source in ("one.zarr", "other.zarr", "other.csv"):
        assert main(["evaluate", "run", source, "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert len(set(losses)) == 1
