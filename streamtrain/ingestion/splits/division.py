"""The division of a source: the split of every row, and one source for each split's rows.

By row the split follows from the row's number; by column it is kept in a file, one byte a row, as memory may not
hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.base import ReadingMemory, Rows, Source, check_range, rows_within
from streamtrain.ingestion.sources.combine import name_of
from streamtrain.ingestion.sources.input_files import read_range
from streamtrain.ingestion.splits.group_values import GroupRun, group_values
from streamtrain.ingestion.splits.rule import (
    U8,
    U64,
    Value,
    boundaries,
    in_order,
    row_words,
    splits_in_order,
    splits_of_words,
    value_word,
    word_edges,
)
from streamtrain.store.split_root import SplitRule
from streamtrain.system.files import Files
from streamtrain.system.units import format_bytes

SplitsOf = Callable[[int, int], U8]
"""Gives the numbers of the splits of rows [start, stop)."""

_STEP: Final = 1 << 16
_STEP_BYTES: Final = 40 * _STEP  # the words of a step's rows, their splits, and those of one split
_PIECE_BYTES: Final = 1 << 20
_VALUE_BYTES: Final = 300
_SHARE_OF_VALUES: Final = 4  # of the memory, for the distinct values that an order takes
_SHARE_OF_GROUPS: Final = 64
_GROUP_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The rows of a source divided."""

    splits_of: SplitsOf
    n_groups: tuple[int | None, ...]  # of each split; None where there are more than memory can count
    ends: npt.NDArray[np.int64]  # (n_steps + 1, n_splits): rows of each split before each step of rows

    @property
    def n_samples(self) -> tuple[int, ...]:
        """Rows of each split."""
        return tuple(self.ends[-1].tolist())


def divide(
    source: Source, given: Source, rule: SplitRule, folder: Path, files: Files, *, memory: int, first_row: int = 0
) -> Division:
    """Find the split of every row; ``first_row`` is the number of the first where rows are appended."""
    assert source.n_samples is not None, "which reading any range takes"
    n_rows, n_splits = source.n_samples, len(rule.names)
    splits_of: SplitsOf
    n_groups: tuple[int | None, ...] | None = None
    if rule.by is not None:
        path = folder / "splits"
        runs = partial(group_values, source, given, rule.by, memory=memory)
        n_groups = (_by_hash if rule.how == "hash" else _by_order)(runs, rule, path, files, memory=memory)
        splits_of = partial(_stored, path)
    elif rule.how == "hash":
        splits_of = partial(_of_rows, rule, word_edges(rule), first_row)
    else:
        splits_of = partial(_of_order, np.array(boundaries(n_rows, rule), np.int64))
    ends = np.zeros((-(-n_rows // _STEP) + 1, n_splits), np.int64)
    for step, start in enumerate(range(0, n_rows, _STEP), 1):
        found = splits_of(start, min(start + _STEP, n_rows))
        ends[step] = ends[step - 1] + np.bincount(found, minlength=n_splits)
    return Division(splits_of=splits_of, n_groups=n_groups or tuple(ends[-1].tolist()), ends=ends)


def _of_rows(rule: SplitRule, edges: U64, first_row: int, start: int, stop: int) -> U8:
    return splits_of_words(row_words(rule, first_row + start, first_row + stop), edges)


def _of_order(first_rows: npt.NDArray[np.int64], start: int, stop: int) -> U8:
    return np.searchsorted(first_rows, np.arange(start, stop), side="right").astype(np.uint8)


def _stored(path: Path, start: int, stop: int) -> U8:
    out = np.empty(stop - start, np.uint8)
    read_range(path, start, out)
    return out


Runs = Callable[[], Iterator[GroupRun]]


def _by_hash(runs: Runs, rule: SplitRule, path: Path, files: Files, *, memory: int) -> tuple[int | None, ...]:
    edges, groups = word_edges(rule), _Groups(memory // _SHARE_OF_GROUPS // _GROUP_BYTES)
    with files.create(path) as out:
        for run in runs():
            words = np.array([value_word(value, rule.seed) for value in run.values], np.uint64)
            groups.add(words)
            out.write((splits_of_words(words, edges)[run.codes]).data)
    distinct = groups.finish()
    if distinct is None:
        return (None,) * len(rule.names)
    return tuple(np.bincount(splits_of_words(distinct, edges), minlength=len(rule.names)).tolist())


class _Groups:
    """The distinct words that were seen, up to a number of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._words: U64 | None = np.empty(0, np.uint64)
        self._new: list[U64] = []
        self._n_new = 0

    def add(self, words: U64) -> None:
        """Take in words."""
        if self._words is None:
            return
        self._new.append(words)
        self._n_new += len(words)
        # As many again as there are, so that each word is sorted a few times only.
        if self._n_new > len(self._words) + _STEP:
            self.finish()

    def finish(self) -> U64 | None:
        """Return all of them; None where they are too many."""
        if self._words is not None:
            self._words = np.unique(np.concatenate([self._words, *self._new]))
            self._new, self._n_new = [], 0
            if len(self._words) > self._most:
                self._words = None
        return self._words


def _by_order(runs: Runs, rule: SplitRule, path: Path, files: Files, *, memory: int) -> tuple[int, ...]:
    counts: Counter[Value] = Counter()
    most = memory // _SHARE_OF_VALUES // _VALUE_BYTES
    for run in runs():
        counted = np.bincount(run.codes, minlength=len(run.values))
        for value, count in zip(run.values, counted.tolist(), strict=True):
            counts[value] += count
        if len(counts) > most:
            raise BudgetError(
                f"memory is {format_bytes(memory)}, and column {rule.by!r} has more than {most:,} distinct values",
                why="A split in the order of a column keeps all of them in memory",
                fix=Fix(
                    Argument("memory", n_bytes=2 * memory),
                    ", say; or sort the source, and leave ",
                    Argument("split_by"),
                    " out",
                ),
            )
    values = in_order(counts)
    found = splits_in_order([counts[value] for value in values], rule)
    split_of = dict(zip(values, found.tolist(), strict=True))
    with files.create(path) as out:
        for run in runs():
            out.write((np.array([split_of[value] for value in run.values], np.uint8)[run.codes]).data)
    return tuple(np.bincount(found, minlength=len(rule.names)).tolist())


class SplitSource(Source):
    """The rows of one split, in their order; any range of them can be read."""

    seekable = True
    n_samples: int

    def __init__(self, source: Source, division: Division, split: int, *, n_workers: int) -> None:
        self.source, self._division, self._split = source, division, split
        self.fields, self.classes, self.provenance = source.fields, source.classes, source.provenance
        self.schema_facts = source.schema_facts
        self.n_samples = division.n_samples[split]
        self._n_piece = rows_within(_PIECE_BYTES, self.fields)
        self.lengths = {name: lengths[self._rows_of_all()] for name, lengths in source.lengths.items()}
        # What is read of all splits, by each thread, beside what is taken of it.
        row_bytes = sum(field.row_bytes for field in self.fields)
        reading = n_workers * (2 * self._n_piece * row_bytes + _STEP_BYTES)
        own = ReadingMemory(lasting_bytes=division.ends.nbytes + reading)
        # Threads read neighbouring parts, and most of them the same few steps.
        self._places = lru_cache(n_workers + 1)(self._step_places)
        self.reading = ReadingMemory(lasting_bytes=source.reading.lasting_bytes).beside(own)

    def _rows_of_all(self) -> npt.NDArray[np.int64]:
        """Find the rows of this split among all."""
        n_steps = len(self._division.ends) - 1
        return np.concatenate([step * _STEP + self._step_places(step).astype(np.int64) for step in range(n_steps)])

    def where(self, row: int) -> str:
        step = self._step_of(row)
        return self.source.where(step * _STEP + int(self._places(step)[row - self._before(step)]))

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        out = {field.name: field.empty(stop - start) for field in self.fields}
        row = start
        while row < stop:
            step = self._step_of(row)
            first = row - self._before(step)
            places = self._places(step)[first : first + stop - row]
            self._take(step * _STEP, places, out, row - start)
            row += len(places)
        return out

    def _take(self, first: int, places: npt.NDArray[np.uint16], out: dict[str, npt.NDArray[Any]], n_done: int) -> None:
        """Take rows of one step, a piece of it at a time."""
        begin = 0
        while begin < len(places):
            start = int(places[begin])
            end = int(np.searchsorted(places, start + self._n_piece)) if self._n_piece < _STEP else len(places)
            rows = self.source.read(first + start, first + int(places[end - 1]) + 1)
            for name, values in rows.items():
                into = out[name][n_done + begin : n_done + end]
                np.take(values, (places[begin:end] - places[begin]).astype(np.intp), axis=0, out=into, mode="clip")
            begin = end

    def _step_of(self, row: int) -> int:
        """Return the step of all rows in which a row of this split lies."""
        return int(np.searchsorted(self._division.ends[:, self._split], row, side="right")) - 1

    def _before(self, step: int) -> int:
        return int(self._division.ends[step, self._split])

    def _step_places(self, step: int) -> npt.NDArray[np.uint16]:
        """Find the rows of this split among those of a step."""
        assert self.source.n_samples is not None, "which reading any range takes"
        start = step * _STEP
        found = self._division.splits_of(start, min(start + _STEP, self.source.n_samples))
        return np.flatnonzero(found == self._split).astype(np.uint16)


def check_not_empty(division: Division, rule: SplitRule, given: Source) -> None:
    """Refuse a division that leaves a split without a row."""
    for name, n_rows in zip(rule.names, division.n_samples, strict=True):
        if not n_rows:
            what = f"split {name} has no rows: there are {sum(division.n_samples):,}"
            groups = [n or 0 for n in division.n_groups]
            why = f"Column {rule.by!r} has {sum(groups):,} groups" if rule.by else None
            fix = Fix("give more rows, or a larger share: ", Argument("split"))
            raise InputError(what, where=name_of(given), why=why, fix=fix)


def wanted_shares(rule: SplitRule) -> Sequence[float]:
    """Return the share that each split was to have, train first."""
    return (1 - sum(share for _, share in rule.shares), *(share for _, share in rule.shares))
