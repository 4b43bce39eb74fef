"""``streamtrain profile``, ``doctor`` and ``report``: explain a command, a machine, or a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click

from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import DATASET, RUN
from streamtrain.cli.options import which_option
from streamtrain.cli.output import as_command_line, emit, json_option, note
from streamtrain.errors import CheckpointError, Fix, Lines, ResourceError, UsageError
from streamtrain.system.files import is_folder, local_path, names_in, numbered_folder, status_of
from streamtrain.system.refusals import is_of_machine, translate_os_errors

PROFILES: Final = Path("profiles")

_path = click.Path(path_type=Path)


@command(
    "profile",
    context_settings={"show_default": True, "allow_interspersed_args": False},
    examples=(
        "streamtrain profile -- python train.py",
        "streamtrain profile --no-png -- streamtrain info flights",
    ),
    page="profile",
)
@option("--out", type=_path, help="The profile's folder; by default profiles/N, the next free N.")
@option("--interval", type=float, default=0.05, metavar="SECONDS", help="Shortest time between two readings.")
@option("--no-png", is_flag=True, help="Leave out the PNG, which needs matplotlib.")
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
@json_option
def profile_command(out: Path | None, interval: float, no_png: bool, words: tuple[str, ...], as_json: bool) -> None:
    """Run COMMAND, and draw its memory over time beside the budgets of its loaders.

    All its processes are counted: what they hold for themselves (anonymous, shared, pinned and device memory), and
    separately what is mapped from files. The folder holds timeline.png, timeline.html and profile.json (bytes and
    seconds). The exit code is the command's own. With --json the command's output goes to stderr, so that stdout holds
    only that object.
    """
    from streamtrain.diagnostics.profile_charts import check_can_draw
    from streamtrain.diagnostics.profile_command import record_command
    from streamtrain.diagnostics.profile_report import profile_figures, profile_lines, write_profile
    from streamtrain.diagnostics.profile_timeline import build_timeline
    from streamtrain.store.writing.staging import check_in_no_dataset

    if not interval > 0:
        raise UsageError(f"interval is {interval} s; it must be positive", fix="--interval 0.05")
    if not no_png:
        check_can_draw()
    check_in_no_dataset(PROFILES if out is None else local_path(out), "the profile's folder", "another --out")
    with numbered_folder(PROFILES) if out is None else _sole_writer(out) as folder:
        watched = record_command(words, interval_seconds=interval, stdout=sys.stderr if as_json else None)
        found = build_timeline(watched)
        files = write_profile(found, folder, png=not no_png)
    result = profile_figures(found) | {"files": files}
    emit(as_json, result, Lines.of([*profile_lines(found), f"files   {', '.join(map(str, files))}"]))
    raise click.exceptions.Exit(found.watched.exit_code)


@contextmanager
def _sole_writer(folder: Path) -> Iterator[Path]:
    """Hold the profile's folder from before the command runs, so that nothing is run whose profile has no place."""
    from streamtrain.store.writing.lock import folder_lock

    with ExitStack() as held:
        try:
            _check_free(local_path(folder))
            held.enter_context(folder_lock(folder))
        except ResourceError as error:
            if isinstance(error.__cause__, OSError) and is_of_machine(error.__cause__):
                raise
            what = "the profile's folder cannot be made"
            raise UsageError(what, where=str(folder), why=error.what, fix="another --out") from error
        _check_free(folder)
        yield folder


def _check_free(folder: Path) -> None:
    from streamtrain.store.writing.lock import FOLDER_LOCK
    from streamtrain.store.writing.staging import is_nobodys

    with translate_os_errors("look at", folder):
        is_free = status_of(folder) is None or (
            is_folder(folder) and all(name == FOLDER_LOCK or is_nobodys(name) for name in names_in(folder))
        )
    if not is_free:
        raise UsageError(
            "the profile's folder is taken", where=str(folder), fix="an --out that does not exist, or is empty"
        )


@command("doctor", examples=("streamtrain doctor", "streamtrain doctor flights"), page="machines")
@click.argument("path", type=_path, default=".")
@json_option
def doctor_command(path: Path, as_json: bool) -> None:
    """Check this machine, and the disk of the folder PATH, within a few seconds.

    PATH is where the data lies or will lie, by default the current folder; for a dataset it is the folder that holds
    it. The rates are limits measured just now: of reading one file from start to end and of decoding made-up blocks.
    Nothing is left on the disk.
    """
    from streamtrain.diagnostics.doctor import check_up

    found = check_up(path)
    lines = [
        f"{'' if i else each.label:<9}{line}" for each in found for i, line in enumerate(each.verdict.splitlines())
    ]
    emit(as_json, {each.name or each.label: each.value for each in found}, Lines.of(lines))


@command(
    "report",
    examples=("streamtrain report runs/1", "streamtrain report runs/1 --checkpoint last --out last.html"),
    page="resume",
)
@click.argument("run", type=RUN)
@option("--dataset", type=DATASET, help="The run's training data, if it has moved.")
@which_option
@option("--out", type=_path, help="The file; by default report.html in the run's folder.")
@json_option
def report_command(run: Path, dataset: Path | None, which: str, out: Path | None, as_json: bool) -> None:
    """Write the report of the folder RUN: one HTML file that needs nothing else.

    Curves; scores with the confusion of classes, the ROC curve of two classes, or predictions by what was true; the
    largest mistakes; memory against budget, where the time went, how well the data was shuffled, and its statistics;
    how to repeat the run. If the dataset is gone, what belongs to it is left out, with the reason.
    """
    from streamtrain.cli.options import chosen_checkpoint
    from streamtrain.diagnostics.run_reader import read_run
    from streamtrain.diagnostics.run_report import write_report

    read_run(run)
    try:
        chosen = chosen_checkpoint(run, which)
    except CheckpointError as error:
        # The report is of what there is.
        note(f"warning: the report is without a checkpoint: {error.told()}")
        chosen = None
    file, told = write_report(run, dataset=dataset, out=out, chosen=chosen, say=_warn)
    last = told.epochs[-1] if told.epochs else {}
    result = {"report": file, "run": run, "weights": chosen and chosen.named(), "epochs": told.n_epochs, "last": last}
    emit(as_json, result, Lines.of([*([as_command_line(chosen.told())] if chosen else []), f"report  {file}"]))


def _warn(text: Fix) -> None:
    note(f"warning: {as_command_line(text)}")
