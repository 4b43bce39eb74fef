"""Root may read and write whatever the permissions say; inside this block it may only what an owner may."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_VERSION: Final = 0x20080522  # linux/capability.h: _LINUX_CAPABILITY_VERSION_3
_DAC_OVERRIDE_AND_READ_SEARCH: Final = 0b110


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def without_privileges() -> Iterator[None]:
    """Obey permissions in this thread and in those that it starts; they are not touched for who is not root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    if library.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capget")
    before = data[0].effective
    try:
        _set(library, header, data, before & ~_DAC_OVERRIDE_AND_READ_SEARCH)
        yield
    finally:
        _set(library, header, data, before)


def _set(library: ctypes.CDLL, header: _Header, data: ctypes.Array[_Data], effective: int) -> None:
    data[0].effective = effective
    if library.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")
