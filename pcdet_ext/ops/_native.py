"""The native libraries: found, loaded with ctypes, and called with pointers, sizes and a stream.

Environment: PCDET_EXT_NATIVE=0 leaves them aside, so that every op runs on its PyTorch reference.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

POINTER = ctypes.c_void_p
I32 = ctypes.c_int32
I64 = ctypes.c_int64
F32 = ctypes.c_float
F64 = ctypes.c_double


class NativeError(RuntimeError):
    """A native kernel reported a failure."""


def library_path(device_type: str) -> Path:
    """Where the library of "cpu" or "cuda" lies when it is built."""
    return Path(__file__).with_name(f"libpcdet_ext_{device_type}.so")


@cache
def library(device_type: str) -> ctypes.CDLL | None:
    """The native library for "cpu" or "cuda", or None (with one warning where that is a surprise)."""
    path = library_path(device_type)
    if os.environ.get("PCDET_EXT_NATIVE") == "0" or device_type not in ("cpu", "cuda"):
        return None
    if not path.exists():
        warnings.warn(
            f"pcdet_ext: {path.name} is not built, ops on {device_type} run on their slower PyTorch references",
            stacklevel=2,
        )
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"pcdet_ext: {path} cannot be loaded ({error}); PyTorch references are used", stacklevel=2)
        return None


@cache
def function(device_type: str, name: str, *argument_types: type) -> Callable[..., None] | None:
    """The kernel launcher `name`, raising NativeError when it returns non-zero; None without a native library.

    On "cuda" the caller appends the stream (`stream(tensor)`) as the last argument, and lists POINTER for it; the
    kernel is launched on the stream's device.
    """
    loaded = library(device_type)
    if loaded is None:
        return None
    raw = getattr(loaded, name)
    raw.argtypes = argument_types
    raw.restype = ctypes.c_int

    def call(*arguments: object) -> None:
        status = raw(*arguments)
        if status != 0:
            raise NativeError(f"{name}: {_describe(loaded, device_type, status)}")

    def call_on_device(*arguments: object) -> None:
        with torch.cuda.device(arguments[-1].device):
            call(*arguments)

    return call_on_device if device_type == "cuda" else call


def _describe(loaded: ctypes.CDLL, device_type: str, status: int) -> str:
    if device_type == "cuda" and status > 0:
        loaded.pcdet_cuda_error_string.restype = ctypes.c_char_p
        return f"CUDA error {status}: {loaded.pcdet_cuda_error_string(status).decode()}"
    return f"status {status}"


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's data, NULL for None."""
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError("native kernels take contiguous tensors")
    return tensor.data_ptr()


class Stream(int):
    """Address of a CUDA stream, and the device it belongs to, which need not be the current one."""

    device: torch.device


def stream(tensor: Tensor) -> Stream:
    """torch's current CUDA stream on the tensor's device."""
    address = Stream(torch.cuda.current_stream(tensor.device).cuda_stream)
    address.device = tensor.device
    return address


def threads() -> int:
    """How many threads a CPU kernel may use: what torch was told."""
    return torch.get_num_threads()
