"""Remedies as they are typed on the command line: what the library calls ``memory='7MB'`` is ``--memory 7MB`` here."""

from __future__ import annotations

import re
from typing import Final

from streamtrain.system.units import megabytes

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


def _option(found: re.Match[str]) -> str:
    name, value = found[1].replace("_", "-"), found[2] or found[3]
    exact = _BYTES.fullmatch(value)
    return f"--{name} {megabytes(int(exact[1])) if exact else value}"
