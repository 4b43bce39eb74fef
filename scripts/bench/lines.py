#!/usr/bin/env python3
"""Lines of the package: physical, and of code without docstrings, comments and blanks, for each part of it.

Prints a table on stderr and one JSON line per part on stdout, the whole one last.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

from scripts.runner import Result, new_parser, run

PACKAGE: Final = Path(__file__).resolve().parents[2] / "streamtrain"
_SILENT: Final = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main() -> None:
    """Count, and print each part."""
    run(new_parser(__doc__).parse_args(), count_all, describe, packages=())


def count_all(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Count every part of the package, and the whole."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts.setdefault(path.relative_to(PACKAGE).parts[0], []).append(count(path.read_text()))
    everything = [lines for found in parts.values() for lines in found]
    for name, found in [*parts.items(), ("whole", everything)]:
        physical, code = map(sum, zip(*found, strict=True))
        yield {"part": name, "files": len(found), "physical": physical, "code": code}


def count(text: str) -> tuple[int, int]:
    r"""Physical lines, and those with code in them.

    Examples
    --------
    >>> count("x = (  # here\n    1,\n)\n\n# Why\n")
    (5, 3)
    """
    prose = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(text.splitlines()), len(code - prose)


def describe(result: Result) -> str:
    """One line for people."""
    return (
        f"{result['part']:<12} {result['files']:>4} files {result['physical']:>7,} lines {result['code']:>7,} of code"
    )


if __name__ == "__main__":
    main()
