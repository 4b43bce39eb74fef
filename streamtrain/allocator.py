"""What the C library's allocator keeps of freed memory, held to little, for a process whose memory is bounded.

glibc raises the size from which memory is asked of the system as such pieces are freed, up to 32 MiB, and keeps twice
that at the end of its heap. Large tensors that come and go with every step then share a heap with small ones that stay,
and the heap grows by what lies between them. With fixed limits large tensors are given back at once; huge pages make
up for most of what asking for them anew costs.

Sources: mallopt(3), malloc_trim(3), and torch's ``c10/core/impl/alloc_cpu.cpp``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 4 << 20
_KEPT_BYTES: Final = 8 << 20
_HUGE_PAGES: Final = "THP_MEM_ALLOC_ENABLE"


def keep_little() -> bool:
    """Set this process's allocator so; return whether it could be, which is on Linux with glibc.

    Call it before torch makes its first tensor, which is when torch looks whether to ask for huge pages.

    Examples
    --------
    >>> keep_little() or sys.platform != "linux"
    True
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    # Torch has no other switch for it.
    os.environ.setdefault(_HUGE_PAGES, "1")
    large = library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    return bool(large and library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def give_back() -> bool:
    """Give the system what was freed and is still held, here and in every thread; return whether that could be asked.

    Without it, what the process holds at the beginning of a piece of work tells of the pieces before.

    Examples
    --------
    >>> give_back() or sys.platform != "linux"
    True
    """
    gc.collect()
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return False
    library.malloc_trim(0)
    return True
