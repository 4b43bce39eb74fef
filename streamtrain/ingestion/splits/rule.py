"""The rule of a split: parsed, checked, and as pure functions from rows and values to numbers of splits.

Number 0 is train, the others follow in the order in which they were named. By hash the splits that were named take the
first shares of the words, so that a row keeps its split when a share is added behind them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.store.split_root import HOWS, TRAIN, How, SplitRule
from streamtrain.system.arguments import MOST_INT, check_choice, check_int, is_number
from streamtrain.system.counter_rng import random_key, words

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Value = int | float | str

FEW_GROUPS: Final = 30
"""Below this many a split is too small to say anything, and a warning says so."""

_WORD: Final = 1 << 64
_MOST_SPLITS: Final = 100
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SAY: Final = Fix(Argument("split", {"val": 0.1, "test": 0.1}), ", say")
_KEY: Final = tuple(b"split")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE: Final = re.compile(r"[+-]?\d+", re.ASCII)


def parse_split(
    split: object, *, by: str | None = None, how: str | None = None, seed: int | None = None
) -> SplitRule | None:
    """Make the rule of what a user gives; None where there is none, and then nothing else may be given."""
    if split is None:
        for name, value in (("split_by", by), ("split_how", how), ("split_seed", seed)):
            if value is not None:
                what = f"{name} is {value!r:.80}, and nothing is split"
                raise UsageError(what, fix=Fix(_SAY, ", with it; or leave ", Argument(name), " out"))
        return None
    if by is not None and not isinstance(by, str):
        raise UsageError(f"split_by is {by!r:.80}; it must be the name of a column or field")
    check_choice("hash" if how is None else how, "split_how", HOWS)
    check_int(seed or 0, "split_seed", least=0, most=MOST_INT)
    named: How = "last" if how == "last" else "hash"
    return SplitRule(shares=_parse_shares(split), how=named, by=by, seed=seed or 0)


def _parse_shares(split: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(split, Mapping) or not split:
        raise UsageError(f"split is {split!r:.80}; it maps the name of each split to its share", fix=_SAY)
    shares = []
    for name, share in split.items():
        if name == TRAIN:
            raise UsageError("train has no share of its own: it is the rest", fix=_SAY)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"a split cannot be named {name!r:.80}", why="It names a folder", fix=_SAY)
        if not is_number(share) or not 0 < share < 1:
            raise UsageError(f"the share of {name} is {share!r:.80}; it must be above 0 and below 1", fix=_SAY)
        shares.append((name, float(share)))
    if (total := sum(exact(share) for _, share in shares)) >= 1:
        what = f"the shares sum to {float(total):g}; it must be less than 1"
        raise UsageError(what, why="train is the rest, and has to have rows", fix=_SAY)
    if len(shares) > _MOST_SPLITS or len({name.casefold() for name, _ in shares} | {TRAIN}) <= len(shares):
        raise UsageError(f"split names {len(shares)} splits; names must differ, and there may be 100 at most", fix=_SAY)
    return tuple(shares)


def exact(share: float) -> Fraction:
    """Return a share as the decimal that was written."""
    return Fraction(repr(share))


def word_edges(rule: SplitRule) -> U64:
    """Return the first word above each named split's share, in their order."""
    cumulative, edges = Fraction(0), []
    for _, share in rule.shares:
        cumulative += exact(share)
        edges.append(math.ceil(cumulative * _WORD))
    return np.array(edges, np.uint64)


def splits_of_words(found: U64, edges: U64) -> U8:
    """Return the number of the split that holds each word."""
    place = np.searchsorted(edges, found, side="right").astype(np.uint8)
    place += np.uint8(1)
    place[place > len(edges)] = 0
    return place


def row_words(rule: SplitRule, start: int, stop: int) -> U64:
    """Return the word of each row, by its number."""
    return words(random_key(rule.seed, *_KEY), np.arange(start, stop))


def value_word(value: Value, seed: int) -> int:
    """Return the word of a group: whole numbers have 8 bytes, text is UTF-8, other numbers are a float64's bytes."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, int):
        data = (value % _WORD).to_bytes(8, "little")
    else:
        data = np.array(value, "<f8").tobytes()
    digest = hashlib.blake2b(data, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little")


def plain_value(value: Any) -> Value:
    """Return a number or text as one Python value; a float that is whole is the whole number."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return int(value)


def read_cell(text: str) -> Value:
    """Read a cell of a delimited file: a number whatever way it is written, else the text as it is."""
    cell = text.strip()
    if _WHOLE.fullmatch(cell) and -(2**63) <= (whole := int(cell)) < 2**64:
        return whole
    if _NUMBER.fullmatch(cell) and math.isfinite(number := float(cell)) and not _WHOLE.fullmatch(cell):
        return plain_value(number) if abs(number) < 2**63 else number
    return text


def splits_in_order(counts: Sequence[int], rule: SplitRule) -> U8:
    """Number the splits of groups that stand in order: the last shares are cut off; no group is cut.

    A boundary inside a group moves up, behind it. ``counts`` are the rows of each group.
    """
    ends = np.cumsum(np.asarray(counts, np.int64))
    total = int(ends[-1])
    found = np.zeros(len(ends), np.uint8)
    for number, boundary in enumerate(boundaries(total, rule), 1):
        # A group belongs to the split in which it begins.
        found[ends - np.asarray(counts, np.int64) >= boundary] = number
    return found


def boundaries(n_rows: int, rule: SplitRule) -> list[int]:
    """Return the first row of each named split, where the rows stand in order."""
    shares = [exact(share) for _, share in rule.shares]
    return [n_rows - math.floor(sum(shares[place:]) * n_rows + Fraction(1, 2)) for place in range(len(shares))]


def in_order(values: Counter[Value]) -> list[Value]:
    """Sort values: numbers by size, text by its characters; of both, all are text."""
    if any(isinstance(value, str) for value in values) and any(not isinstance(value, str) for value in values):
        return sorted(values, key=str)
    return sorted(values)
