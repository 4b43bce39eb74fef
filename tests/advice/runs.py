"""Worlds of runs: their folders and checkpoints, harmed, resumed, evaluated and reported."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

import streamtrain as st
from streamtrain.store.writing.lock import folder_lock
from tests.advice.command_line import TRAIN
from tests.advice.remedies import all_remedies
from tests.advice.training import fit
from tests.advice.world import World, X, world

_READER = "diagnostics/run_reader.py:"
_CHECKPOINT = "training/run/checkpoint.py:"
_SAVED = "training/inference/saved_run.py:"
_FOLDER = "training/run/run_folder.py:"
_MATCHING = "store/schema/matching.py:"
AGAIN = "train again"


def harmed(w: World, line: str, *harms: Callable[[Path], object]) -> None:
    """Harm a run in each way: what reads it refuses, and works on one that was trained again."""
    w.dataset()
    w.works(f"{TRAIN} --out whole")
    for harm in harms:
        shutil.copytree("whole", "run")
        harm(Path("run"))
        assert AGAIN in w.refuses(line)
        shutil.rmtree("run")
        w.works(f"{TRAIN} --out run")
        w.works(line)
        shutil.rmtree("run"), shutil.rmtree("report.html", ignore_errors=True)


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@world(
    f"{_READER}read_run: {AGAIN}",
    f"{_READER}_read_bytes: {AGAIN}",
    f"{_READER}_parse_lines: {AGAIN}",
    f"{_READER}_parse: {AGAIN}",
    f"{_READER}_read_memory: {AGAIN}",
    f"{_READER}_read_scores: {AGAIN}",
    f"{_READER}_read_json: {AGAIN}",
)
def reports_of_damaged_runs(w: World) -> None:
    deep: list[object] = []
    for _ in range(50):
        deep = [deep]
    harmed(
        w,
        "report run",
        lambda run: edited(run / "config.json", deep=deep),
        lambda run: (run / "metrics.jsonl").unlink(),
        lambda run: (run / "metrics.jsonl").write_text("{"),
        lambda run: (run / "metrics.jsonl").write_bytes(b"\xff"),
        lambda run: (run / "memory.json").write_text("[]"),
        lambda run: (run / "memory.json").write_text("{"),
        lambda run: (run / "scores.json").write_text("[]"),
    )


@world(
    f"{_SAVED}_check_types: {AGAIN}",
    f"{_SAVED}read_run: {AGAIN}",
    f"{_FOLDER}read_config: {AGAIN}",
    f"{_FOLDER}read_schema: {AGAIN}",
    f"{_FOLDER}read_baseline: {AGAIN}",
    f"{_CHECKPOINT}_no_checkpoint: {AGAIN}",
)
def evaluations_of_damaged_runs(w: World) -> None:
    def incomplete(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        del config["loss"]
        (run / "config.json").write_text(json.dumps(config))

    harmed(
        w,
        "evaluate run d.zarr --memory 16MB --batch-size 20",
        lambda run: edited(run / "config.json", target=5),
        incomplete,
        lambda run: (run / "config.json").write_text("{"),
        lambda run: (run / "schema.json").write_text("{"),
        lambda run: (run / "scores.json").write_text("{"),
        lambda run: shutil.rmtree(run / "checkpoints"),
    )


@world(f"{_SAVED}SavedRun.check_targets: {AGAIN}")
def units_of_more_targets(w: World) -> None:
    w.dataset(y=X[:, :2].astype("float64"))
    train = f"{TRAIN} --out run"
    w.works(train)
    edited(Path("run/config.json"), normalize_target={"mean": [0.0] * 3, "std": [1.0] * 3})
    w.refuses("evaluate run d.zarr --memory 16MB --batch-size 20")
    shutil.rmtree("run")
    w.works(train)
    w.works("evaluate run d.zarr --memory 16MB --batch-size 20")


@world(
    f"{_FOLDER}_nearby_runs: give {{}}",
    f"{_FOLDER}_nearby_runs: give one of {{}}",
    f"{_FOLDER}_nearby_runs: name the folder that a run wrote",
)
def folders_that_are_no_run(w: World) -> None:
    w.dataset()
    Path("elsewhere").mkdir()
    rest = "d.zarr --memory 16MB --batch-size 20"
    w.refuses(f"evaluate elsewhere {rest}")
    w.works(f"{TRAIN} --out runs/a")
    named = w.refuses(f"evaluate runs/b {rest}").removeprefix("give ")
    w.works(f"evaluate {named} {rest}")
    w.works(f"{TRAIN} --out runs/c")
    assert w.refuses(f"evaluate runs/xx {rest}") == "give one of runs/a, runs/c"
    for command in ("evaluate", "predict"):
        assert w.refuses(f"{command} d.zarr runs/a") == f"streamtrain {command} runs/a d.zarr"
        w.works(f"{command} runs/a d.zarr")


@world(f"{_SAVED}build_module: model='FILE.py:NAME'")
def a_run_of_a_model_made_in_python(w: World) -> None:
    w.dataset()
    Path("m.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n")
    w.works(f"{TRAIN.replace('linear', 'm.py:build')} --out run")
    config = json.loads(Path("run/config.json").read_text())
    del config["n_outputs"]
    Path("run/config.json").write_text(json.dumps(config))
    w.refuses("evaluate run d.zarr --memory 16MB --batch-size 20")
    w.works("evaluate run d.zarr --memory 16MB --batch-size 20 --model m.py:build")


@world(
    f"{_SAVED}_not_named: model={{}}, if you know what is in it",
    f"{_SAVED}_not_named: model='FILE.py:NAME', if you know what is in it",
)
def a_run_that_brings_its_model(w: World) -> None:
    w.dataset()
    Path("m.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n")
    w.works(f"{TRAIN.replace('linear', 'm.py:build')} --out run")
    shutil.copy("m.py", "run/m.py")
    edited(Path("run/config.json"), model="run/m.py:build")
    w.typed("evaluate run d.zarr --memory 16MB --batch-size 20")
    Path("run/m.py").unlink()
    w.refuses("evaluate run d.zarr --memory 16MB --batch-size 20")
    w.works("evaluate run d.zarr --memory 16MB --batch-size 20 --model m.py:build")


@world(
    f"{_READER}_no_line_yet: wait for its first",
    f"{_FOLDER}read_config: wait for its first checkpoint: it is being trained",
    f"{_CHECKPOINT}_no_checkpoint: wait for its next",
)
def runs_that_are_being_trained(w: World) -> None:
    w.dataset()
    evaluate = "evaluate run d.zarr --memory 16MB --batch-size 20"
    Path("run").mkdir()
    with folder_lock(Path("run")):
        w.refuses(evaluate)
    w.works(f"{TRAIN} --out run")
    Path("run/checkpoints").rename("checkpoints"), Path("run/metrics.jsonl").rename("metrics.jsonl")
    with folder_lock(Path("run")):
        w.refuses(evaluate)
        w.refuses("report run")
        Path("checkpoints").rename("run/checkpoints"), Path("metrics.jsonl").rename("run/metrics.jsonl")
        w.works(evaluate)
        w.works("report run")


@world(f"{_CHECKPOINT}load_weights: the model that the run was trained with")
def weights_of_another_model(w: World) -> None:
    w.dataset()
    w.works(f"{TRAIN} --out run")
    Path("m.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(4, 9)\n")
    w.refuses("evaluate run d.zarr --memory 16MB --batch-size 20 --model m.py:build")
    w.works("evaluate run d.zarr --memory 16MB --batch-size 20 --model linear")


@world(
    "training/run/run_description.py:how_to_resume: train as it was trained, or another checkpoint=",
    "training/run/run_description.py:how_to_resume: the schedule as it was set up, {}, past whose end its rate rises again; or train as it was trained, or another checkpoint=",
)
def a_checkpoint_of_another_run(w: World) -> None:
    w.dataset()
    line = f"{TRAIN} --out run --schedule cosine"
    w.works(f"{line} --epochs 2")
    w.typed(f"{line} --epochs 4 --resume")
    w.refuses(f"{line} --epochs 4 --resume --lr 0.5 --schedule-option T_max=2")
    w.works(f"{TRAIN} --out other --schedule cosine --epochs 4 --lr 0.5 --resume")


@world(
    f"{_MATCHING}_columns_difference: ingest the same columns in both",
    f"{_MATCHING}_columns_difference: ingest it again with {{}}",
    f"{_MATCHING}_classes_difference: leave those samples out",
)
def validation_data_that_means_something_else(w: World) -> None:
    rows = {"cat": "1,2,cat\n", "dog": "3,4,dog\n"}
    Path("t.csv").write_text("a,b,y\n" + (rows["cat"] + rows["dog"]) * 10)
    w.works("ingest t.csv d.zarr --label-column y")
    for name, text in (
        ("columns", "a,c,y\n1,2,cat\n3,4,dog\n"),
        ("order", "b,a,y\n2,1,cat\n4,3,dog\n"),
        ("classes", "a,b,y\n1,2,cat\n3,4,bird\n"),
    ):
        Path(f"{name}.csv").write_text(text)
        w.works(f"ingest {name}.csv {name}.zarr --label-column y")
        if name == "classes":
            w.refuses(f"{TRAIN} --val {name}.zarr")
        else:
            trainer = st.Trainer("linear", normalize="auto")
            trainer.fit("d.zarr", max_epochs=1)
            w.refused(trainer.fit, f"{name}.zarr", max_epochs=2)
    Path("columns.csv").write_text("a,b,y\n" + rows["cat"] + rows["dog"])
    w.works("ingest columns.csv right.zarr --label-column y")
    w.works("ingest order.csv reordered.zarr --label-column y --columns a,b")
    Path("classes.csv").write_text("a,b,y\n" + rows["cat"])
    w.works("ingest classes.csv fewer.zarr --label-column y")
    for name in ("right", "reordered", "fewer"):
        w.works(f"{TRAIN} --val {name}.zarr")


def _without(path: Path, part: str) -> None:
    """Make a checkpoint's state lack what a key of its safetensors names."""
    path.write_bytes(path.read_bytes().replace(part.encode(), b"_" * len(part)))


@world(f"{_CHECKPOINT}_checked: {AGAIN}", f"{_CHECKPOINT}_read_manifest: {AGAIN}")
def evaluations_of_damaged_checkpoints(w: World) -> None:
    line = "evaluate run d.zarr --memory 16MB --batch-size 20"

    def each(harm: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda run: [harm(folder) for folder in (run / "checkpoints").iterdir()]

    harmed(
        w,
        line,
        each(lambda folder: (folder / "model.safetensors").unlink()),
        each(lambda folder: (folder / "model.safetensors").write_bytes(b"short")),
        each(lambda folder: _without(folder / "model.safetensors", "weight")),
        each(lambda folder: (folder / "manifest.json").write_text("{")),
    )
    remedy = all_remedies()[f"{_CHECKPOINT}_checked: {AGAIN}"]
    assert w.has_said(remedy)


@world(f"{_CHECKPOINT}check_state: {AGAIN}")
def a_state_that_no_run_has_written(w: World) -> None:
    def forge(run: Path) -> None:
        for folder in (run / "checkpoints").iterdir():
            edited(folder / "state.json", counts={})
            state, manifest = (folder / "state.json").read_bytes(), folder / "manifest.json"
            entry = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
            edited(manifest, files=json.loads(manifest.read_text())["files"] | {"state.json": entry})

    harmed(w, f"{TRAIN} --out run --epochs 2 --resume", forge)


@world(f"{_FOLDER}RunFolder.rewind: another checkpoint=")
def metrics_that_are_gone(w: World) -> None:
    w.dataset()
    w.works(f"{TRAIN} --out run")
    Path("run/metrics.jsonl").write_text("")
    w.refuses(f"{TRAIN} --out run --epochs 2 --resume")
    w.works(f"{TRAIN} --out another --epochs 2 --resume")


@world("training/run/run_state.py:RunState._find: another checkpoint=, or remove {} to start afresh here{}")
def a_run_whose_checkpoints_are_all_damaged(w: World) -> None:
    w.dataset()
    w.works(f"{TRAIN} --out run")
    for state in Path("run").glob("checkpoints/*/state.json"):
        state.write_text("{")
    w.refuses(f"{TRAIN} --out run --resume")
    w.works(f"{TRAIN} --out another --resume")
    shutil.rmtree("run/checkpoints")
    w.works(f"{TRAIN} --out run --resume")


@world("training/run/run_state.py:RunState.restore: a new trainer, or no resume")
def a_trainer_that_has_trained_already(w: World) -> None:
    data, run = w.dataset(), w.folder / "run"
    trainer = fit(data)
    w.refused(fit, data, on=trainer, checkpoint=run, resume="auto", max_epochs=2)
    fit(data, checkpoint=run, resume="auto", max_epochs=2)
    fit(data, on=trainer, checkpoint=w.folder / "other", max_epochs=2)


@world("training/run/run_state.py:RunState.name_checkpoint_on_divergence: {}. The last checkpoint is {}")
def divergence_after_a_checkpoint(w: World) -> None:
    data, calls = w.dataset(), [0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return (output**2).mean() * (math.nan if calls[0] > 12 else 1)

    run = w.folder / "run"
    fix = w.refused(fit, data, loss=loss, checkpoint=run, max_epochs=99)
    assert Path(fix.rpartition(" is ")[2]).is_dir()
    fit(data, loss=lambda output, target: (output**2).mean(), checkpoint=w.folder / "mended", lr=1e-6, max_epochs=5)
