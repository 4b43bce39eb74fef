"""What ``train`` says where a run goes on, and how to go on where it was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from streamtrain.system.signals import Interrupted
from streamtrain.training.run_state import Resumed


def say_resumed(out: Path, resumed: Resumed) -> None:
    """Say on stderr where a run goes on, and what was damaged."""
    for skipped in resumed.skipped:
        click.echo(f"warning: skipped a damaged checkpoint, {skipped}", err=True)
    click.echo(
        f"{out}: goes on after batch {resumed.n_batches:,}"
        if resumed.n_batches
        else f"{out}: no checkpoint; starts afresh",
        err=True,
    )


@contextmanager
def how_to_go_on(out: Path) -> Iterator[None]:
    """Add to an interrupt inside the block, where the run was saved, the command that goes on with it."""
    try:
        yield
    except Interrupted as interrupt:
        if interrupt.saved is None:
            raise
        words = _words(click.get_current_context(silent=True))
        command = words + ([] if _given(words, "--out") else ["--out", str(out)])
        command += [] if "--resume" in words else ["--resume"]
        raise Interrupted(interrupt.number, interrupt.saved, go_on=shlex.join(["streamtrain", *command])) from None


def _words(context: click.Context | None) -> list[str]:
    """The command as it was typed."""
    return list((context.find_root().obj or ()) if context else ()) or ["train"]


def _given(words: list[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)
