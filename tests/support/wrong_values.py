"""Values that somebody might hand over by mistake, each made anew since some can be used only once."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch


class OwnError(Exception):
    """An error of the caller's own code, which passes through as it is."""


def _generator_that_raises() -> Iterator[object]:
    raise OwnError
    yield


def _closed_file() -> io.StringIO:
    file = io.StringIO("1,2\n")
    file.close()
    return file


WRONG: Final[Mapping[str, Callable[[], object]]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "a letter": lambda: "x",
    "an empty text": lambda: "",
    "half a letter": lambda: "\ud800",
    "a text with NUL": lambda: "a\0b",
    "bytes": lambda: b"x",
    "0": lambda: 0,
    "-1": lambda: -1,
    "1": lambda: 1,
    "a half": lambda: 0.5,
    "2**70": lambda: 2**70,
    "10**400": lambda: 10**400,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "a complex number": lambda: 1j,
    "a NumPy integer": lambda: np.int64(3),
    "a NumPy float": lambda: np.float32(0.5),
    "a NumPy boolean": lambda: np.bool_(True),
    "NumPy's missing time": lambda: np.datetime64("NaT"),
    "an array": lambda: np.arange(3.0),
    "an array of one": lambda: np.ones(1),
    "an empty array": lambda: np.ones(0),
    "an array of objects": lambda: np.array([None, "x"], dtype=object),
    "a tensor": lambda: torch.arange(3.0),
    "a tensor of one": lambda: torch.tensor(1.0),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a tensor without data": lambda: torch.ones(3, device="meta"),
    "an empty list": list,
    "a list": lambda: ["x", None, 1],
    "a list of lists": lambda: [[1], [2, 3]],
    "a tuple of numbers": lambda: (1, 2),
    "an empty tuple": tuple,
    "an empty dict": dict,
    "a dict": lambda: {"x": None},
    "a dict of numbers": lambda: {1: 2},
    "a set": lambda: {1, "x"},
    "a path": lambda: Path("nowhere"),
    "a closed file": _closed_file,
    "a generator that raises": _generator_that_raises,
    "an object": object,
    "a class": lambda: dict,
    "a module": lambda: math,
    "a torch module": lambda: torch.nn.Linear(3, 3),
    "a dtype": lambda: torch.float16,
}
