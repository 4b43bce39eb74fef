#!/usr/bin/env python3
"""The table of the first hour: what a stranger's first tasks take, and whether they come out as they must.

Each task is run in a fresh folder through the command line, or Python where it is about Python; its commands are
counted, and what comes out is held against the row's bar. A table is printed on stderr, and one JSON object a row on
stdout; ends with 1 where a bar is missed. What cannot be measured here says so, and is neither met nor missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # streamtrain and scripts, run from anywhere

from scripts.hour import kills, large, own_models, results, tables, uses
from scripts.hour.session import Check, Row, Session, Sizes, Unexpected
from scripts.runner import Result, new_parser, run

PARTS: Final = (results, large, kills, uses, own_models)
ROWS: Final = {
    row.number: row for row in sorted((row for part in PARTS for row in part.ROWS), key=lambda row: row.number)
}

SIZES: Final = {
    "full": Sizes(
        flights=tables.ALL_FLIGHTS,
        epochs=2,
        samples=20_000,
        auc=10**6,
        predicted=10**6,
        repeats=3,
        permutations=200,
        every=20,
    ),
    "quick": Sizes(
        flights=30_000,
        epochs=3,
        samples=5_000,
        auc=150_000,
        predicted=10**5,
        repeats=3,
        permutations=20,
        every=100,
    ),
    "tiny": Sizes(
        flights=1_500,
        epochs=8,
        samples=1_500,
        auc=10**4,
        predicted=10**4,
        repeats=1,
        permutations=3,
        every=300,
    ),
}


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Run the rows that are asked for."""
    for number in arguments.rows:
        (folder / str(number)).mkdir()
        yield result_of(ROWS[number], Session(folder / str(number), SIZES[arguments.size], arguments.in_process))


def result_of(row: Row, session: Session) -> Result:
    """Run a row in its folder; what ended otherwise than it should is a bar that is missed."""
    started = time.perf_counter()
    checks: list[Check] = []
    try:
        checks.extend(row.checks(session))
    except Unexpected as error:
        checks.append(Check(what="every command ends as it should", found=str(error), bar="", met=False))
    fits = row.at_most is None or session.most <= row.at_most
    return {
        "row": row.number,
        "task": row.task,
        "commands": session.most,
        "at_most": row.at_most,
        "checks": [asdict(check) for check in checks],
        "met": fits and all(check.met is not False for check in checks),
        "seconds": round(time.perf_counter() - started, 1),
    }


def describe(result: Result) -> str:
    """Write a row, and below it what was held against its bars."""
    most = "any" if result["at_most"] is None else result["at_most"]
    head = f"{result['row']:>3}  {result['task']:<72}{result['commands']:>3} of {most:<4}{_word(result['met'])}"
    return "\n".join([head, *(f"       {_line(check)}" for check in result["checks"])])


def _line(check: dict[str, Any]) -> str:
    found = f"{check['found']:.6g}" if isinstance(check["found"], float) else str(check["found"])
    return f"{_word(check['met'])}  {check['what']}: {found}  {check['bar']}".rstrip()


def _word(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "not measured"}[met]


def main() -> int:
    parser = new_parser(__doc__, folder=None)
    parser.add_argument("--rows", type=int, nargs="+", choices=list(ROWS), default=list(ROWS), help="only these rows")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="of the data (default: full)")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument("--in-process", action="store_true", help="run commands in this process: faster, less apart")
    found = run(parser.parse_args(), measure, describe)
    missed = [result["row"] for result in found if not result["met"]]
    print(f"{len(found) - len(missed)} of {len(found)} rows met", *missed and [f"missed: {missed}"], file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
