"""What becomes of memory that tensors on the CPU give back."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, from malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for later ones. Returns whether the C library took the setting.

    By default glibc hands every block of more than 32 MB back to the system, which clears it page by page when the next
    tensor asks for it: over a third of the time of a backbone on the CPU. Afterwards freed memory stays with the
    process, which is as large as it ever was until it ends, and torch asks for large pages (THP_MEM_ALLOC_ENABLE, left
    alone where the environment sets it). To be called before the first tensor; nothing changes where there is no glibc,
    nor for tensors on GPUs.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
