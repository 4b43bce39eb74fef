"""Versions of Python and of the libraries that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Final

LIBRARIES: Final = ("streamtrain", "torch", "numpy", "zarr")
"""Those that every run has, in the order in which they are told."""


def library_versions() -> dict[str, str]:
    """Return the versions by name, Python's among them."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
