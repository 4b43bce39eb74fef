"""``streamtrain profile -- COMMAND``: the memory of a command over time, beside its loaders' budgets."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from streamtrain.cli.common import emit, json_option
from streamtrain.errors import UsageError

PROFILES: Final = Path("profiles")


@click.command("profile", context_settings={"show_default": True, "allow_interspersed_args": False})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The profile's folder; by default profiles/N, N the next free number.",
)
@click.option("--interval", type=float, default=0.05, metavar="SECONDS", help="Between two readings, at least.")
@click.option("--no-png", is_flag=True, help="Leave the PNG out, which needs matplotlib.")
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@json_option
def command(out: Path | None, interval: float, no_png: bool, words: tuple[str, ...], as_json: bool) -> None:
    """Run COMMAND, and draw its memory over time beside the budgets of its loaders.

    All its processes are counted: what they hold for themselves (anonymous, shared, pinned and device memory), and
    apart from that what is mapped from files. The folder holds timeline.png, timeline.html and profile.json (bytes and
    seconds). The exit code is the command's own. With --json the command's output goes to stderr, so that stdout has
    the one object.
    """
    from streamtrain.diagnostics.profile_charts import check_can_draw
    from streamtrain.diagnostics.profile_command import watch
    from streamtrain.diagnostics.profile_report import figures, lines, write
    from streamtrain.diagnostics.profile_timeline import timeline

    if not interval > 0:
        raise UsageError(f"interval is {interval} s; it must be positive", fix="--interval 0.05")
    if not no_png:
        check_can_draw()
    folder = out or _next_folder()
    _make(folder)
    try:
        watched = watch(words, interval_seconds=interval, stdout=sys.stderr if as_json else None)
    except BaseException:
        _remove_empty(folder)
        raise
    found = timeline(watched)
    files = write(found, folder, png=not no_png)
    result = figures(found) | {"files": files}
    emit(as_json, result, "\n".join([*lines(found), f"files   {', '.join(map(str, files))}"]))
    raise click.exceptions.Exit(found.watched.exit_code)


def _next_folder() -> Path:
    names = [entry.name for entry in PROFILES.iterdir()] if PROFILES.is_dir() else []
    return PROFILES / str(1 + max((int(name) for name in names if name.isdecimal()), default=0))


def _make(folder: Path) -> None:
    """Make the profile's folder before the command runs, so that nothing is run whose profile has no place."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            "the profile's folder is taken", where=str(folder), fix="an --out that does not exist, or is empty"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    if not usable:
        raise _unusable(folder, "Permission denied")


def _unusable(folder: Path, why: str) -> UsageError:
    return UsageError("the profile's folder cannot be made", where=str(folder), why=why, fix="another --out")


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        if folder.parent == PROFILES:
            PROFILES.rmdir()
