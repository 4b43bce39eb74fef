"""Forms of texts that are no plain numbers and no ISO dates, but nearly so: told apart from other texts.

They are numbers with a decimal comma, dates with the day or the month first, and numbers beside a few marks of missing
values such as ``-``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["numbers with a decimal comma", "dates with the day first", "dates with the month first", "numbers"]

_COMMA: Final = re.compile(r"[+-]?(\d+|\d{1,3}([. '])\d{3}(\2\d{3})*)(,\d+)?")
_PLAIN: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DATE: Final = re.compile(r"(\d{1,2})([./])(\d{1,2})\2\d{4}(\s.*)?")
_MARK: Final = re.compile(r"\W+|n[./]?a\.?|k\. ?a\.?|none|null|nil|missing|unknown", re.IGNORECASE)
_MOST_MARKS: Final = 3
_LONGEST_MARK: Final = 20
_TEXTS_A_MARK: Final = 5
_NUMBERS_A_MARK: Final = 20
"""Distinct numbers for each mark, from which on they are no names of classes or categories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What nearly all texts of a column are, and the marks that the others are."""

    kind: Kind
    example: str
    n_texts: int
    marks: Mapping[str, int]
    grouping: str | None = None  # between thousands

    @property
    def is_foreign(self) -> bool:
        """Whether the texts without the marks are read as text, too."""
        return self.kind != "numbers"

    @property
    def is_date(self) -> bool:
        """Whether they are dates."""
        return self.kind.startswith("dates")

    def __str__(self) -> str:
        said = f"{self.kind} ({self.example})"
        if not self.marks:
            return said
        others = ", ".join(f"{n:,} {'is' if n == 1 else 'are'} {mark!r}" for mark, n in self.marks.items())
        return f"{said}: {self.n_texts - sum(self.marks.values()):,} of {self.n_texts:,} values, and {others}"


@dataclass(slots=True, kw_only=True)
class TextForms:
    """What the texts of a column look like, as far as they have been seen."""

    is_open: bool = True  # until they are neither
    _n_texts: int = 0
    _marks: dict[str, int] = field(default_factory=dict)
    _distinct: set[str] = field(default_factory=set)  # others than marks; no more than are needed
    _comma: str | None = None  # the least text with a comma, and so on
    _date: str | None = None
    _plain: str | None = None  # one that is no number with a decimal comma
    _number: str | None = None  # one that is both
    _grouped: str | None = None  # one that is no plain number, and has no comma
    _grouping: str | None = None
    _first: int = 0  # the largest number before the first dot of a date, and before the second
    _second: int = 0

    def add(self, counts: Mapping[str, int]) -> None:
        """Take in texts, with how often each occurs."""
        for text, n in counts.items():
            if not self.is_open:
                return
            self._n_texts += n
            self._add(text.strip(), n)

    def _add(self, text: str, n: int) -> None:
        if date := _DATE.fullmatch(text):
            self._date = min(text, self._date or text)
            self._first, self._second = max(self._first, int(date[1])), max(self._second, int(date[3]))
        elif number := _COMMA.fullmatch(text):
            self._grouping = self._grouping or number[2]
            if number[4]:
                self._comma = min(text, self._comma or text)
            elif _PLAIN.fullmatch(text):
                self._number = min(text, self._number or text)
            else:
                self._grouped = text
        elif _PLAIN.fullmatch(text):
            self._plain = min(text, self._plain or text)
        else:
            self._marks[text] = self._marks.get(text, 0) + n
            is_mark = len(text) <= _LONGEST_MARK and not any(map(str.isdigit, text))
            self.is_open = is_mark and len(self._marks) <= _MOST_MARKS
            return
        if len(self._distinct) < _MOST_MARKS * _NUMBERS_A_MARK:
            self._distinct.add(text)
        is_comma = self._comma is not None or self._grouped is not None
        kinds = (self._date is not None, is_comma, self._plain is not None)
        self.is_open = sum(kinds) <= 1 and not (self._date is not None and self._number is not None)

    def form(self) -> Form | None:
        """Say what they are; None where they are nothing of this, or plain numbers alone."""
        kind, example = self._kind()
        if not self.is_open or kind is None or example is None:
            return None
        is_few = len(self._distinct) < len(self._marks) * (_NUMBERS_A_MARK if kind == "numbers" else _TEXTS_A_MARK)
        is_unknown = kind == "numbers" and not (self._marks and all(map(_MARK.fullmatch, self._marks)))
        if is_few or is_unknown:
            return None
        grouping = self._grouping if kind == "numbers with a decimal comma" else None
        return Form(kind=kind, example=example, n_texts=self._n_texts, marks=self._marks, grouping=grouping)

    def _kind(self) -> tuple[Kind | None, str | None]:
        if self._date is not None:
            if self._first > 12:
                return (None if self._second > 12 else "dates with the day first"), self._date
            return ("dates with the month first" if self._second > 12 else "dates with the day first"), self._date
        if self._comma is not None:
            return "numbers with a decimal comma", self._comma
        return (None if self._grouped else "numbers"), self._plain or self._number
