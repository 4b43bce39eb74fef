"""Models on the command line: fields of a table, code of the user's own, weights to start from, runs from elsewhere."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.models.factory import build_model
from streamtrain.training.best.chosen_checkpoint import checkpoint_of
from streamtrain.training.initial_weights import load_initial_weights

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")

N = 60
SMALL = ("--epochs", "1", "--memory", "16MB", "--batch-size", "20", "--threads", "1")
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_outputs, category_sizes, width=4):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(size, width) for size in category_sizes)
        self.last = nn.Linear(3 + width * len(category_sizes), n_outputs)
    def forward(self, x, cat):
        return self.last(torch.cat([x, *(e(cat[:, i]) for i, e in enumerate(self.embed))], 1))

def none(): return nn.Linear(3, 3)
def named(num_classes, input_shape): return nn.Linear(input_shape[0], num_classes)
def of_dataset(data): return nn.Linear(data.layout.fields[0].shape[0], 3)
def two(shape, n): return nn.Linear(shape[0], n)
ready = nn.Linear(3, 3)
number = 3
def nothing(): return None
def three(a, b, c): return None
def broken():
    raise KeyError("no such layer")
def wide(): return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(4, 3))
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of numbers with marks of missing ones, and of two columns of categories."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype(np.float32)
    cat = rng.integers(0, [5, 9], (N, 2)).astype(np.int32)
    cat[:2] = [4, 8]
    missing = rng.random((N, 3)) < 0.2
    path = tmp_path_factory.mktemp("data") / "table.zarr"
    st.ingest({"x": x, "cat": cat, "x_missing": missing, "y": np.arange(N) % 3}, path)
    return path


@pytest.fixture
def nets() -> Path:
    Path("nets.py").write_text(NETS)
    return Path("nets.py")


def config(run: str = "runs/1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "config.json").read_text())
    return found


def change(**values: object) -> None:
    Path("runs/1/config.json").write_text(json.dumps(config() | values))


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
@pytest.mark.parametrize(
    "model",
    [
        ("linear",),
        ("mlp",),
        ("mlp:4", "--inputs", "cat"),
        ("linear", "--inputs", "cat,x_missing"),
        ("nets.py:Net", "--inputs", "x,cat", "--model-arg", "width=2"),
        ("nets.py:none", "--inputs", "x"),
        ("nets.py:named", "--inputs", "x"),
        ("nets.py:of_dataset", "--inputs", "x"),
        ("nets.py:two", "--inputs", "x"),
        ("nets.py:ready", "--inputs", "x"),
        ("torch.nn:Linear", "--inputs", "x", "--model-arg", "in_features=3", "--model-arg", "out_features=3"),
        ("torch.nn.Linear", "--inputs", "x", "--model-arg", "in_features=3", "--model-arg", "out_features=3"),
    ],
    ids=" ".join,
)
def test_each_form_of_model_trains_and_is_evaluated(
    model: tuple[str, ...], update: str, stored: Path, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(stored), "--model", *model, "--update", update, *SMALL]) == 0
    out = capsys.readouterr().out
    from_package, is_code = model[0].startswith("torch"), model[0].startswith(("torch", "nets.py"))
    named = ["--model", model[0]] if is_code else []
    if is_code:
        assert main(["evaluate", "runs/1", str(stored), "--memory", "16MB"]) == 6
        assert f"Fix: --model {model[0]}, if you know" in capsys.readouterr().err
    assert main(["evaluate", "runs/1", str(stored), "--memory", "16MB", *named]) == 0
    assert ("called with" in out) == (
        ":" in model[0] and not any(name in model[0] for name in ("ready", "mlp", "none"))
    ) or from_package
    assert ("do not follow from the seed" in out) == ("ready" in model[0])


def test_the_heading_says_what_a_factory_was_called_with(
    stored: Path, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", str(stored), *SMALL, "--inputs", "x,cat", "--model-arg", "width=2"]
    assert main([*args, "--model", "nets.py:Net"]) == 0
    assert "called with n_outputs=3, category_sizes=(5, 9), width=2\n" in capsys.readouterr().out
    assert config()["model_args"] == {"width": 2}
    assert main(["train", str(stored), *SMALL, "--inputs", "x", "--model", "nets.py:of_dataset"]) == 0
    assert "called with data=the dataset\n" in capsys.readouterr().out


def test_embeddings_have_the_widths_of_the_rule(stored: Path) -> None:
    assert main(["train", str(stored), "--model", "mlp", *SMALL]) == 0
    (file,) = Path("runs/1/checkpoints").glob("*/model.safetensors")
    shapes = {name: tuple(value.shape) for name, value in safetensors.torch.load_file(file).items()}
    assert shapes["embeddings.columns.0.weight"] == (5, round(1.6 * 5**0.56))
    assert shapes["embeddings.columns.1.weight"] == (9, round(1.6 * 9**0.56))
    assert shapes["layers.0.weight"] == (256, 3 + 3 + 4 + 5)


@pytest.mark.parametrize("more", [("--max-memory", "auto"), ("--compile",), ("--autocast", "bf16")], ids=" ".join)
def test_tables_train_within_a_budget_compiled_and_in_bfloat16(
    more: tuple[str, ...], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced as ever; what the compiler makes of it is held in tests/models/test_forward.py, and takes half a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert main(["train", str(stored), "--model", "mlp:4", *SMALL, *more]) == 0


def test_compare_takes_tables_and_code(stored: Path, nets: Path) -> None:
    for model in (["mlp:4"], ["nets.py:Net", "--inputs", "x,cat", "--model-arg", "width=2"]):
        assert main(["compare", str(stored), "--model", *model, "--optimizers", "sgd", *SMALL]) == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (["lineal"], "did you mean 'linear'"),
        (["resnet18"], "FILE.py:NAME, PACKAGE.MODULE:NAME"),
        (["mlp:4", "--model-arg", "width=3"], "model mlp takes no arguments: width"),
        (["net.py:none"], "did you mean 'nets.py'"),
        (["nets.py"], "--model nets.py:Net, say"),
        (["nets.py:nonee"], "--model nets.py:none"),
        (["nets.py:number"], "nets.py:number is int"),
        (["nets.py:nothing"], "returned NoneType"),
        (["nets.py:three"], "nets.py:three needs a, b, c"),
        (["nets.py:three"], "--model-arg a=1 --model-arg b=1 --model-arg c=1"),
        (["nets.py:broken"], "nets.py:22: nets.py:broken failed: KeyError: 'no such layer'"),
        (["nets.py:none", "--model-arg", "width=3"], "unknown argument of nets.py:none 'width'"),
        (["nets.py:ready", "--model-arg", "width=3"], "a ready module, which is not called"),
        (["bad.py:net"], "bad.py:2: bad.py cannot be imported: ZeroDivisionError: division by zero"),
        (["no_such.package:net"], "there is no module 'no_such'"),
        (["torch.nn:Linnear"], "--model torch.nn:Linear"),
        (["nets.py:wide"], "0 Linear: (3,) -> (5,)\n         1 ReLU: (5,) -> (5,)\n         2 Linear: (5,)\n"),
        (["cnn", "--inputs", "x,cat"], "model cnn takes one input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_models_are_refused_with_the_line(
    model: list[str], message: str, stored: Path, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.py").write_text("\n1 / 0\n")
    inputs = [] if "--inputs" in model else ["--inputs", "x"]
    assert main(["train", str(stored), *SMALL, *inputs, "--model", *model]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_rescaled_inputs_are_not_told_to_be_rescaled(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest({"x": np.arange(90.0).reshape(30, 3), "y": np.arange(30) % 3}, "doubles")
    for rescaling, fix in (("auto", "a model that takes samples of shape (3,)"), ("none", "--normalize auto, or")):
        assert main(["train", "doubles", *SMALL, "--normalize", rescaling, "--model", "nets.py:wide"]) == 2
        assert f"Fix: {fix}" in " ".join(capsys.readouterr().err.split())


def test_a_run_starts_from_the_weights_of_another(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(stored), "--inputs", "x", "--memory", "16MB", "--batch-size", "20", "--epochs"]
    assert main([*train, "1", "--model", "mlp:4"]) == 0
    (file,) = Path("runs/1/checkpoints").glob("*/model.safetensors")
    assert main(["export", "runs/1", "--out", "1.safetensors"]) == 0
    for init in ("runs/1", str(file), "1.safetensors"):
        assert main([*train, "0", "--model", "mlp:4", "--init", init]) == 0
    for run in ("2", "3", "4"):
        (copy,) = Path("runs", run, "checkpoints").glob("*/model.safetensors")
        assert copy.read_bytes() == file.read_bytes()
    capsys.readouterr()
    assert main([*train, "0", "--model", "mlp:4,5", "--init", "runs/1"]) == 2
    assert "3.weight (5, 4), there (3, 4)" in (err := capsys.readouterr().err)
    assert "--init-partial takes those that agree" in err
    with pytest.warns(st.StreamtrainWarning, match=r"2 of 6 weights are taken; left out: 3\.bias"):
        assert main([*train, "0", "--model", "mlp:4,5", "--init", "runs/1", "--init-partial"]) == 0
    torch.save({}, "old.pt")
    assert main([*train, "0", "--model", "mlp:4", "--init", "old.pt"]) == 6
    assert "safetensors.torch.save_file(torch.load('old.pt', weights_only=True), 'old.safetensors')" in (
        capsys.readouterr().err
    )
    assert main([*train, "0", "--model", "mlp:4", "--init-partial"]) == 2
    assert main([*train, "0", "--model", "mlp:4", "--init", "missing.safetensors"]) == 6


def test_a_run_starts_from_the_best_weights_of_another(stored: Path) -> None:
    model, loader = torch.nn.Linear(3, 3), st.StreamLoader(stored, batch_size=20, memory="16MB")
    trainer = st.Trainer(model, loss="cross_entropy", inputs="x", optimizer="sgd", lr=1e-9, device="cpu")

    def worsen(_: object) -> None:
        model.bias.data[0] += 50

    with loader:
        trainer.fit(loader, max_epochs=3, monitor="loss", checkpoint="run", on_epoch=worsen)
    best, last = (checkpoint_of("run", which).checkpoint.tensors("model") for which in ("best", "last"))
    assert not torch.equal(best["bias"], last["bias"])
    started = torch.nn.Linear(3, 3)
    load_initial_weights(started, "run")
    assert torch.equal(started.bias, best["bias"])


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("data", "a dataset, not a run"),
        ("empty", "no run: config.json is missing"),
        ("compared", "the folder of a comparison, not a run"),
        ("run", "no such folder. Fix: give runs/1"),
        ("lost.safetensors", "the file of weights is missing. Fix: give a run"),
        ("labels.npy", "the file of weights is damaged"),
    ],
)
def test_weights_to_start_from_that_are_none(
    init: str, told: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("compared").mkdir()
    Path("compared/comparison.json").write_text("{}")
    Path("runs/1").mkdir(parents=True)
    Path("runs/1/config.json").write_text("{}")
    np.save("labels.npy", np.arange(3))
    given = str(stored) if init == "data" else init
    assert main(["train", str(stored), "--inputs", "x", "--model", "linear", "--init", given]) == 6
    assert told in " ".join(capsys.readouterr().err.split())


def test_weights_to_start_from_in_python(tmp_path: Path) -> None:
    model, other = (build_model("linear", input_shape=(3,), n_outputs=2, seed=seed) for seed in (0, 1))
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    trainer = st.Trainer(other, loss="cross_entropy", init=file, device="cpu")
    assert torch.equal(next(iter(trainer.model.parameters())), next(iter(model.parameters())))
    with pytest.raises(st.UsageError, match="init is 3"):
        st.Trainer(other, loss="cross_entropy", init=3)  # type: ignore[arg-type]


def test_code_of_a_run_is_called_only_where_it_is_named(
    stored: Path, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(stored), "--inputs", "x", "--model", "nets.py:none", *SMALL]) == 0
    evaluate = ["evaluate", "runs/1", str(stored), "--memory", "16MB"]
    for place, digest, told in (
        ("nets.py", None, "nets.py is the file of the training. Fix: --model nets.py:none"),
        ("nets.py", "0" * 64, "nets.py is not the file of the training any more. Fix: --model nets.py:none"),
        ("gone.py", None, "no such file is here. Fix: --model FILE.py:NAME"),
    ):
        change(model=f"{place}:none", **({"model_sha256": digest} if digest else {}))
        capsys.readouterr()
        assert main(evaluate) == 6
        assert told in capsys.readouterr().err
        change(**{"model_sha256": hashlib.sha256(Path("nets.py").read_bytes()).hexdigest()})
    assert main([*evaluate, "--model", "nets.py:none"]) == 0


def test_the_commands_that_come_next_name_the_code(
    stored: Path, nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(stored), "--inputs", "x", "--model", "nets.py:none", *SMALL]) == 0
    told = capsys.readouterr().err
    commands = [line.removeprefix("next").split()[1:] for line in told.splitlines() if " streamtrain " in line]
    assert [words[0] for words in commands] == ["evaluate", "predict", "report"]
    for words in commands:
        assert main(words) == 0


def test_code_that_changed_before_a_run_goes_on_is_told(
    stored: Path, nets: Path, recwarn: pytest.WarningsRecorder
) -> None:
    def train(n_epochs: str, *more: str) -> list[str]:
        recwarn.clear()
        model = ["--inputs", "x", "--model", "nets.py:none", "--out", "run", *more]
        assert main(["train", str(stored), *model, *SMALL, "--epochs", n_epochs]) == 0
        return [str(each.message) for each in recwarn if each.category is st.StreamtrainWarning]

    changed = "nets.py:none has changed since run was last trained"
    assert changed not in train("1")
    assert changed not in train("2", "--resume")
    with Path("nets.py").open("a") as file:
        file.write("# another\n")
    assert changed in train("3", "--resume")
    assert changed not in train("4", "--resume")


@pytest.mark.parametrize(
    ("model", "values", "told"),
    [
        ("linear", {"n_outputs": 2**62}, "n_outputs"),
        ("linear", {"input_shape": [2**40, 2**40]}, "input_shape"),
        ("mlp:4", {"input_shape": [2**40, 2**40]}, "input_shape"),
        ("mlp:4", {"model": "mlp:16777216,16777216"}, "model"),
        ("mlp:4", {"category_sizes": [2**50, 9]}, "category_sizes"),
        ("mlp:4", {"input_shapes": [[3], [2**40], [2]]}, "input_shapes"),
        ("mlp:4", {"model_args": [1]}, "model_args"),
    ],
)
def test_sizes_that_no_saved_weights_have_are_damage(
    model: str, values: dict[str, object], told: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(stored), "--model", model, *SMALL]) == 0
    change(**values)
    assert main(["evaluate", "runs/1", str(stored), "--memory", "16MB"]) == 6
    assert f"config.json: is damaged. {told} is" in capsys.readouterr().err


def test_sizes_of_a_cnn_are_held_against_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    st.ingest({"x": np.zeros((20, 7, 7), np.float32), "y": np.arange(20) % 2}, "images.zarr")
    assert main(["train", "images.zarr", "--model", "cnn", *SMALL]) == 0
    evaluate = ["evaluate", "runs/1", "images.zarr", "--memory", "16MB"]
    assert main(evaluate) == 0
    for values in ({"input_shape": [2**40, 2**40]}, {"n_outputs": 2**62}):
        before = config()
        change(**values)
        assert main(evaluate) == 6
        change(**before)
    assert main(evaluate) == 0


def test_categories_that_the_model_does_not_know_are_refused(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = st.open(stored)[:20]
    st.ingest(rows | {"cat": rows["cat"] + 3}, "more.zarr")
    assert main(["train", str(stored), "--model", "mlp:4", "--val", "more.zarr", *SMALL]) == 3
    assert "the training data's have 5, 9" in capsys.readouterr().err
    assert main(["train", str(stored), "--model", "mlp:4", *SMALL]) == 0
    assert main(["evaluate", "runs/1", "more.zarr", "--memory", "16MB"]) == 3
    st.ingest(rows | {"cat": rows["cat"] - 9}, "negative.zarr")
    assert main(["train", "negative.zarr", "--model", "mlp:4", *SMALL]) == 3
    assert "number the categories from 0" in capsys.readouterr().err
