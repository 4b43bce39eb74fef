"""The frame of the command line: find the command, run it, and turn every outcome into an exit code.

Results go to stdout; errors go to stderr as ``error: ...`` and exit with the code of their class (see
`streamtrain.errors`). A remedy is printed as users type it: the library's ``memory='7MB'`` is ``--memory 7MB`` here. A
command is imported only when it is called, so ``--help`` is fast and ``ingest`` never imports torch.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import json
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import click
from click.shell_completion import CompletionItem

from streamtrain.cli.commands.sections import Context, names_of
from streamtrain.cli.commands.values import COMPLETION
from streamtrain.cli.output import (
    BEGAN,
    command_line,
    error_text,
    has_color,
    note,
    option_name,
    verbosity_options,
    warning_text,
)
from streamtrain.cli.ranks import does_nothing, is_first, signals_held, told_to_launcher
from streamtrain.errors import (
    Lines,
    ResourceError,
    StreamtrainError,
    StreamtrainWarning,
    nearest_name,
    printable,
    unknown_name,
)
from streamtrain.system.calls.argument_names import names_here
from streamtrain.system.refusals import is_of_machine, os_failure
from streamtrain.system.signals import terminated_cleanly
from streamtrain.system.units import format_bytes

COMMANDS: Final = {
    "ingest": "Turn raw files into a dataset.",
    "info": "Show what a dataset holds.",
    "verify": "Check a dataset against its manifest, and list all damage.",
    "repair": "List what interrupted ingests left behind, or remove it.",
    "plan": "Show the memory, reads and shuffle quality of a run.",
    "train": "Train a model on a dataset.",
    "evaluate": "Measure a trained model on a dataset or raw files.",
    "predict": "Predict every row of a dataset or of raw files.",
    "compare": "Train by several update rules and optimizers, side by side.",
    "report": "Write a run's report: one HTML file.",
    "export": "Write a trained model to one file.",
    "doctor": "Check this machine: versions, memory, disk and decoding.",
    "profile": "Draw a command's memory beside its loaders' budgets.",
    "guide": "Show a page of the guide.",
    "completion": "Print the script that completes commands in a shell.",
}
"""Command name -> its line in ``--help``; the command is ``NAME_command`` of its module."""

GROUPS: Final = {
    "Data": ("ingest", "info", "verify", "repair"),
    "Train": ("plan", "train", "evaluate", "predict", "compare"),
    "Results": ("report", "export"),
    "Machine": ("doctor", "profile", "guide", "completion"),
}
"""The commands as ``--help`` groups them."""

_MODULES: Final = {
    **dict.fromkeys(("info", "repair", "verify"), "dataset"),
    **dict.fromkeys(("report", "profile", "doctor"), "diagnostics"),
    **dict.fromkeys(("train", "compare"), "commands.training_commands"),
    **dict.fromkeys(("evaluate", "predict", "export"), "commands.inference_commands"),
    **{name: f"manual.{name}" for name in ("guide", "completion")},
}
"""Command name -> the module of `streamtrain.cli` that declares it, where that has another name."""

_WIDTH: Final = max(map(len, COMMANDS))

EXIT_BUG: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

_ALLOCATION: Final = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
"""The message of torch's CPU allocator."""
_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_RAN_OUT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, by default with ``sys.argv[1:]``, and return its exit code."""
    if args is None:
        # At exit Python looks for cycles among all objects, which takes longer than the rest of many a command.
        atexit.register(gc.freeze)
    began = time.perf_counter()
    words = tuple(sys.argv[1:] if args is None else args) or ("--help",)
    _open_closed_streams()
    if instruction := os.environ.get(COMPLETION):
        from streamtrain.cli.manual.completion import answer

        return answer(_cli, instruction)
    try:
        with terminated_cleanly(), signals_held(words), _warnings_for_a_shell():
            return _run(words, began)
    except BrokenPipeError:
        _drop(sys.stdout)
        return EXIT_BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if _has(words, "--debug"):
            traceback.print_exc()
        message, code = _outcome(error)
        told_to_launcher(message, code)
        note(Lines(_wrapped(f"error: {message}")))
        if _has(words, "--json"):
            # The last line: what comes before it is for people.
            note(json.dumps({"error": _as_values(error, message, code)}))
        _drop_full_streams()
        return code


@contextmanager
def _warnings_for_a_shell() -> Iterator[None]:
    """Print the library's warnings, inside the block, with their remedies as options."""
    before = warnings.formatwarning
    warnings.formatwarning = warning_text
    with warnings.catch_warnings():
        if not is_first():
            warnings.simplefilter("ignore", StreamtrainWarning)
        try:
            yield
        finally:
            warnings.formatwarning = before


def _run(words: tuple[str, ...], began: float) -> int:
    try:
        with _cli.make_context("streamtrain", list(words), obj=words, color=has_color()) as context:
            context.meta[BEGAN] = began
            _cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _has(words: tuple[str, ...], flag: str) -> bool:
    # Looked up in the raw words: a command that cannot be imported parses nothing.
    ours = words[: words.index("--")] if "--" in words else words
    return flag in ours


def _as_values(error: BaseException, message: str, code: int) -> dict[str, object]:
    """Turn an error into one JSON object: class, code, what, where, why, fix."""
    if isinstance(error, StreamtrainError):
        return error.to_json()
    name = "UsageError" if isinstance(error, click.UsageError) else type(error).__name__
    return {"class": name, "code": code, "what": message, "where": None, "why": None, "fix": None}


def _outcome(error: BaseException) -> tuple[str, int]:
    """Find the message and the exit code of an error."""
    match error:
        case StreamtrainError():
            return error_text(error), error.exit_code
        case click.UsageError():
            return _usage(error), error.exit_code
        case click.ClickException():
            return printable(error.format_message()), error.exit_code
        case KeyboardInterrupt() if hasattr(error, "exit_code"):
            return printable(str(error)), error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return "interrupted", EXIT_INTERRUPTED
        case MemoryError():
            what = f"out of memory: {error}" if str(error) else "out of memory"
            return f"{what}. Fix: a smaller --memory or --batch-size.", ResourceError.exit_code
        case RuntimeError() if found := _ALLOCATION.search(str(error)):
            what = f"out of memory: {format_bytes(int(found[1]))} could not be had"
            return f"{what}. Fix: a smaller --model or --batch-size.", ResourceError.exit_code
        case OSError() if error.errno in _FULL_DISK:
            return printable(f"{error}. Fix: free some space."), ResourceError.exit_code
        case OSError() if error.errno in _RAN_OUT or (error.filename is not None and is_of_machine(error)):
            return _outcome(os_failure(error, "use", str(error.filename or "a file")))
        case _:
            what = printable("".join(traceback.format_exception_only(error)).strip())
            return f"a bug in streamtrain: {what} (--debug shows the traceback)", EXIT_BUG


def _usage(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = [name.removeprefix("--") for name in (*names_of(error.ctx.command), "--help")]
        word = error.option_name.lstrip("-")
        meant = (_share(word, error.ctx) if "split-how" in known else None) or _meant(word, known)
        suggested = f" Did you mean --{meant}?" if meant else ""
        suggested = _behind_command(error.option_name, error.ctx) or suggested
        message = printable(f"No such option: {error.option_name}.{suggested}")
    else:
        # Some of click's messages are lists over several lines.
        message = printable(" ".join(error.format_message().split()))
        if isinstance(error, click.MissingParameter) and error.param is not None and error.param.name == "model":
            message = f"{message} Fix: --model mlp, say; or linear, cnn, FILE.py:NAME."
        message = _surplus(message, error.ctx) if error.ctx else message
    return f"{message}\nSee '{error.ctx.command_path} --help'." if error.ctx else message


def _behind_command(option: str, context: click.Context) -> str:
    """Say of an option before the command that it belongs behind it."""
    words = [*(context.obj or ())]
    name = next((word for word in words if word in COMMANDS), None)
    if context.parent is not None or name is None or not isinstance(context.command, click.Group):
        return ""
    command = context.command.get_command(context, name)
    options = [] if command is None else [each for each in command.params if isinstance(each, click.Option)]
    found = next((each for each in options if option in each.opts), None)
    if found is None or option not in words:
        return ""
    at = words.index(option)
    moved = words[at : at + (1 if found.is_flag else 2)]
    return f" Fix: {command_line(['streamtrain', *words[:at], *words[at + len(moved) :], *moved])}."


_OF_DATASETS: Final = ("train", "compare", "plan")
"""Commands that take a dataset, and no run."""


def _surplus(message: str, context: click.Context) -> str:
    """Say of one argument too many, where the first is the folder of a run, which of the two is meant."""
    # Of several arguments click tells in the plural.
    extra, dest = re.fullmatch(r"Got unexpected extra argument \((.+)\)", message), context.params.get("dest")
    words = [*context.find_root().obj]
    if extra is None or context.info_name not in _OF_DATASETS or str(dest) not in words:
        return message
    # Loads the store, which help does without.
    from streamtrain.store.root import kind_of_runs

    if (kind := kind_of_runs(Path(str(dest)))) is None:
        return message
    words.remove(str(dest))
    told = f"{context.info_name} takes a dataset alone, and {dest} is {kind}"
    return f"{told}. Fix: {command_line(['streamtrain', *words])}"


def _meant(word: str, known: Sequence[str]) -> str | None:
    """Find the option that is meant: by its name in Python or in another library, or else by the nearest name."""
    name = word.replace("-", "_")
    begun = sorted((option for option in known if len(word) > 1 and option.startswith(word)), key=len)
    options = (option_name(name), *begun, *map(option_name, names_here(name)))
    return next((option for option in options if option in known), None) or nearest_name(word, known)


_SPLIT: Final = re.compile(r"(val|test)(idation)?([-_](split|size|share|fraction))?|valid([-_]size)?")


def _share(word: str, context: click.Context) -> str | None:
    """Write the option that divides rows, for the share of one split as other libraries name it."""
    if _SPLIT.fullmatch(word) is None:
        return None
    words = [part for each in context.find_root().obj for part in each.split("=", 1)]
    after = words[words.index(f"--{word}") + 1 :][:1] if f"--{word}" in words else []
    share = after[0] if after and re.fullmatch(r"0?\.\d+", after[0]) else "0.1"
    return f"split {'test' if word.startswith('test') else 'val'}={share}"


def _wrapped(message: str) -> str:
    # In a log each message stays on one line, where a search finds it.
    if not sys.stderr.isatty():
        return message
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(_wrap_line(line, width) for line in message.splitlines())


def _wrap_line(line: str, width: int) -> str:
    # Indented lines are tables: their columns say more than their width.
    if line.startswith(" "):
        return line
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _open_closed_streams() -> None:
    """Give the null device to standard streams that are closed: the next file opened would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - until the end


def _drop_full_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _drop(stream)


def _drop(stream: TextIO) -> None:
    # The reader has left, or the disk is full. The descriptor now points at nothing, so that the flush at exit cannot
    # fail either.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _common_options() -> list[click.Option]:
    """Make the options that every command has."""
    debug = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
    return [*verbosity_options(), debug]


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        # Takes as long to import as all the rest here.
        from importlib.metadata import version

        click.echo(f"streamtrain {version('streamtrain')}")
        context.exit()


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called, each with the options that all have."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"streamtrain.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        if all(parameter.name != "debug" for parameter in command.params):
            command.params += _common_options()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown_name("command", args[0], COMMANDS)
        if not ctx.resilient_parsing and args[0] in COMMANDS and does_nothing(args[0]):
            ctx.exit()
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click would import each command for its line of help.
        names = [CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{_WIDTH}}", COMMANDS[name]) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text("The pages of the guide: streamtrain guide")


_cli = _LazyGroup(
    "streamtrain",
    help="Train PyTorch models on datasets larger than memory, from a sharded Zarr store.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
        *_common_options(),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
