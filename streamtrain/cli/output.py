"""Text, tables and JSON: ``--json``, ``--quiet`` and ``--verbose``, colors, results that several commands print."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from streamtrain.cli.ranks import is_first
from streamtrain.errors import Argument, Call, Fix, Lines, StreamtrainError, StreamtrainWarning, printable
from streamtrain.system.json_values import to_json_value
from streamtrain.system.refusals import os_failure
from streamtrain.system.units import format_bytes, format_duration, format_share, megabytes

if TYPE_CHECKING:
    from streamtrain.diagnostics.headspace import Headspace
    from streamtrain.store.dataset import Dataset
    from streamtrain.store.layout import Field
    from streamtrain.store.schema.task import TaskName
    from streamtrain.system.events import ThreadSeconds

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
"""Adds ``as_json: bool`` to a command."""

_VERBOSITY: Final = "streamtrain.verbosity"
BEGAN: Final = "streamtrain.began"
"""The key in a command's context of the time at which it began."""


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[_VERBOSITY] = parameter.name


def verbosity_options() -> list[click.Option]:
    """Make the options of how much is printed, which every command has."""
    hidden: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": _set_verbosity}
    return [
        click.Option(["-q", "--quiet"], help="Print only the result: no progress, memory or time.", **hidden),
        click.Option(["-v", "--verbose"], help="Print all figures of memory and threads.", **hidden),
    ]


def is_quiet() -> bool:
    """Say whether the command prints its result alone."""
    return _verbosity() == "quiet"


def is_verbose() -> bool:
    """Say whether the command prints all its figures."""
    return _verbosity() == "verbose"


def _verbosity() -> object:
    context = click.get_current_context(silent=True)
    return context.meta.get(_VERBOSITY) if context else None


def seconds_so_far() -> float:
    """Return the wall time since the command began."""
    context = click.get_current_context(silent=True)
    now = time.perf_counter()
    return now - (context.meta.get(BEGAN, now) if context else now)


def progress_text(as_json: bool) -> Callable[[str], None]:
    """Return what prints lines before the result: nothing beside ``--json``, and under ``--quiet``."""
    return (lambda _: None) if as_json or is_quiet() else print_text


def has_color() -> bool | None:
    """Return False where no color is wanted; None leaves it to click, which colors terminals alone."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


_HEADS: Final = {"error:": "red", "warning:": "yellow", "hint:": "yellow"}


def colored(text: str) -> str:
    """Color the word that a message begins with."""
    head, blank, rest = text.partition(" ")
    return f"{click.style(head, fg=_HEADS[head], bold=True)}{blank}{rest}" if head in _HEADS else text


def emit(as_json: bool, result: Mapping[str, object], text: str) -> None:
    """Print a result on stdout: one JSON object, or the text for people."""
    print_text(json.dumps(to_json_value(result), allow_nan=False) if as_json else text)


def print_text(text: str) -> None:
    """Print text on stdout, escaped where it is not printable; a stream that was closed from the start loses it."""
    if not is_first():
        return
    # A letter that the terminal's encoding lacks: an escape in the output is better than a crash.
    encoding = (sys.stdout and sys.stdout.encoding) or "utf-8"
    try:
        click.echo(printable(text).encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        raise
    except OSError as error:
        failure = os_failure(error, "write", "stdout")
        failure.why = None  # the room of another disk
        raise failure from error


def note(text: str) -> None:
    """Print text on stderr, escaped where it is not printable; one that is closed, or full, stops no work.

    Under ``--quiet`` only dangers are printed: errors and warnings.
    """
    if is_quiet() and not text.startswith(("error:", "warning:")):
        return
    if not is_first():
        if not text.startswith("error:"):
            return
        text = "\n".join(f"rank {os.environ['RANK']}: {line}" for line in text.splitlines())
    with suppress(OSError):
        click.echo(colored(printable(text)), err=True, color=has_color())


_OPTIONS: Final = {
    "checkpoint": "out",
    "every": "schedule-every",
    "max_epochs": "epochs",
    "model_args": "model-arg",
    "options": "schedule-option",
    "which": "checkpoint",
}
"""Arguments whose option has another name."""
PYTHON_ONLY: Final = frozenset({"crop", "flip", "pool", "ratio", "resize", "scale", "timeout"})
"""Arguments that no command has an option for."""


def error_text(error: StreamtrainError) -> Lines:
    """Write an error as the command line says it; from here on its remedy is in options, too."""
    error.fix = as_command_line(error.fix) if error.fix else None
    return Lines(error)


def warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write a Python warning as the command line says it; others than ours as Python does."""
    if isinstance(message, StreamtrainWarning):
        return f"{_on_stderr('warning:')} {printable(as_command_line(message.text()))}\n"
    return printable(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def _on_stderr(head: str) -> str:
    # Python writes a warning by itself, and strips no color.
    is_plain = sys.stderr is None or not sys.stderr.isatty() or has_color() is False
    return head if is_plain else colored(head)


def as_command_line(fix: str) -> str:
    """Write a remedy as options of the command line; sizes are rounded up to whole megabytes."""
    return fix.said_by(_for_a_shell) if isinstance(fix, Fix) else fix


def _for_a_shell(part: Argument | Call) -> str:
    if isinstance(part, Call):
        return command_line(["streamtrain", part.name, part.path, *(f"--{flag}" for flag in part.flags)])
    if part.name in PYTHON_ONLY:
        return f"{part} in Python"
    if part.name == "decode" and isinstance(part.value, dict):
        # Of fields of images; an ingest's is a word.
        return " ".join(["--images", *(str(how.size) for how in list(part.value.values())[:1])])
    option = f"--{option_name(part.name)}"
    if part.n_bytes is not None:
        return f"{option} {megabytes(part.n_bytes)}"
    if part.off:
        return f"{option} none"
    match part.value:
        case None | True:
            return option
        case False:
            return "--no-png" if part.name == "png" else f"no {option}"
        case dict() as pairs:
            return " ".join(f"{option} {command_line([words])}" for words in _pairs(part.name, pairs))
        case list() | tuple() as values:
            return f"{option} {command_line([','.join(map(str, values))])}"
    # In Python ``resume`` may be "auto" or a path; here it is a flag.
    return option if part.name == "resume" else f"{option} {command_line([str(part.value)])}"


def option_name(argument: str) -> str:
    """Return the option that stands for an argument, without its dashes."""
    return _OPTIONS.get(argument, argument).replace("_", "-")


def typed_words() -> list[str]:
    """Return the command as it was typed, without the program's name."""
    context = click.get_current_context(silent=True)
    return list((context.find_root().obj or ()) if context else ())


def command_line(words: Iterable[str]) -> str:
    """Quote words for a shell; what is not printable is written so that bash reads it back."""
    return " ".join(map(_quoted, words))


_NOT_REPEATED: Final = frozenset({"--json", "--quiet", "--resume", "--verbose", "-q", "-v"})


def typed_command() -> dict[str, object]:
    """Return the command that repeats a run, by name: as it was typed, but into a folder of its own."""
    words, kept = typed_words(), list[str]()
    for i, word in enumerate(words):
        is_of_out = word.startswith("--out=") or word == "--out" or words[i - 1 : i] == ["--out"]
        kept += [] if is_of_out or word in _NOT_REPEATED else [word]
    return {"command": command_line(["streamtrain", *kept])} if kept else {}


def own_command(text: str) -> list[str]:
    """Return the words of a command that a run or comparison was begun with; none of what is no command of ours.

    Such a folder may come from anyone: what is shown of it is quoted word by word.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        return []
    return words if words[:1] == ["streamtrain"] else []


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


_PLAIN: Final = frozenset(range(32, 127)) - frozenset(b"'\\")
"""Bytes that stand for themselves in bash's $'...'."""


def _pairs(name: str, pairs: Mapping[str, object]) -> list[str]:
    """Write NAME=VALUE pairs as an option takes them: those of a schedule or a model one by one, others in one list."""
    each = {key: value if name == "lr" and isinstance(value, list | tuple) else [value] for key, value in pairs.items()}
    words = [f"{key}={_as_word(value)}" for key, values in each.items() for value in values]
    return words if name in ("options", "model_args") else [",".join(words)]


def _as_word(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, bool | list | tuple) else str(value)


def memory_line(memory: Mapping[str, int]) -> str:
    """Write budget, projection and measured peak side by side, and the rest under ``--verbose``.

    A peak that is not above the memory of a step, in a run of a few, tells nothing of the loaders, and is left out.
    """
    known = {name: n for name, n in memory.items() if n or name != "measured"}
    shown = {name: n for name, n in known.items() if name in _MEMORY_SHOWN or is_verbose()}
    return "memory  " + ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in shown.items())


_MEMORY_SHOWN: Final = ("budget", "projected", "measured")


def time_lines(wall: Mapping[str, float], work: ThreadSeconds) -> list[str]:
    """Write how the wall time of a run divides; under ``--verbose``, the work of the loader's threads, too."""
    shares = ", ".join(f"{kind} {format_share(share)}" for kind, share in _shares(wall).items())
    lines = [f"time    {format_duration(sum(wall.values()))}: {shares}"]
    if is_verbose() and work.total > 0:
        done = ", ".join(f"{kind} {format_share(share)}" for kind, share in _shares(work.named()).items() if share > 0)
        lines.append(f"threads {format_duration(work.total)} of work: {done}")
    return lines


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {kind: value / total if total else 0.0 for kind, value in seconds.items()}


_SHARED_CORES: Final = "; the loader's threads read, check and gather on the cores that the steps compute on"


def headspace_line(found: Headspace) -> str:
    """Write how much faster a perfect loader would be."""
    perfect, real = found.perfect.samples_per_second, found.loader.samples_per_second
    return (
        f"headspace {found.ratio:.2f}: with a perfect loader {perfect:,.0f} samples/s, with this one {real:,.0f} "
        f"({format_share(found.loader.stall_fraction)} waiting){_SHARED_CORES if found.shares_cores else ''}"
    )


def stored_facts(dataset: Dataset) -> dict[str, Any]:
    """Collect a dataset's identity, size, blocks and classes for ``--json``; ``bytes`` are decoded ones."""
    layout = dataset.layout
    return {
        "dataset": str(dataset.path),
        "id": dataset.id,
        "samples": len(dataset),
        "bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "codec": layout.codec,
        "block_rows": layout.block_rows,
        "block_bytes": layout.block_bytes,
        "blocks": layout.n_blocks,
        "shards": layout.n_shards * len(layout.fields),
        "classes": dict(enumerate(dataset.classes)) if dataset.classes else None,
    }


def missing_text(dataset: Dataset) -> str:
    """Say how many values of a dataset's fields are no numbers; nothing where there are none."""
    told = list[str]()
    for field in dataset.layout.own_fields:
        overall = dataset.manifest.statistics[field.name].overall
        counts = [f"{n:,} {kind}" for n, kind in ((overall.n_nan, "NaN"), (overall.n_inf, "infinite")) if n]
        told += [f"{' and '.join(counts)} in {field.name}"] if counts else []
    return ", ".join(told)


def encoded_facts(dataset: Dataset, field: Field) -> dict[str, Any]:
    """Say of a field of images as they are what is known of them, for ``--json``; nothing of any other."""
    images = dataset.manifest.statistics[field.name].images
    if field.encoded is None or images is None:
        return {}
    return {"encoded": {"check": field.encoded.check, **images.as_json()}}


def task_facts(dataset: Dataset) -> dict[str, object] | None:
    """Return the task of a dataset's labels and what it follows from, for ``--json``."""
    task = dataset.label_task()
    return None if task is None else task.named()


def label_text(dataset: Dataset, field: str = "y", told: TaskName | None = None) -> str:
    """Say which task a dataset's labels are of, with the way out; nothing of a dataset without labels."""
    # Loads NumPy, which help does without.
    from streamtrain.store.schema.task import label_line, task_of

    task = dataset.label_task(field)
    if task is None:
        return ""
    return as_command_line(label_line(task if told in (None, task.name) else task_of(task.labels, told)))
