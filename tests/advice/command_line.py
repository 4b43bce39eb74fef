"""Worlds of options: what a command is given, read and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamtrain.cli.output import as_command_line
from streamtrain.comparison import run
from streamtrain.errors import StreamtrainError, with_remedy
from streamtrain.training.run.run_folder import newest_run
from tests.advice.world import Said, World, X, Y, world

_OPTIONS = "cli/options.py:"
_COMPATIBILITY = "cli/compatibility.py:"
_FROM_DATA = "training/labels/from_data.py:"
_RULE = "optim/build_rule.py:"
_SCHEDULES = "optim/schedules.py:"
SMALL = "--memory 16MB --batch-size 20 --threads 1"
TRAIN = f"train d.zarr --model linear --epochs 1 {SMALL}"
COMPARE = f"compare d.zarr --model linear --epochs 1 {SMALL}"


def typed(w: World, *lines: str) -> None:
    """Commands that are refused, each followed until it works."""
    w.dataset()
    for line in lines:
        w.typed(line)


@world("comparison/settings.py:ComparisonSettings._check_line_searches: rules={}, or leave {} out")
def a_comparison_of_line_searches(w: World) -> None:
    w.dataset()
    line = f"{COMPARE} --rules batch,epoch --optimizers adam,lbfgs"
    assert w.refuses(line) == "--rules epoch, or leave lbfgs out"
    w.works(f"{COMPARE} --rules epoch --optimizers adam,lbfgs")
    w.works(f"{COMPARE} --rules batch,epoch --optimizers adam")


@world(
    "comparison/settings.py:ComparisonSettings._check_lr: each one once",
    "cli/commands/training_commands.py:_parse_rates: --lr 0.1,0.03 or --lr sgd=0.1,adam=0.001, say",
)
def learning_rates(w: World) -> None:
    typed(w, f"{COMPARE} --rules batch --lr fast")
    w.refuses(f"{COMPARE} --rules batch --optimizers sgd --lr 0.1,0.1")
    w.works(f"{COMPARE} --rules batch --optimizers sgd --lr 0.1")


@world("cli/compare.py:_grid: --surface --grid {}")
def a_grid_without_a_surface(w: World) -> None:
    typed(w, f"{COMPARE} --rules batch --optimizers sgd --grid 3")


@world(
    "comparison/settings.py:ComparisonSettings.__post_init__: each one once",
    "comparison/setup.py:ComparisonSetup._check_surface: no surface",
    "loader/budget_shares.py:check_shared_memory: memory={}",
    "comparison/record.py:_take: another out={}, or remove it",
    "comparison/record.py:check_same: compare as it was begun, or another out=",
    "comparison/record.py:check_same: max_epochs={}, or another out=",
    "cli/compare.py:run_compare: --out {}",
)
def comparisons(w: World) -> None:
    w.dataset(x=X[:, :1], y=X[:, 0])
    w.refuses(f"{COMPARE} --rules batch,batch --optimizers sgd")
    w.works(f"{COMPARE} --rules batch --optimizers sgd --out taken")
    Path("one.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(1, 1, bias=False)\n")
    one = f"compare d.zarr --model one.py:build --rules batch --optimizers sgd --epochs 1 {SMALL}"
    w.refuses(f"{one} --surface")
    w.works(one)
    w.typed(f"{COMPARE.replace('16MB', '1MB')} --rules batch --optimizers sgd")
    w.refuses(f"{COMPARE} --rules batch --optimizers sgd --out taken")
    w.works(f"{COMPARE} --rules batch --optimizers sgd --out taken --resume")
    w.refuses(f"{COMPARE} --rules batch --optimizers sgd --out taken --resume --seed 1")
    w.typed(f"{COMPARE} --rules batch --optimizers sgd --out taken --resume --epochs 2")
    w.typed(f"{COMPARE} --rules batch --optimizers sgd --resume")
    w.works(f"{COMPARE} --rules batch --optimizers sgd --out free --resume --seed 1")


@world("comparison/run.py:told_diverged: a lower learning rate: lr={}")
def a_run_of_a_comparison_that_diverges(w: World) -> None:
    w.dataset(x=X, y=X[:, 0])
    line = f"{COMPARE} --rules batch --optimizers sgd --epochs 60 --lr 3"
    told: list[str] = []
    w.monkeypatch.setattr(run, "with_remedy", lambda text, fix: told.append(fix) or with_remedy(text, fix))
    w.works(line)
    assert len(told) == 1
    w.said.append(Said(StreamtrainError("diverged"), told[0], {("comparison/run.py", "told_diverged")}))
    for n in (2, 3):
        w.works(f"{line} {as_command_line(told[-1]).partition(': ')[2]}")
        if len(told) < n:
            break
    assert len(told) < 3, "the rates that were named diverge too"


@world(
    f"{_COMPATIBILITY}find_field: --inputs and --target name the fields to learn from: --inputs {{}} --target {{}}; or "
    "ingest with --fields x={},y={}",
    f"{_COMPATIBILITY}find_field: ingest it again with --labels FILE, or of a table with --label-column NAME",
)
def fields_of_other_names(w: World) -> None:
    np.savez("f.npz", images=X, labels=Y)
    w.works("ingest f.npz d.zarr")
    assert "--inputs images --target labels; or ingest with --fields x=images,y=labels" in w.refuses(TRAIN)
    w.works(f"{TRAIN} --inputs images --target labels")
    w.works("ingest f.npz d.zarr --fields x=images,y=labels --overwrite")
    w.works(TRAIN)
    np.save("x.npy", X), np.save("y.npy", Y)
    w.works("ingest x.npy d.zarr --overwrite")
    w.refuses(TRAIN)
    w.works("ingest x.npy d.zarr --labels y.npy --overwrite")
    w.works(TRAIN)


@world(
    f"{_COMPATIBILITY}chosen_target: ingest it as y, which makes class labels of it: --fields x=...,y={{}}; or as a float"
)
def a_target_of_small_integers(w: World) -> None:
    np.savez("f.npz", x=X, t=Y.astype("u1")), np.savez("g.npz", x=X, t=Y.astype("f4"))
    w.works("ingest f.npz d.zarr")
    assert "--fields x=...,y=t" in w.refuses(f"{TRAIN} --target t")
    w.works("ingest f.npz d.zarr --fields x=x,y=t --overwrite")
    w.works(TRAIN)
    w.works("ingest g.npz d.zarr --overwrite")
    w.works(f"{TRAIN} --target t --task regression")


@world(f"{_COMPATIBILITY}_check_labels: divide the samples so that every class is in both, or leave those out")
def classes_that_only_validation_has(w: World) -> None:
    w.dataset(y=Y % 2), w.dataset("val.zarr"), w.dataset("mixed.zarr", y=Y[::-1]), w.dataset("out.zarr", y=Y % 2)
    w.refuses(f"{TRAIN} --val val.zarr")
    w.works(f"{TRAIN} --val out.zarr")
    w.works(f"{TRAIN.replace('d.zarr', 'mixed.zarr')} --val val.zarr")


@world(
    f"{_FROM_DATA}n_outputs: number the classes from 0, without gaps; store quantities as floats",
    f"{_FROM_DATA}n_outputs: loss='mse', or ingest the labels as integers from 0",
    f"{_FROM_DATA}n_outputs: ignore_label={{}} if it is not a class; or number the classes from 0",
)
def labels_that_are_no_classes(w: World) -> None:
    y = np.where(Y == 0, 1_000_000, Y)
    w.dataset(y=y), w.dataset("numbered.zarr", y=np.unique(y, return_inverse=True)[1]), w.dataset("f.zarr", y=y * 1.5)
    w.refuses(f"{TRAIN} --loss cross_entropy")
    w.works(TRAIN.replace("d.zarr", "numbered.zarr"))
    w.works(TRAIN.replace("d.zarr", "f.zarr"))
    w.typed(f"{TRAIN.replace('d.zarr', 'f.zarr')} --loss cross_entropy")
    w.dataset("hole.zarr", y=Y - 1)
    w.typed(f"{TRAIN.replace('d.zarr', 'hole.zarr')} --task classification")
    w.works(f"{TRAIN.replace('d.zarr', 'numbered.zarr')} --task classification")


@world(
    f"{_OPTIONS}_parse_betas: --betas 0.9,0.999, say",
    f"{_OPTIONS}_schedule: --schedule cosine, say",
)
def options_of_train(w: World) -> None:
    typed(w, f"{TRAIN} --betas a,b", f"{TRAIN} --schedule-every epoch")


@world(f"{_OPTIONS}TrainOptions.of: leave it out", f"{_OPTIONS}set_threads: leave it out, for one thread a core")
def options_to_leave_out(w: World) -> None:
    w.dataset()
    w.refuses(f"{TRAIN} --update epoch --lanes 4")
    w.works(f"{TRAIN} --update epoch")
    line = TRAIN.replace("--threads 1", "")
    w.refuses(f"{line} --threads 99999")
    w.works(line)


@world(
    "cli/train.py:_check_out: --out {}",
    "training/run/run_folder.py:_refuse_taken: another checkpoint={}",
)
def run_folders(w: World) -> None:
    w.dataset()
    w.works(f"{TRAIN} --out runs/1")
    assert newest_run(Path("runs")) == Path("runs/1")
    w.typed(f"{TRAIN} --epochs 2 --resume")
    w.typed(f"{TRAIN} --epochs 3 --out runs/1")
    w.works(f"{TRAIN} --out runs/2")


@world("cli/ingest.py:_parse_shape: --shape 28,28, say", "cli/ingest.py:parse_fields: --fields x=images,y=labels, say")
def options_of_ingest(w: World) -> None:
    np.zeros((2, 28, 28), "f4").tofile("x.bin"), np.savez("f.npz", images=X, labels=Y)
    w.typed("ingest x.bin d.zarr --dtype float32 --shape 28x28")
    w.typed("ingest f.npz e.zarr --fields images")


@world(
    "cli/diagnostics.py:profile_command: --interval 0.05",
    "cli/diagnostics.py:_check_free: an --out that does not exist, or is empty",
    "cli/diagnostics.py:_sole_writer: another --out",
    "cli/diagnostics.py:profile_command: another --out",
)
def profiles(w: World) -> None:
    w.refuses("profile --interval 0 --out p -- true")
    Path("taken").mkdir(), Path("taken/notes.txt").write_text("mine"), Path("empty").mkdir()
    w.refuses("profile --out taken -- true")
    w.refuses("profile --out taken/notes.txt/p -- true")
    w.dataset()
    w.refuses("profile --out d.zarr/p -- true")
    w.works("profile --interval 0.05 --out empty -- true")
    w.works("profile --out p -- true")


@world(
    "diagnostics/run_report.py:write_report: another out=",
    "diagnostics/run_report.py:write_report: dataset= where it lies now",
)
def reports(w: World) -> None:
    w.dataset()
    w.works("train d.zarr --model linear --epochs 1 --memory 16MB --out r")
    w.refuses("report r --out d.zarr/r.html")
    w.works("report r --out r.html")
    Path("d.zarr").rename("moved.zarr")
    assert w.run("report r") == 0
    w.works("report r --dataset moved.zarr")


@world(
    "diagnostics/profile_command.py:_start: is it on the PATH, and spelled like that?",
    "diagnostics/profile_command.py:_start: name a program first; for a script that may not be one: python SCRIPT",
)
def programs_to_profile(w: World) -> None:
    w.refuses("profile --out a -- pyhton -c pass")
    w.works("profile --out b -- python -c pass")
    Path("s.py").write_text("print('ran')\n")
    w.refuses("profile --out c -- ./s.py")
    w.works("profile --out d -- python s.py")


@world("diagnostics/doctor.py:check_up: give the folder where the data lies or will lie")
def a_folder_for_the_doctor(w: World) -> None:
    w.refuses("doctor missing")
    w.works("doctor .")


@world("errors.py:unknown_name: did you mean {}?", "errors.py:unknown_name: use one of these")
def misspelt_names(w: World) -> None:
    w.dataset()
    for line, right in ((f"{TRAIN} --optimizer adm", "adam"), (f"{TRAIN} --update bach", "batch")):
        assert w.refuses(line) == f"did you mean {right!r}?"
        w.works(f"{line.rpartition(' ')[0]} {right}")
    w.refuses(f"{TRAIN} --optimizer zzzzzz")
    w.works(f"{TRAIN} --optimizer sgd")


@world(
    f"{_RULE}_check_effect: update='batch'",
    f"{_RULE}_check_effect: update='sample', or leave it out",
    f"{_RULE}_check_effect: update='epoch', or accumulate_grad_batches=2 at least, or leave it out",
    f"{_RULE}_check_line_search: update='epoch'",
    f"{_RULE}_check_line_search: optimizer='lbfgs' or optimizer='cg', or until_loss=",
    f"{_RULE}make_learner: leave it out",
)
def options_of_steps(w: World) -> None:
    typed(
        w,
        f"{TRAIN} --update sample --accumulate-grad-batches 2",
        f"{TRAIN} --sample-path fast",
        f"{TRAIN} --grad-sum-dtype float32",
        f"{TRAIN} --optimizer lbfgs",
        f"{TRAIN} --grad-tolerance 0.1",
    )
    w.refuses(f"{TRAIN} --optimizer lbfgs --update epoch --clip-grad-norm 1")
    w.works(f"{TRAIN} --optimizer lbfgs --update epoch")


@world(
    f"{_SCHEDULES}Schedule._refusals: what torch.optim.lr_scheduler.{{}} takes",
    f"{_SCHEDULES}OptimizerSchedules._check_beta1: optimizer='adam', or a similar one",
    f"{_SCHEDULES}OptimizerSchedules._check_beta1: options={{'cycle_momentum': False}} of the schedule, or no beta1=",
    f"{_SCHEDULES}beta1_of: linear:LAST with LAST in [0, 1), exponential:FACTOR with FACTOR in (0, 1], or a function",
)
def schedules(w: World) -> None:
    typed(
        w,
        f"{TRAIN} --schedule multistep --schedule-option milestones=x",
        f"{TRAIN} --schedule plateau --schedule-every step",
        f"{TRAIN} --optimizer sgd --beta1 linear:0.5",
        f"{TRAIN} --schedule onecycle --schedule-option max_lr=0.1 --beta1 linear:0.5",
    )
    w.refuses(f"{TRAIN} --schedule step")
    w.refuses(f"{TRAIN} --schedule step --schedule-option step_size=x")
    w.works(f"{TRAIN} --schedule step --schedule-option step_size=1")
    w.refuses(f"{TRAIN} --beta1 fast")
    w.works(f"{TRAIN} --beta1 linear:0.5")
    w.works(f"{TRAIN} --beta1 exponential:0.9")


@world(
    "loader/budget.py:_check_fits: memory={}",
    "loader/budget.py:_check_fits: memory={}, or fewer lanes",
    "system/arguments.py:check_batch_size: batch_size=256, say",
    "system/arguments.py:check_batch_size: batch_size={}, or drop_last=False",
    "loader/budget.py:solve: lanes=64, say",
    "loader/budget.py:solve: groups=8, say",
    "shuffle/order.py:ShuffleParameters.__post_init__: lanes={}",
    "shuffle/order.py:ShuffleParameters.__post_init__: groups={}",
)
def budgets_and_orders(w: World) -> None:
    line = "plan d.zarr --batch-size 20"
    typed(
        w,
        f"{line} --memory 1KB",
        f"{line} --memory 1KB --lanes 8 --groups 1",
        "train d.zarr --model linear --epochs 1 --memory 16MB --batch-size 0",
        "train d.zarr --model linear --epochs 1 --memory 16MB --batch-size 500 --drop-last",
        f"{TRAIN} --lanes 0",
        f"{TRAIN} --groups 0",
        f"{TRAIN} --lanes 999",
        f"{TRAIN} --groups 7",
    )


@world(
    "loader/device/resolve.py:resolve_device: device='auto'",
    "loader/device/resolve.py:resolve_device: device='auto', cpu, cuda or cuda:0",
    "loader/device/resolve.py:_try: device='auto'",
)
def devices(w: World) -> None:
    typed(w, f"{TRAIN} --device meta", f"{TRAIN} --device gpu", f"{TRAIN} --device cuda:99")
    w.typed(f"{TRAIN} --device mps")


@world(
    "loader/shared_budget.py:loader_budget_bytes: max_memory={} or more",
    "loader/shared_budget.py:check_memory_options: {} or less",
    "system/memory.py:at_most: {} or less",
)
def budgets_of_the_process(w: World) -> None:
    typed(w, "train d.zarr --model linear --epochs 1 --batch-size 20 --max-memory 50MB")
    w.typed("train d.zarr --model linear --epochs 1 --batch-size 20 --memory 900TB")
    w.typed("train d.zarr --model linear --epochs 1 --batch-size 20 --max-memory 900TB")


@world("cli/ingest.py:_check_places: FILE DEST, say")
def an_ingest_of_nothing(w: World) -> None:
    Path("t.csv").write_text("a,b\n1,2\n")
    assert w.refuses("ingest t.csv") == "streamtrain ingest t.csv t"
    w.refuses("ingest t")
    w.works("ingest t.csv t")
    assert w.refuses("ingest t.csv u --na-values x -") == "--na-values x,-"
    w.works("ingest t.csv u --na-values x,-")
