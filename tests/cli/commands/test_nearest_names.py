"""Misspelt names: the first guess is right for nearly all with one edit, or one swap of neighbors."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch

from streamtrain.cli.commands import values
from streamtrain.cli.commands.sections import names_of
from streamtrain.cli.main import COMMANDS, _cli, main
from streamtrain.cli.manual.guide import guide_pages
from streamtrain.errors import DatasetError, UnknownName, nearest_name
from streamtrain.optim.optimizers import build_optimizer
from streamtrain.store.dataset import open_dataset

LETTERS = string.ascii_lowercase + "-"
N_OF_EACH_KIND = 2
LEAST_RIGHT = 0.95


def misspelt(name: str, rng: random.Random) -> Iterator[str]:
    """A name with a letter left out, one put in, one replaced, and two neighbors swapped."""
    for _ in range(N_OF_EACH_KIND):
        i, letter = rng.randrange(len(name)), rng.choice(LETTERS)
        yield name[:i] + name[i + 1 :]
        yield name[:i] + letter + name[i:]
        yield name[:i] + letter + name[i + 1 :]
        yield name[:i] + name[i : i + 2][::-1] + name[i + 2 :]


def options_of(command: str) -> list[str]:
    found = _cli.get_command(click.Context(_cli), command)
    assert found is not None
    return [name.removeprefix("--") for name in names_of(found)]


def test_the_first_guess_is_right() -> None:
    rng = random.Random(0)
    right = n = 0
    lists = (values.UPDATES, values.TASKS, values.LOSSES, values.OPTIMIZERS, values.SCHEDULES, values.CODECS)
    for known in (list(COMMANDS), list(guide_pages()), *map(options_of, COMMANDS), *lists):
        for name in known:
            for wrong in misspelt(name, rng):
                if wrong and wrong not in known:
                    right += nearest_name(wrong, known) == name
                    n += 1
    assert n > 1000
    assert right / n >= LEAST_RIGHT


@pytest.mark.parametrize(
    ("wrong", "known", "right"),
    [
        ("adma", ["adamax", "adamw", "adam"], "adam"),
        ("adamq", ["adam", "adamw", "adamax"], "adam"),  # as near to adamw: the more common comes first
        ("trian", ["plan", "train"], "train"),
        ("cos", ["step", "cosine"], "cosine"),
        ("xyzzy", ["train", "info"], None),
        ("", ["train", "info"], None),
        ("l", ["lr", "l2"], "lr"),
        ("train", [], None),
    ],
)
def test_the_nearest_is_by_edits_then_by_how_common(wrong: str, known: list[str], right: str | None) -> None:
    assert nearest_name(wrong, known) == right


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "d", "--model", "mlp", "--optmizer", "adam"], "Did you mean --optimizer?"),
        (["train", "d", "--model", "mlp", "--loss", "mes"], "did you mean 'mse'?"),
        (["ingest", "a.csv", "d", "--codec", "zstdd"], "did you mean 'zstd'?"),
        (["ingest", "a.csv", "d", "--task", "regresion"], "did you mean 'regression'?"),
        (["compare", "d", "--rules", "epohc"], "did you mean 'epoch'?"),
    ],
)
def test_a_misspelt_word_is_refused_with_the_right_one(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert fix in capsys.readouterr().err


def test_the_most_common_optimizers_are_guessed_first() -> None:
    model = torch.nn.Linear(1, 1)
    for wrong, right in (("adma", "adam"), ("adamq", "adam"), ("gsd", "sgd")):
        with pytest.raises(UnknownName, match=f"did you mean '{right}'"):
            build_optimizer(wrong, model.parameters())


def test_a_misspelt_path_is_refused_with_the_right_one(tmp_path: Path) -> None:
    names = ["flights", "flights-2013", "digits.zarr", "clouds"]
    for name in names:
        (tmp_path / name).mkdir()
    rng = random.Random(1)
    for name in names:
        for wrong in misspelt(name.removesuffix(".zarr"), rng):
            if wrong and wrong not in names:
                with pytest.raises(DatasetError) as refused:
                    open_dataset(tmp_path / wrong)
                assert refused.value.fix == f"did you mean {str(tmp_path / name)!r}?"
