"""Help: short, in sections, light to load, with names that the library has and examples that run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from streamtrain.cli.commands import training_commands, values
from streamtrain.cli.commands.sections import Command
from streamtrain.cli.main import COMMANDS, GROUPS, _cli, main
from streamtrain.cli.manual.guide import guide_pages
from streamtrain.comparison.settings import EVERY_OPTIMIZER
from streamtrain.ingestion.sources.tables.table_options import _HEADERS
from streamtrain.models.factory import MODELS
from streamtrain.models.forward import AUTOCAST
from streamtrain.models.losses import LOSS_DEFINITIONS
from streamtrain.optim.build_rule import RULES
from streamtrain.optim.optimizers import FULL_BATCH, OPTIMIZERS
from streamtrain.optim.schedules import SCHEDULES
from streamtrain.store.codec import CODECS
from streamtrain.store.zarr_metadata import MANIFEST
from streamtrain.training.best.monitor import MODES
from streamtrain.training.run.run_folder import CONFIG
from streamtrain.training.run.run_state import ON_CHECKPOINT_FAILURE

_MOST_LINES, _MOST_COLUMNS = 90, 80


def command_of(name: str) -> Command:
    found = _cli.get_command(click.Context(_cli), name)
    assert isinstance(found, Command)
    return found


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "all")
def test_a_help_fits_two_screens(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(capsys, *words, "--help").splitlines()
    assert len(lines) <= _MOST_LINES
    assert max(map(len, lines)) <= _MOST_COLUMNS


def test_commands_are_in_groups() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


def test_the_help_of_train_has_the_options_of_a_first_week(capsys: pytest.CaptureFixture[str]) -> None:
    short, full = (help_of(capsys, "train", flag) for flag in ("--help", "--help-all"))
    heads = re.findall(r"^(\w[\w ]+):$", short, flags=re.M)
    assert heads == [*training_commands._FIRST_WEEK, "Options", "Examples"]
    options = {
        flag: set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, flags=re.M))
        for flag, text in (("short", short), ("full", full))
    }
    assert 25 <= len(options["short"]) <= 40
    assert options["short"] < options["full"]
    hidden = {"--lanes", "--sample-path", "--grad-tolerance", "--on-bad-block"}
    assert hidden <= options["full"] - options["short"]
    every = {name for option in command_of("train").params for name in option.opts if name.startswith("--")}
    assert options["full"] == every | {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_ends_with_examples_and_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = command_of(name)
    assert 1 <= len(command.examples) <= 3
    assert command.page in guide_pages()
    *_, last = help_of(capsys, name, "--help").splitlines()
    assert last == f"More about it: streamtrain guide {command.page}"


def test_names_to_choose_from_are_the_library_s() -> None:
    assert set(values.LOSSES) == set(LOSS_DEFINITIONS)
    assert set(values.UPDATES) == set(RULES)
    assert set(values.OPTIMIZERS) >= {*OPTIMIZERS, *FULL_BATCH} - {"muon"}
    assert set(values.SCHEDULES) == set(SCHEDULES)
    assert set(values.MODELS) == set(MODELS)
    assert set(values.CODECS) == {"auto", *CODECS}
    assert set(values.AUTOCAST) == set(AUTOCAST)
    assert values.MODES == MODES
    assert values.ON_CHECKPOINT_FAILURE == ON_CHECKPOINT_FAILURE
    assert set(_HEADERS) == {"first", "none"}
    assert training_commands.EVERY_OPTIMIZER == EVERY_OPTIMIZER
    assert (values._MANIFESTS[0], values._CONFIG[0]) == (MANIFEST, CONFIG)


LIGHT = [
    ["train", "--help"],
    ["compare", "--help-all"],
    ["evaluate", "--help"],
    ["predict", "--help"],
    ["plan", "--help"],
    ["guide"],
    ["trian"],
    ["train", "--optimzer", "adam"],
    ["train", "d", "--model", "mlp", "--loss", "mes"],
    ["train", "d", "--model", "mlp", "--memory", "512"],
    ["compare", "d", "--lr", "fast"],
]


def test_help_and_usage_errors_load_neither_torch_nor_zarr() -> None:
    code = (
        "import sys; from streamtrain.cli.main import main\n"
        f"codes = [main(words) for words in {LIGHT!r}]\n"
        "print(codes, sorted({'torch', 'zarr', 'numpy', 'dask'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == f"{[0] * 6 + [2] * 5} []"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "d", "--model", "mlp", "--loss", "mes"], "unknown loss 'mes'. Known: "),
        (["train", "d", "--model", "mlp", "--loss", "mes"], "did you mean 'mse'?"),
        (["train", "d", "--model", "mlp", "--memory", "512"], "memory '512' is not a size. A size is a number and a"),
        (["train", "d", "--model", "mlp", "--max-memory", "8"], "Fix: --max-memory 512MB, say."),
        (["ingest", "a.csv", "d", "--block", "9"], "block '9' is not a size"),
        (["compare", "d", "--rules", "batch,epohc"], "unknown update rule 'epohc'"),
        (["train", "--mdoel", "mlp"], "No such option: --mdoel. Did you mean --model?"),
        (["guide", "tabels"], "did you mean 'tables'?"),
        (["completion", "bsh"], "did you mean 'bash'?"),
    ],
)
def test_a_wrong_value_is_refused_with_the_way_out(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn", "one_thread")
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    rows = [f"{'UA' if i % 2 else 'AA'},{200 + i % 40},{i * 7919 % 61 - 9}" for i in range(600)]
    Path("flights.csv").write_text("\n".join(["carrier,distance,arr_delay", *rows, ""]))
    Path("new.csv").write_text("\n".join(["carrier,distance", *(row.rpartition(",")[0] for row in rows[:9]), ""]))
    Path("train.py").write_text("print('trained')")
    np.save("x.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    np.save("y.npy", np.arange(20) % 2)
    threads = torch.get_num_threads()
    try:
        for name in ORDER:
            for line in command_of(name).examples:
                program, *words = shlex.split(line)
                assert program == "streamtrain"
                assert main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    finally:
        torch.set_num_threads(threads)


ORDER = [*GROUPS["Data"], *GROUPS["Train"], *GROUPS["Results"], *GROUPS["Machine"]]


PAGE = guide_pages()["commands"]


def test_the_page_of_commands_is_the_tree() -> None:
    text = PAGE.read_text()
    for group, names in GROUPS.items():
        part = text.partition(f"## {group}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(.+)` \| (.+) \| (.*)\|$", part, re.M)
        assert [row[0].partition(" ")[0] for row in rows] == list(names)
        for (usage, line, options), name in zip(rows, names, strict=True):
            command = command_of(name)
            context = command.make_context(name, [], resilient_parsing=True)
            assert " ".join([name, *command.collect_usage_pieces(context)[1:]]) == usage
            assert line == COMMANDS[name]
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"--[\w-]+", options)) <= known
