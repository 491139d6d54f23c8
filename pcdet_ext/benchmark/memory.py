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
    return _peak_on_cuda(call, device) if device.type == "cuda" else _peak_of_process(call)


def _peak_on_cuda(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_process(call: Callable[[], Any]) -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # proc(5): sets the peak to the present size
        before = _resident("VmRSS")
    except (AttributeError, OSError, TypeError):  # no glibc, no /proc or not writable, no C library by that way
        return None
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
