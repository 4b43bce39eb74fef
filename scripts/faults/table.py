#!/usr/bin/env python3
"""The fault table in Markdown: stage × fault, cases tried and wrong results, from the lines of `scripts/faults/run`.

`scripts/faults/table.py FILE...` reads the JSON lines of any number of runs (by default those on stdin), adds up what
concerns the same stage and fault, and prints a table for each set of faults. Ends with 1 if any result was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many cases were tried, and how many ended wrongly."""

    cases: int = 0
    wrong: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(cases=self.cases + other.cases, wrong=self.wrong + other.wrong)

    def __str__(self) -> str:
        return f"{self.cases:,} / " + (f"**{self.wrong:,}**" if self.wrong else "0")


Counts = Mapping[str, Mapping[str, Count]]
"""Stage -> fault -> count, in the order in which they came."""


def counted(lines: Iterable[str]) -> Counts:
    """Add up results.

    Examples
    --------
    >>> line = '{"stage": "append", "fault": "EIO", "cases": 500, "wrong": 0}'
    >>> str(counted([line, line])["append"]["EIO"])
    '1,000 / 0'
    """
    found: dict[str, dict[str, Count]] = defaultdict(lambda: defaultdict(Count))
    for line in lines:
        if line.strip():
            stage, fault, count = _read(json.loads(line))
            found[stage][fault] += count
    return found


def _read(result: Mapping[str, Any]) -> tuple[str, str, Count]:
    if result.get("bench") == "resume":
        stage = f"training by {result['rule']}, {result['optimizer']}"
        return stage, "kill -9", Count(cases=result["kills"], wrong=result["different"])
    return result["stage"], result["fault"], Count(cases=result["cases"], wrong=result["wrong"])


def tables(counts: Counts) -> Iterator[str]:
    """A table of the stages that the same faults were tried on, set by set."""
    sets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for stage, found in counts.items():
        sets[tuple(found)].append(stage)
    for faults, stages in sets.items():
        rows = [["cases tried / wrong results", *faults]]
        rows += [["---"] * (1 + len(faults))]
        rows += [[stage, *(str(counts[stage][fault]) for fault in faults)] for stage in stages]
        yield "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the tables, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON lines (stdin)")
    arguments = parser.parse_args()
    lines = [line for file in arguments.files for line in file.read_text().splitlines()]
    counts = counted(lines if arguments.files else sys.stdin)
    total = sum((count for faults in counts.values() for count in faults.values()), Count())
    print("\n\n".join([*tables(counts), f"All: {total}."]))
    raise SystemExit(total.wrong > 0)


if __name__ == "__main__":
    main()
