"""How much memory a call takes at its highest."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call adds at its highest, its result included; None where that cannot be had.

    On CUDA of torch's allocator, which our kernels take their memory from. On the CPU, under Linux with glibc, the
    growth of the resident memory: what the C library kept is handed back first, then the kernel's high-water mark is
    set back.
    """
    before = start_peak(device)
    call()
    return peak_since(before, device)


def start_peak(device: torch.device) -> int | None:
    """Set the high-water mark back; the bytes in use, or None where that cannot be had. See `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # proc(5): sets the peak to the present size
        return _resident("VmRSS")
    except (AttributeError, OSError, TypeError):  # no glibc, no /proc or not writable, no C library by that way
        return None


def peak_since(before: int | None, device: torch.device) -> int | None:
    """Bytes at the highest since `start_peak` gave `before`, beyond what was in use then."""
    if before is None:
        return None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
