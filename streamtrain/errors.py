"""Every exception that streamtrain raises, with the exit code of the command line.

::

    StreamtrainError                      1   a bug, or an error without a class of its own
    ├── UsageError         (ValueError)   2   an argument is wrong
    │   ├── UnknownName    (LookupError)  2   a name is unknown
    │   ├── UnknownArgument  (TypeError)  2   a function has no argument of that name
    │   ├── MissingArgument  (TypeError)  2   a function is called without what it needs
    │   ├── NotASequence     (TypeError)  2   a stream is indexed, or asked for a length it does not have
    │   └── OutOfRange     (IndexError)   2   an index is past the end
    ├── InputError         (ValueError)   3   the raw data is bad
    ├── DatasetError       (OSError)      4   the dataset on disk is missing, incomplete or damaged
    │   └── DamagedBlock                  4   a stored block does not match its checksum
    │       └── DamagedSample             4   a stored image does not decode
    ├── ResourceError      (OSError)      5   not enough memory, disk or device
    │   ├── BudgetError    (MemoryError)  5   the memory budget is too small
    │   └── DeviceError    (RuntimeError) 5   the device is missing or too small
    ├── CheckpointError    (ValueError)   6   a checkpoint is missing, damaged or of another run
    ├── StallError         (TimeoutError) 7   something did not happen within its deadline
    ├── DivergedError      (ArithmeticError) 8   a loss or gradient is not finite
    └── LockedError        (OSError)      9   another process is writing the dataset or run

Each class is also the builtin exception that fits, so ``except ValueError`` and ``except StreamtrainError`` both work.
A message says what failed, where, why, and the fix. Its words may change in any release. What scripts can rely on: the
class, the exit code, and the names of the values ``what``, ``where``, ``why`` and ``fix``, which ``--json`` prints too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Self


def printable(text: str) -> str:
    r"""Write text with escapes for all that is not printed as itself; `Lines` stay as they are.

    Control characters, marks of direction and halves of letters in a name would steer the terminal it is printed on.

    Examples
    --------
    >>> print(printable("red\x1b[31m"), printable("two\nlines"))
    red\x1b[31m two\nlines
    """
    if text.isprintable() or isinstance(text, Lines):
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class Lines(str):
    """Text laid out in lines, each of which is `printable`; made by `Lines.of`."""

    __slots__ = ()

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """Join lines; an item that is `Lines` itself may be several."""
        return cls("\n".join(map(printable, lines)))


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that fixes an error, with its value; it prints as Python code.

    Parameters
    ----------
    name : str
        Its name in Python; the command line's option follows from it.
    value : object, optional
        The value; without one only the name is printed.
    n_bytes : int, optional
        The value where it is a size.
    off : bool
        Whether the value is None, which switches something off.
    within : str
        Python code to print around it, where it belongs inside a value; ``{}`` marks its place.

    Examples
    --------
    >>> str(Argument("memory", n_bytes=7_000_000)), str(Argument("device", "cpu")), str(Argument("memory"))
    ("memory='7000000B'", "device='cpu'", 'memory=')
    """

    name: str
    value: object = None
    n_bytes: int | None = None
    off: bool = False
    within: str = "{}"

    def __str__(self) -> str:
        if self.n_bytes is not None:
            return f"{self.name}='{self.n_bytes}B'"
        own = f"{self.name}={'' if self.value is None and not self.off else repr(self.value)}"
        return self.within.replace("{}", own, 1)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the library, or a command, that fixes an error.

    Examples
    --------
    >>> str(Call("repair", "d.zarr", ("remove",)))
    "streamtrain.repair('d.zarr', remove=True)"
    """

    name: str
    path: str
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"streamtrain.{self.name}({', '.join([repr(self.path), *(f'{flag}=True' for flag in self.flags)])})"


class _Between(str):
    """What stands between arguments that are given together: a comma in Python, a blank in a shell."""

    __slots__ = ()


FixPart = str | Argument | Call


class Fix(str):
    """A fix: words, with arguments and calls as values, so that it can be printed for Python and for a shell.

    Examples
    --------
    >>> Fix(Argument("memory", n_bytes=7_000_000), " or more")
    "memory='7000000B' or more"
    """

    __slots__ = ("parts",)
    parts: tuple[FixPart, ...]

    def __new__(cls, *parts: FixPart | None) -> Self:
        flat = [inner for part in parts if part is not None for inner in getattr(part, "parts", (part,))]
        self = super().__new__(cls, "".join(map(str, flat)))
        self.parts = tuple(flat)
        return self

    def said_by(self, say: Callable[[Argument | Call], str]) -> str:
        """The words, with every argument and call as ``say`` puts it."""
        said = (part if isinstance(part, str) else say(part) for part in self.parts)
        return "".join(" " if isinstance(part, _Between) else part for part in said)

    @classmethod
    def together(cls, arguments: Iterable[Argument]) -> Self:
        """Name arguments that mend something when all of them are given.

        Examples
        --------
        >>> Fix.together([Argument("na", "drop"), Argument("categorical", ["city"])])
        "na='drop', categorical=['city']"
        """
        parts = [part for argument in arguments for part in (_Between(", "), argument)]
        return cls(*parts[1:])

    def argument(self, name: str) -> Argument | None:
        """The first argument of a name in it."""
        return next((part for part in self.parts if isinstance(part, Argument) and part.name == name), None)


def with_remedy(told: str, fix: str | None) -> Fix:
    """Put a remedy, if there is one, behind what is told.

    Examples
    --------
    >>> with_remedy("two values are missing", "fill them in")
    'two values are missing. Fix: fill them in.'
    """
    if not fix:
        return Fix(told)
    return Fix(told.rstrip(". "), ". Fix: ", fix, None if fix.endswith((".", "?")) else ".")


class StreamtrainError(Exception):
    """Base class of all errors that streamtrain raises.

    Parameters
    ----------
    what : str
        What failed: the value against its limit.
    where : str, optional
        ``file:line``, member, or field + block + sample.
    why : str, optional
        The reason, with its terms.
    fix : str, optional
        How to fix it; a `Fix` where it names arguments.

    Attributes
    ----------
    cause : BaseException or None
        The error behind it, with its traceback, where a public function raised it.
    inner_traceback : traceback or None
        The frames inside that function.

    Examples
    --------
    >>> str(StreamtrainError("3 columns, expected 4", where="a.csv:7", fix="complete the line"))
    'a.csv:7: 3 columns, expected 4. Fix: complete the line.'
    """

    exit_code: ClassVar[int] = 1
    cause: BaseException | None = None
    inner_traceback: TracebackType | None = None

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither a traceback nor every cause can be handed to another process.
        given = {name: value for name, value in self.__dict__.items() if name not in ("cause", "inner_traceback")}
        return type(self), self.args, given

    def to_json(self) -> dict[str, object]:
        """The error as values: class, exit code, what, where, why, fix."""
        named = {"class": type(self).__name__, "code": self.exit_code}
        return named | {name: getattr(self, name) for name in ("what", "where", "why", "fix")}

    def told(self) -> str:
        """All of it but the remedy."""
        what, why = printable(self.what), printable(self.why or "")
        head = f"{printable(self.where)}: {what}" if self.where else what
        text = ". ".join(part.rstrip(". ") for part in (head, why) if part)
        return text if text.endswith("?") or not self.why else text + "."

    def text(self) -> Fix:
        """The whole text, in which the remedy's arguments and calls are still values."""
        return with_remedy(self.told(), self.fix)

    def __str__(self) -> str:
        return str(with_remedy(self.told(), self.fix and printable(self.fix)))


class StreamtrainWarning(UserWarning):
    """Something allowed but rarely a good idea, or a problem that streamtrain worked around; often with a fix.

    Parameters
    ----------
    what : str
        What was found, and its effect.
    fix : str, optional
        How to fix it, as in `StreamtrainError`.

    Examples
    --------
    >>> str(StreamtrainWarning("the last batch has one sample", fix=Fix(Argument("drop_last", True))))
    'the last batch has one sample. Fix: drop_last=True.'
    """

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def text(self) -> Fix:
        """The whole text, in which the remedy's arguments and calls are still values."""
        return with_remedy(printable(self.what), self.fix)

    def __str__(self) -> str:
        return str(with_remedy(printable(self.what), self.fix and printable(self.fix)))


class UsageError(StreamtrainError, ValueError):
    """An argument is wrong."""

    exit_code = 2


class UnknownName(UsageError, LookupError):
    """A name is unknown; the message lists the known ones."""


class UnknownArgument(UsageError, TypeError):
    """A function has no argument of that name."""


class MissingArgument(UsageError, TypeError):
    """A function is called without what it needs."""


class NotASequence(UsageError, TypeError):
    """A stream is indexed, or asked for a length that it does not have."""


class OutOfRange(UsageError, IndexError):
    """An index is past the end."""


class InputError(StreamtrainError, ValueError):
    """The raw data is bad."""

    exit_code = 3


class DatasetError(StreamtrainError, OSError):
    """The dataset on disk is missing, incomplete or damaged."""

    exit_code = 4


class DamagedBlock(DatasetError):
    """A stored block is not what was written, or cannot be read.

    Parameters
    ----------
    what, where, why, fix
        As in `StreamtrainError`; ``where`` is the file.
    field : str
        The field.
    block : int
        Its number in the field.
    samples : tuple of int
        The half-open range of samples in it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
        field: str = "",
        block: int = 0,
        samples: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(what, where=where, why=why, fix=fix)
        self.field = field
        self.block = block
        self.samples = samples


class DamagedSample(DamagedBlock):
    """A stored sample does not decode, although its block is what was written.

    Parameters
    ----------
    what, where, why, fix, field, block, samples
        As in `DamagedBlock`.
    sample : int
        Its number in the dataset.
    """

    def __init__(self, what: str, *, sample: int = 0, **place: Any) -> None:
        super().__init__(what, **place)
        self.sample = sample


class ResourceError(StreamtrainError, OSError):
    """Not enough memory, disk or device."""

    exit_code = 5


class BudgetError(ResourceError, MemoryError):
    """The memory budget is too small for what was asked."""


class DeviceError(ResourceError, RuntimeError):
    """The device is missing or too small."""


class CheckpointError(StreamtrainError, ValueError):
    """A checkpoint is missing, damaged or of another run."""

    exit_code = 6


class StallError(StreamtrainError, TimeoutError):
    """Something did not happen within its deadline."""

    exit_code = 7


class DivergedError(StreamtrainError, ArithmeticError):
    """A loss or gradient is not finite.

    Attributes
    ----------
    samples : tuple of int
        The samples behind it, or those of the batch; empty where they are not known.
    """

    exit_code = 8
    samples: tuple[int, ...] = ()


class LockedError(StreamtrainError, OSError):
    """Another process is writing the dataset, or training the run."""

    exit_code = 9


def remedy(error: OSError, otherwise: str) -> str:
    """The fix for what the system refused: the permission where that is missing, else what is given.

    Examples
    --------
    >>> remedy(PermissionError(13, "Permission denied"), "restore it")
    'give this user the permission (chmod, chown)'
    """
    return "give this user the permission (chmod, chown)" if isinstance(error, PermissionError) else otherwise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank, or else its type."""
    return next((printable(line.strip()) for line in str(error).splitlines() if line.strip()), type(error).__name__)


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Name what two descriptions of the same names differ in, in words for an error.

    Examples
    --------
    >>> differences({"seed": 0, "batch_size": 128}, {"seed": 0, "batch_size": 256})
    ['batch_size: 128 there, 256 here']
    """
    return [
        f"{name}: {there.get(name)!r} there, {value!r} here" for name, value in here.items() if there.get(name) != value
    ]


_OTHERS: Final = {
    "l1": "l1 mae meanabsoluteerror absoluteerror",
    "mse": "mse l2 meansquarederror squarederror",
    "huber": "huber smoothl1",
    "bce_with_logits": "bce bcewithlogits binarycrossentropy logistic",
    "cross_entropy": "ce xent crossentropy log softmax categoricalcrossentropy sparsecategoricalcrossentropy",
    "nll": "nll negativeloglikelihood",
    "poisson": "poissonnll",
}
"""Other libraries' names for ours, without case, bars and "loss" at their end."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Build the error for an unknown name, with the nearest known one.

    Of names that are equally near, the first is taken: known names begin with the most common.

    Examples
    --------
    >>> str(unknown_name("optimizer", "adm", ["adam", "sgd"]))
    "unknown optimizer 'adm'. Known: adam, sgd. Fix: did you mean 'adam'?"
    >>> unknown_name("loss", "mae", ["mse", "l1"]).fix
    "did you mean 'l1'?"
    """
    names = sorted(known) if isinstance(known, Set) else list(known)
    word = str(name).lower().replace("_", "").replace("-", "").removesuffix("loss")
    elsewhere = next((ours for ours in names if word in _OTHERS.get(ours, "").split()), None)
    near = elsewhere or nearest_name(str(name).lower(), names)
    return UnknownName(
        f"unknown {kind} {name!r:.80}",
        why=f"Known: {', '.join(sorted(names))}",
        fix=f"did you mean {near!r}?" if near else "use one of these",
    )


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that is the fewest edits away, of several the first; None where nothing is similar.

    Examples
    --------
    >>> nearest_name("adma", ["adamax", "adam"])
    'adam'
    """
    names = list(known)
    most = {each: max(1, max(len(each), len(name)) // 3) for each in names}
    near = [each for each in names if abs(len(each) - len(name)) <= most[each]]
    edits = {each: _n_edits(name, each) for each in near}
    found = min((each for each in near if edits[each] <= most[each]), key=edits.__getitem__, default=None)
    return found if found is not None else next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _n_edits(one: str, other: str) -> int:
    """Count the letters to insert, delete or replace, or neighbors to swap, that turn one word into the other."""
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one):
        two_above, above, row = above, row, [i + 1]
        for j, its in enumerate(other):
            n = min(above[j] + (letter != its), above[j + 1] + 1, row[j] + 1)
            is_swap = i > 0 and j > 0 and (letter, one[i - 1]) == (other[j - 1], its)
            row.append(min(n, two_above[j - 1] + 1) if is_swap else n)
    return row[-1]
