"""Public calls: unknown arguments named, and errors of ours raised without the frames inside the package.

An error that is the user's mistake shows the user's line and one line of ours. What caused it is in ``error.cause``,
with its traceback; the frames inside are in ``error.inner_traceback``. A call from within the package is left alone, so
that the frames of the command line's ``--debug`` are all there.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast

from streamtrain.errors import (
    BudgetError,
    CheckpointError,
    DamagedBlock,
    DatasetError,
    DeviceError,
    DivergedError,
    InputError,
    LockedError,
    NotASequence,
    StreamtrainError,
    UsageError,
)
from streamtrain.system.calls.argument_names import is_misspelt, missing_argument, surplus_argument, unknown_argument

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_Item = TypeVar("_Item", covariant=True)
_MISTAKES: Final = (
    *(UsageError, InputError, DatasetError, BudgetError, DeviceError, CheckpointError, DivergedError, LockedError),
)
"""Errors whose place is the user's line; those of a bug, a disk or damaged blocks keep all their frames."""
_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_Explain = Callable[[Sequence[Any]], StreamtrainError]


def public(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Wrap a public function: an unknown argument is refused by name, and errors come without inner frames."""
    return _wrapped(function, None)


def public_explaining(surplus: _Explain) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Wrap a public function as `public` does, with an error of its own for too many arguments by position."""

    def wrap(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        return _wrapped(function, surplus)

    return wrap


def _wrapped(function: Callable[_Given, _Result], surplus: _Explain | None) -> Callable[_Given, _Result]:
    arguments = inspect.signature(function).parameters
    known = [name for name in arguments if name != "self"]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in arguments.values())
    by_place = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in arguments.values())
    needed = {name for name, each in arguments.items() if each.default is each.empty and each.kind in _BY_NAME}
    known_names, is_generator = frozenset(known), inspect.isgeneratorfunction(function)

    def check(given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if len(given) > by_place:
            raise surplus(given) if surplus else surplus_argument(arguments, given, by_place, name_of(function))
        if not (takes_any or named.keys() <= known_names):
            wrong = next(name for name in named if name not in known_names)
            raise unknown_argument(wrong, known, name_of(function), named[wrong])
        there = {*list(arguments)[: len(given)], *named}
        if not needed <= there:
            raise missing_argument([name for name in arguments if name in needed - there], name_of(function))

    @functools.wraps(function)
    def call(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        try:
            check(given, named)
            result = function(*given, **named)
        except StreamtrainError as error:
            if not _is_for_user(error, sys._getframe(1)):
                raise
            raise without_frames(error) from None
        # A generator raises only when it is iterated.
        return cast(_Result, PublicIterator(cast(Iterator[object], result))) if is_generator else result

    return call


def name_of(function: Callable[..., object]) -> str:
    """Return a function's name as a user has it: that of a class for its ``__init__``."""
    name = function.__qualname__.removesuffix(".__init__").removeprefix("Predicts.")
    return {"open_dataset": "open"}.get(name, name)


def _is_for_user(error: StreamtrainError, caller: FrameType | None) -> bool:
    """Say whether an error goes to code outside of the package, for the first time."""
    while caller is not None and caller.f_code.co_filename == "<string>":  # the `__init__` of a dataclass
        caller = caller.f_back
    is_inside = caller is not None and str(caller.f_globals.get("__name__")).partition(".")[0] == "streamtrain"
    # What was raised to the user's own function inside one of ours keeps its frames: the line there is the one to see.
    return (
        not is_inside
        and isinstance(error, _MISTAKES)
        and not isinstance(error, DamagedBlock)
        and error.inner_traceback is None
    )


def without_frames(error: StreamtrainError) -> StreamtrainError:
    """Move the frames and the cause of an error from its traceback into its attributes."""
    error.inner_traceback = error.__traceback__
    error.cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error.with_traceback(None)


class PublicIterator(Iterator[_Item], Generic[_Item]):
    """An iterator of a public function: its errors come without inner frames, and it has no length."""

    __slots__ = ("__weakref__", "_length", "_steps")

    def __init__(self, steps: Iterator[_Item], *, length: str | None = None) -> None:
        self._steps = steps
        self._length = length

    def __next__(self) -> _Item:
        try:
            return next(self._steps)
        except StreamtrainError as error:
            if not _is_for_user(error, sys._getframe(1)):
                raise
            raise without_frames(error) from None

    def __len__(self) -> int:
        raise NotASequence("an iterator has no length", fix=self._length)

    def close(self) -> None:
        """End it, as a generator ends."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()


@contextmanager
def naming_misspelt(options: Mapping[str, object], function: Callable[..., object]) -> Iterator[None]:
    """Name what is meant for the function itself where options meant for somebody else are refused."""
    try:
        yield
    except UsageError:
        for name in options:
            if is_misspelt(name, _own_arguments(function)):
                raise unknown_argument(name, _own_arguments(function), name_of(function), options[name]) from None
        raise


def refuse_other_names(options: Mapping[str, object], function: Callable[..., object]) -> None:
    """Refuse options meant for somebody else that other libraries call our arguments by."""
    for name in options:
        if is_misspelt(name, ()):
            raise unknown_argument(name, _own_arguments(function), name_of(function), options[name])


def _own_arguments(function: Callable[..., object]) -> list[str]:
    arguments = inspect.signature(function).parameters
    return [name for name, argument in arguments.items() if argument.kind is not argument.VAR_KEYWORD]
