"""A small world in which a message is provoked and its remedy followed, on the command line or in Python."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli import main as command_line
from streamtrain.cli.output import as_command_line
from streamtrain.errors import Argument, Fix, StreamtrainError, StreamtrainWarning
from tests.advice.remedies import PACKAGE, Remedy

WORLDS: Final[dict[str, Callable[[World], None]]] = {}
"""A remedy's key -> the world in which it is followed."""
_MOST_STEPS: Final = 4  # from message to message

X: Final = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y: Final = np.arange(60) % 3


def world(*keys: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enter a function as the world of these remedies."""

    def enter(function: Callable[[World], None]) -> Callable[[World], None]:
        for key in keys:
            assert key not in WORLDS, f"{key} has two worlds"
            WORLDS[key] = function
        return function

    return enter


@dataclass(slots=True)
class Said:
    """A message with its remedy, and the files and functions of the library it came through."""

    error: StreamtrainError | StreamtrainWarning
    fix: str
    places: set[tuple[str, str]]


@dataclass
class World:
    """A folder, in which the process is, and all that was said since it was entered."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        for kind in (StreamtrainError, StreamtrainWarning):
            self._listen_to(kind)
        before = command_line._outcome

        def outcome(error: BaseException) -> tuple[str, int]:
            if isinstance(error, StreamtrainError):
                self.note(error)
                self._printed = as_command_line(error.fix or "")
            return before(error)

        self.monkeypatch.setattr(command_line, "_outcome", outcome)
        self.monkeypatch.chdir(self.folder)
        self._printed = ""

    def _listen_to(self, kind: Any) -> None:
        before = kind.__init__

        def init(error: Any, *given: Any, **named: Any) -> None:
            before(error, *given, **named)
            self.said.append(Said(error, error.fix or "", _places(sys._getframe(1))))

        self.monkeypatch.setattr(kind, "__init__", init)

    def note(self, error: StreamtrainError) -> None:
        """Keep a message as it came to the user, with all that it came through."""
        places: set[tuple[str, str]] = set()
        one: BaseException | None = error
        while one is not None:
            trace = one.__traceback__
            while trace is not None:
                places |= _places(trace.tb_frame, once=True)
                trace = trace.tb_next
            places |= {place for said in self.said if said.error is one for place in said.places}
            one = one.__cause__ or one.__context__
        self.said.append(Said(error, error.fix or "", places))

    def has_said(self, remedy: Remedy) -> bool:
        """Whether a message here gave the remedy."""
        return any(remedy.is_said_by(said.fix, said.places) for said in self.said)

    def refused(self, function: Callable[..., Any], *given: Any, **named: Any) -> str:
        """Call what is refused with a remedy; return the remedy."""
        with pytest.raises(StreamtrainError) as caught:
            function(*given, **named)
        self.note(caught.value)
        assert caught.value.fix, f"no remedy: {caught.value}"
        return caught.value.fix

    def followed(self, function: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Call what is refused, and again with the arguments that each remedy names, until it works."""
        changes = changed_arguments(self.refused(function, *given, **named))
        assert changes, f"nothing to change: {self.said[-1].error}"
        for change in changes:
            self._call_on(function, given, named | change, _MOST_STEPS)

    def _call_on(self, function: Callable[..., Any], given: Any, named: dict[str, Any], n_left: int) -> None:
        try:
            function(*given, **named)
        except StreamtrainError as caught:
            error = caught
        else:
            return
        assert n_left, f"still refused: {error}"
        self.note(error)
        (change, *_) = changed_arguments(error.fix or "") or [None]
        assert change, f"its remedy leads nowhere: {error}"
        self._call_on(function, given, named | change, n_left - 1)

    def warned(self, function: Callable[..., Any], *given: Any, **named: Any) -> str:
        """Call what works with a warning that has a remedy; return the remedy."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*given, **named)
        fixes = [w.message.fix for w in caught if isinstance(w.message, StreamtrainWarning) and w.message.fix]
        assert fixes, [str(warning.message) for warning in caught]
        return fixes[0]

    def run(self, line: str | list[str]) -> int:
        """Type a command; return its exit code."""
        words = shlex.split(line) if isinstance(line, str) else line
        return command_line.main(words)

    def works(self, line: str | list[str]) -> None:
        """Type a command that works."""
        assert self.run(line) == 0, f"{line}: {self.said[-1].error if self.said else ''}"

    def refuses(self, line: str | list[str]) -> str:
        """Type a command that is refused with a remedy; return the remedy as it is printed."""
        self._printed = ""
        assert self.run(line), f"not refused: {line}"
        assert self._printed, f"no remedy: {line}"
        is_python = self._printed.startswith("import ")
        told = _COMMAND.sub("", self._printed)
        assert is_python or not _PYTHON.search(told), f"Python's words in a shell: {self._printed}"
        return self._printed

    def typed(self, line: str) -> None:
        """Type a command that is refused, and again with the options that each remedy prints, until it works."""
        words = shlex.split(line)
        printed = self.refuses(words)
        changes = _typed_changes(printed)
        assert changes, f"nothing to type: {printed}"
        for change in changes:
            self._type_on(_with_options(words, change), _MOST_STEPS)

    def _type_on(self, words: list[str], n_left: int) -> None:
        self._printed = ""
        if not self.run(words):
            return
        assert n_left, f"still refused: {self._printed}"
        (change, *_) = _typed_changes(self._printed) or [None]
        assert change, f"{words} leads nowhere: {self.said[-1].error if self.said else ''}"
        self._type_on(_with_options(words, change), n_left - 1)

    def dataset(self, name: str = "d.zarr", *, x: Any = X, y: Any = Y, **options: Any) -> st.Dataset:
        """Write a dataset of 60 samples of 4 numbers in 3 classes, or of other arrays."""
        fields = {"x": x} if y is None else {"x": x, "y": y}
        return st.ingest(fields, self.folder / name, progress=False, **options)


def _places(frame: FrameType | None, *, once: bool = False) -> set[tuple[str, str]]:
    """The files and functions of the library on the stack above a frame."""
    found = set()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            function = frame.f_code.co_qualname.replace(".<locals>", "")
            found.add((path.relative_to(PACKAGE).as_posix(), re.sub(r"\.<\w+>$", "", function)))
        frame = None if once else frame.f_back
    return found


_COMMAND: Final = re.compile(r'python -c "[^"]*"')
_PYTHON: Final = re.compile(r"(?<![-\w'])(?!index=)[a-z_]+=(?:'|\"|\[|\{|\(|True|False|None)")
_OR: Final = re.compile(r"[;,]? or |; ")


def changed_arguments(fix: str) -> list[dict[str, Any]]:
    """The arguments that a remedy gives a value, by alternative."""
    changes: list[dict[str, Any]] = [{}]
    for part in fix.parts if isinstance(fix, Fix) else ():
        match part:
            case str() if _OR.search(part):
                changes.append({})
            case Argument(name=name, n_bytes=int(n_bytes)):
                changes[-1][name] = f"{n_bytes}B"
            case Argument(name=name, value=value) if value is not None:
                changes[-1][name] = value
            case _:
                pass
    return [change for change in changes if change]


def _typed_changes(printed: str) -> list[list[str]]:
    """The options that a printed remedy names, by alternative; an option that is to go stands as ``no --option``."""
    return [words for alternative in _OR.split(printed) if (words := list(_options_in(alternative)))]


_WORDS_BEFORE: Final = ("larger ", "smaller ", "another ", "an ", "to ")
_NO_VALUES: Final = frozenset(
    {"and", "choose", "or", "out", "say", "for", "of", "name", "first", "in", "at", "with", "to"}
)


def _options_in(text: str) -> Iterator[str]:
    for found in re.finditer(r"(no |leave |without )?(--[a-z0-9-]+)((?: (?!--)(?:'[^']*'|[^ ']+))?)", text):
        value = "" if found[3].strip() in _NO_VALUES else found[3].strip().removesuffix(",").removesuffix(";")
        if not text[: found.start()].endswith(_WORDS_BEFORE) and (found[1] or value or found[2] in _FLAGS):
            yield f"{'no ' if found[1] else ''}{found[2]} {value}".strip()


_FLAGS: Final = frozenset({"--resume", "--overwrite", "--append", "--drop-last", "--no-png", "--surface", "--compile"})


def _with_options(words: list[str], change: list[str]) -> list[str]:
    for option in change:
        name, *value = shlex.split(option.removeprefix("no "))
        words = _without(words, name)
        words = words if option.startswith("no ") else [*words, name, *value]
    return words


def _without(words: list[str], name: str) -> list[str]:
    if name not in words:
        return words
    place = words.index(name)
    has_value = place + 1 < len(words) and not words[place + 1].startswith("--")
    return words[:place] + words[place + 1 + has_value :]
