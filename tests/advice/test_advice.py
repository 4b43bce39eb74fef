"""Every remedy that the library can give is followed to the letter, in a small world where it applies.

`remedies.all_remedies` lists from the code every place that gives a remedy, as ``file:function: words``, with ``{}``
for what is computed. Each has a world, or a reason why it has none (`reasons.REASONS`); a new one without either fails
here, and so does a key whose remedy is gone.

To add a world: write a function that takes a `World` in the module of its room (``sources.py``, ``training.py``, ...),
and enter it with ``@world("file:function: words")``, the key that the failing test prints. In it

- ``w.typed("train d.zarr --model linear ...")`` types a command that is refused, then the options that its remedy
  prints, each alternative by itself, until the command works; ``w.followed(function, **arguments)`` does so in Python;
- where a remedy is a sentence, ``w.refused(function, ...)`` or ``w.refuses("...")`` is followed by what it says:
  an ordinary call, or ``w.works("...")``;
- ``w.warned(function, ...)`` is for the remedy of a warning.

The test sees to it that the message of the key was indeed given in it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from streamtrain.cli.main import COMMANDS, _cli
from streamtrain.cli.output import PYTHON_ONLY, as_command_line
from streamtrain.errors import Argument, Fix
from tests.advice import (
    best,
    calls,
    clusters,
    command_line,
    given,
    hierarchies,
    histories,
    images,
    in_memory,
    ingesting,
    like,
    loaders,
    models,
    predictions,
    roles,
    runs,
    sources,
    splitting,
    storage,
    surroundings,
    tables,
    targets,
    tasks,
    training,
)
from tests.advice.reasons import REASONS
from tests.advice.remedies import all_remedies, arguments_named
from tests.advice.world import WORLDS, World

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


@pytest.fixture(autouse=True, scope="module")
def settled_remedies(settled_heap: None) -> None:
    """Leave the syntax trees of the package out of the garbage collections of the worlds: a third of a second each."""
    all_remedies()
    gc.freeze()


ROOMS = [
    best,
    calls,
    clusters,
    command_line,
    given,
    hierarchies,
    histories,
    images,
    in_memory,
    ingesting,
    like,
    loaders,
    models,
    predictions,
    roles,
    runs,
    sources,
    splitting,
    storage,
    surroundings,
    tables,
    targets,
    tasks,
    training,
]
_LEAST = 150


def test_every_remedy_has_a_world_or_a_reason() -> None:
    known = all_remedies()
    named = {*WORLDS, *REASONS}
    assert [key for key in known if key not in named] == [], "remedies without a world"
    assert sorted(named - known.keys()) == [], "worlds and reasons of remedies that are gone"
    assert WORLDS.keys() & REASONS.keys() == set()
    assert all(REASONS.values())
    assert len(WORLDS) >= _LEAST


def test_every_argument_of_a_remedy_is_an_option() -> None:
    commands = [_cli.get_command(click.Context(_cli), name) for name in COMMANDS]
    options = {word for command in commands if command for option in command.params for word in option.opts}
    named = {argument for argument in arguments_named() if argument not in PYTHON_ONLY}
    ways = {name: {as_command_line(Fix(Argument(name, value))) for value in (None, False)} for name in named}
    assert [name for name, typed in ways.items() if not typed & options] == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("function", dict.fromkeys(WORLDS.values()), ids=lambda function: function.__name__)
def test_a_remedy_works(function: Callable[[World], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        world = World(tmp_path, patch)
        function(world)
    missing = [key for key, of in WORLDS.items() if of is function and not world.has_said(all_remedies()[key])]
    assert not missing, [said.fix for said in world.said]
