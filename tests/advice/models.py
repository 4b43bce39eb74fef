"""Worlds of models: by name, of the user's own code, over the fields of a table, and started from weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch

import streamtrain as st
from streamtrain.training.initial_weights import load_initial_weights
from tests.advice.command_line import SMALL, TRAIN, typed
from tests.advice.world import World, X, Y, world

_FACTORY = "models/factory.py:"
_CODE = "models/user_code.py:"
_INITIAL = "training/initial_weights.py:load_initial_weights:"
_WEIGHTS = "training/initial_weights.py:_weights_at:"
_RIGHT = "from torch import nn\ndef build():\n    return nn.Linear(4, 3)\nready = nn.Linear(4, 3)\n"
_CODES = np.arange(len(X), dtype=np.int32)[:, None] % 4
_TABLE = f"train d.zarr --model mlp:4 --epochs 1 {SMALL}"


def line(model: str) -> str:
    return TRAIN.replace("linear", model)


@world(
    f"{_FACTORY}_cnn: model='mlp:256,128', say",
    f"{_FACTORY}ToChannels.__init__: model='mlp:256,128', say",
    f"{_FACTORY}_refuse_argument: model={{}}, or model={{}}",
    f"{_FACTORY}_widths: model='mlp:256,128', say",
)
def models_by_name(w: World) -> None:
    w.dataset("small.zarr", x=np.zeros((60, 3, 3), "f4"))
    typed(w, line("cnn"), line("linear:8"), line("mlp:a"), line("mlp:99999999"))
    w.typed(line("cnn").replace("d.zarr", "small.zarr"))


@world(
    f"{_CODE}parse_code_name: model={{}}, say",
    f"{_CODE}make_from_code: leave out model_args=",
    f"{_CODE}make_from_code: name a function or a class that makes the model, or the model itself",
    f"{_CODE}make_from_code: return the model",
    f"{_CODE}check_file: did you mean {{}}?",
    f"{_CODE}check_file: FILE.py:NAME, relative to the current directory",
    f"{_CODE}_find: model={{}}",
    f"{_CODE}_find: name a function, a class or a module that is defined in it",
    f"{_CODE}_arguments: give each: model_args={{}}, say",
    f"{_CODE}_run: correct it, or what it is called with",
    f"{_CODE}_import_fix: correct the file",
    f"{_CODE}_import_fix: install {{}}, or put its folder on the path: PYTHONPATH={{}}",
)
def models_in_files(w: World) -> None:
    w.dataset()
    w.refuses(line("nothing_like_it.py:build"))
    file = Path("m.py")
    file.write_text(_RIGHT)
    w.typed(line("m.py"))
    w.typed(line("m.py:built"))
    assert w.refuses(line("mm.py:build")) == "did you mean 'm.py'?"
    w.refuses(line("m.py:zzz"))
    w.refuses(f"{line('m.py:ready')} --model-arg a=1")
    w.works(line("m.py:ready"))
    for wrong in (
        "build = 5\n",
        "def build():\n    return 5\n",
        "def build():\n    raise KeyError(3)\n",
        "def build(:\n",
        "import zzz_other\n",
    ):
        file.write_text(wrong)
        w.refuses(line("m.py:build"))
    file.write_text("from torch import nn\ndef build(a, b, c):\n    return nn.Linear(4, 3)\n")
    w.refuses(line("m.py:build"))
    w.works(f"{line('m.py:build')} --model-arg a=1 --model-arg b=1 --model-arg c=1")
    file.write_text(_RIGHT)
    w.works(line("m.py:build"))


@world(
    f"{_CODE}_import_module: install its package, or put its folder on PYTHONPATH; a file is {{}}",
    f"{_CODE}_import_module: correct the package, or install it again",
)
def models_in_packages(w: World) -> None:
    w.dataset()
    Path("nets_of_a_world").mkdir()
    Path("nets_of_a_world/__init__.py").write_text("")
    package = Path("nets_of_a_world/one.py")
    package.write_text("1 / 0\n")
    w.refuses(line("nets_of_a_world.one:build"))
    w.monkeypatch.syspath_prepend(w.folder)
    w.refuses(line("nets_of_a_world.one:build"))
    package.write_text(_RIGHT)
    w.works(line("nets_of_a_world.one:build"))


@world(
    f"{_FACTORY}make_model: leave out model_args=, or a model of your own",
    "cli/options.py:_parse_pairs: {} {}, say",
)
def arguments_of_models(w: World) -> None:
    w.dataset()
    w.refuses(f"{TRAIN} --model-arg width=3")
    w.works(TRAIN)
    assert w.refuses(f"{TRAIN} --model-arg width") == "--model-arg width=64, say"
    w.refuses(f"{TRAIN} --schedule step --schedule-option ten")
    w.works(f"{TRAIN} --schedule step --schedule-option step_size=10")


@world(
    "cli/compatibility.py:chosen_inputs: --inputs x, say",
    f"{_FACTORY}_check_inputs: inputs={{}}, say, or a model of your own: model='FILE.py:NAME'",
)
def inputs(w: World) -> None:
    typed(w, f"{TRAIN} --inputs ''")
    w.refuses(f"{TRAIN} --inputs x,y")
    w.works(f"{TRAIN} --inputs x")
    Path("two.py").write_text(
        "from torch import nn\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(4, 3)\n    def forward(self, x, y):\n        return self.a(x)\n"
    )
    w.works(f"train d.zarr --model two.py:Two --inputs x,y --normalize none --epochs 1 {SMALL}")


@world(
    "cli/compatibility.py:check_categories: code it by the categories of the training data",
    "models/model_data.py:category_sizes: number the categories from 0, or give the field another name",
    "models/table_inputs.py:CategoryEmbeddings._check: data with the categories of the training data",
)
def categories(w: World) -> None:
    from streamtrain.models.table_inputs import CategoryEmbeddings

    for name, codes in (("d", _CODES), ("other", _CODES + 1), ("negative", _CODES - 1)):
        st.ingest({"x": X, "cat": codes, "y": Y}, w.folder / f"{name}.zarr", progress=False)
    w.works(_TABLE)
    w.refuses(f"{_TABLE} --val other.zarr")
    w.works(f"{_TABLE} --val d.zarr")
    w.refuses(_TABLE.replace("d.zarr", "negative.zarr"))
    embed = CategoryEmbeddings((4,), (2,))
    w.refused(embed, torch.tensor([[4]]))
    embed(torch.tensor([[3]]))


@world(
    f"{_INITIAL} init='runs/1', say",
    f"{_WEIGHTS} convert it, if you know where it is from: import torch, safetensors.torch; "
    "safetensors.torch.save_file(torch.load({}, weights_only=True), {})",
    f"{_INITIAL} init_partial=True takes those that agree",
    f"{_INITIAL} weights of this model",
    f"{_WEIGHTS} give a run, or a file that safetensors wrote",
)
def weights_to_start_from(w: World) -> None:
    w.dataset()
    w.works(f"{line('mlp:4')} --out runs/1")
    w.refuses(f"{line('mlp:4')} --init-partial")
    w.works(f"{line('mlp:4')} --init-partial --init runs/1")
    w.refuses(f"{line('mlp:4,5')} --init runs/1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        w.works(f"{line('mlp:4,5')} --init runs/1 --init-partial")
    w.refuses(f"{TRAIN} --init runs/1")
    w.works(f"{TRAIN} --out runs/b")
    w.works(f"{TRAIN} --init runs/b")
    torch.save({"1.weight": torch.zeros(3, 4), "1.bias": torch.zeros(3)}, "old.pt")
    commands = w.refused(load_initial_weights, torch.nn.Linear(4, 3), "old.pt").partition(": ")[2]
    exec(commands, {})
    w.works(f"{TRAIN} --init old.safetensors")
    w.refuses(f"{TRAIN} --init lost.safetensors")
    w.works(f"{TRAIN} --init runs/b")


@world("training/inference/saved_run.py:_check_sizes: train again")
def sizes_of_no_saved_weights(w: World) -> None:
    w.dataset()
    evaluate = "evaluate run d.zarr --memory 16MB --batch-size 20"
    w.works(f"{TRAIN} --out run")
    config = Path("run/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_outputs": 2**62}))
    w.refuses(evaluate)
    w.works(f"{TRAIN} --out again")
    w.works(evaluate.replace("run", "again"))
