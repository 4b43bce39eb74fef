"""Remedies as they are typed on the command line: what the library calls ``memory='7MB'`` is ``--memory 7MB`` here."""

from __future__ import annotations

import re
from typing import Final

_MEGABYTE: Final = 10**6
_ARGUMENT: Final = re.compile(r"\b(memory|batch_size|lanes|device|seed)=(?:'([^']*)'|([\w.:]+))")
_FLAG: Final = re.compile(r"\bdrop_last=False\b")
_BYTES: Final = re.compile(r"(\d+)B")


def typed(fix: str) -> str:
    """A remedy in the words of the command line; sizes are rounded up to whole megabytes.

    Examples
    --------
    >>> typed("memory='6035592B', or fewer lanes")
    '--memory 7MB, or fewer lanes'
    >>> typed("batch_size=64, or drop_last=False"), typed("device='auto'")
    ('--batch-size 64, or no --drop-last', '--device auto')
    """
    return _FLAG.sub("no --drop-last", _ARGUMENT.sub(_option, fix))


def megabytes(n_bytes: int) -> str:
    """A size that is at least this, as it is typed.

    Examples
    --------
    >>> megabytes(6_035_592)
    '7MB'
    """
    return f"{-(-n_bytes // _MEGABYTE)}MB"


def _option(found: re.Match[str]) -> str:
    name, value = found[1].replace("_", "-"), found[2] or found[3]
    exact = _BYTES.fullmatch(value)
    return f"--{name} {megabytes(int(exact[1])) if exact else value}"
