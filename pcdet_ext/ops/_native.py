"""The native libraries: found, loaded with ctypes, and called through one launcher that checks what it hands over.

A kernel is a C function that knows pointers, sizes and numbers. `launch` calls it: buffers are checked for type,
device, layout and number of elements where their pointer is taken, sizes for being sizes, so that a mistake in Python
is an error in Python and not a read beyond the end of an array.

Environment: PCDET_EXT_NATIVE=0 leaves the libraries aside, so that every op runs on its PyTorch reference.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The numbers by which the CUDA kernels know the types.
TYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


# Where setup.py and the folder of the sources lie, unless the package is installed without them.
CHECKOUT = Path(__file__).resolve().parents[2]

# Whose kernels the tensors of a device take. The tests let those of the CPU take kernels for CUDA, in an emulator.
KERNELS_OF = {"cpu": "cpu", "cuda": "cuda"}


class NativeError(RuntimeError):
    """A native kernel reported a failure."""


class Int32(int):
    """A number that a kernel takes as a 32-bit integer; plain integers go as 64-bit ones."""


# An array for a kernel: a tensor, its type, and its number of elements, which lie side by side, or its shape, where the
# kernel takes the strides too. No tensor makes a null pointer. A tuple, since a class would double what a launch costs.
NativeArray = tuple[Tensor | None, torch.dtype, int | tuple[int, ...]]
Argument = NativeArray | Int32 | int | float | ctypes.Structure | ctypes.Array[Any] | ctypes.c_int64


def library_path(device_type: str) -> Path:
    """Where the library of "cpu" or "cuda" lies when it is built."""
    return Path(__file__).with_name(f"libpcdet_ext_{device_type}.so")


def how_to_build(device_type: str) -> str:
    """What builds a library where this package lies: in a checkout, or among the installed packages."""
    compiler = "nvcc (CUDA's compiler)" if device_type == "cuda" else "g++"
    if (CHECKOUT / "setup.py").is_file():
        return f"where {compiler} is found, this builds it: cd {CHECKOUT} && python setup.py build_ext --inplace"
    return (
        f"install the package again from its sources, where {compiler} is found: "
        "pip install --force-reinstall --no-deps PATH_OF_THE_SOURCES"
    )


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
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"pcdet_ext: {path} cannot be loaded ({error}); PyTorch references are used", stacklevel=2)
        return None
    if not _is_of_these_sources(loaded, device_type):
        warnings.warn(
            f"pcdet_ext: {path} was built from other sources than those beside it, and is left aside; ops on "
            f"{device_type} run on their slower PyTorch references; {how_to_build(device_type)}",
            stacklevel=2,
        )
        return None
    return loaded


def _is_of_these_sources(loaded: ctypes.CDLL, device_type: str) -> bool:
    """Whether a library fits the sources of a checkout, if there are any: other kernels may take other arguments."""
    if not (CHECKOUT / "setup.py").is_file() or not (CHECKOUT / "ops").is_dir():
        return True
    try:
        built_from = loaded.pcdet_sources
    except AttributeError:  # from before libraries said it
        return False
    built_from.restype = ctypes.c_char_p
    return bool(built_from().decode() == _sources_digest(CHECKOUT / "ops", device_type))


def _sources_digest(sources: Path, device_type: str) -> str:
    """The digest of the sources of a library; setup.py, which cannot import this package, has the same rule."""
    endings, digest = (".h", ".cpp" if device_type == "cpu" else ".cu"), hashlib.sha256()
    for path in sorted(p for p in sources.rglob("*") if p.suffix in endings):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def kernel_kind(device: torch.device) -> str:
    """Which kernels a device takes: "cpu", "cuda", or the name of a device for which there are none."""
    return KERNELS_OF.get(device.type, device.type)


def on_cuda(tensor: Tensor) -> bool:
    """Whether the kernels for CUDA take a tensor."""
    return kernel_kind(tensor.device) == "cuda"


def has_kernels(tensor: Tensor) -> bool:
    """Whether there is a native library for the device of a tensor."""
    return library(kernel_kind(tensor.device)) is not None


def launch(name: str, device: torch.device, *arguments: Argument, dtype: torch.dtype | None = None) -> None:
    """Call the kernel `pcdet_<name>[_<dtype>]_<device type>` with checked arguments.

    The number of threads that torch may use (on the CPU), or torch's current stream on the device (on CUDA), is
    appended as the last argument.

    Args:
        name: the kernel, without prefix and endings.
        device: where all buffers must be, "cpu" or "cuda"; `library` must have a library for it.
        arguments: in the order of the C function. Tuples are arrays, see `NativeArray`. Integers are sizes: 64 bits,
            not negative; `Int32` are numbers of 32 bits; floats are passed in 64 bits, objects of ctypes by address.
        dtype: the floating type, where there is one kernel for each.

    Raises:
        ValueError: a buffer is not what it is said to be, or a number does not fit.
        NativeError: the kernel reported a failure, or there is no library.
    """
    kind = kernel_kind(device)
    full_name, kernel = _function(name, kind, dtype, tuple(map(type, arguments)))
    passed: list[object] = []
    argument: Any  # its exact type decides how it is passed
    for argument in arguments:
        given = type(argument)
        if given is tuple:
            tensor, wanted, size = argument
            if tensor is None:
                passed.append(None)
                continue
            fits = tensor.numel() == size and tensor.is_contiguous() if type(size) is int else tensor.shape == size
            if not fits or tensor.dtype != wanted or tensor.device != device:
                raise ValueError(f"argument {len(passed) + 1} of {full_name} {_difference(argument, device)}")
            passed.append(tensor.data_ptr())
        elif given is int or given is Int32:
            low, end = (0, 1 << 63) if given is int else (-(1 << 31), 1 << 31)
            if not low <= argument < end:
                place = len(passed) + 1
                raise ValueError(f"argument {place} of {full_name} must be from {low} to {end - 1}, got {argument}")
            passed.append(argument)
        else:
            passed.append(argument if given is float else ctypes.byref(argument))
    if kind == "cpu":
        status = kernel(*passed, torch.get_num_threads())
    else:
        with torch.cuda.device(device):
            status = kernel(*passed, torch.cuda.current_stream(device).cuda_stream)
    if status != 0:
        raise NativeError(f"{full_name}: {_describe(kind, status)}")


def int32_array(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """Whole numbers as a C array; raises ValueError where one does not fit."""
    if min(values) < -(1 << 31) or max(values) >= 1 << 31:
        raise ValueError(f"values must fit into 32 bits, got {list(values)}")
    return (ctypes.c_int32 * len(values))(*values)


def int64_array(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Whole numbers as a C array; raises ValueError where one does not fit."""
    if min(values) < -(1 << 63) or max(values) >= 1 << 63:
        raise ValueError(f"values must fit into 64 bits, got {list(values)}")
    return (ctypes.c_int64 * len(values))(*values)


@cache
def _function(
    name: str, device_type: str, dtype: torch.dtype | None, arguments: tuple[type, ...]
) -> tuple[str, Callable[..., int]]:
    """The full name of a kernel, and the kernel for arguments of these types, the last one left out."""
    full_name = "_".join(["pcdet", name, *([] if dtype is None else [str(dtype)[6:]]), device_type])
    loaded = library(device_type)
    if loaded is None:
        raise NativeError(f"{full_name}: there is no native library for {device_type!r}")
    try:
        function = loaded[full_name]  # unlike an attribute a new object, which may have types of its own
    except AttributeError as error:
        raise NativeError(
            f"{full_name} is not in {library_path(device_type)}, which was built from other sources than these; "
            f"{how_to_build(device_type)}"
        ) from error
    numbers: dict[type, Any] = {int: ctypes.c_int64, Int32: ctypes.c_int32, float: ctypes.c_double}
    last = ctypes.c_int32 if device_type == "cpu" else ctypes.c_void_p
    function.argtypes = [*(numbers.get(t, ctypes.c_void_p) for t in arguments), last]
    function.restype = ctypes.c_int
    return full_name, function


def _difference(argument: NativeArray, device: torch.device) -> str:
    """What an array must be and what it is."""
    tensor, dtype, size = argument
    assert tensor is not None
    wanted = f"{size} contiguous" if isinstance(size, int) else list(size)
    found = f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device}"
    return f"must be {dtype} {wanted} on {device}, got {found}"


def _describe(device_type: str, status: int) -> str:
    loaded = library(device_type)
    if loaded is not None and device_type == "cuda" and status > 0:
        describe = loaded.pcdet_cuda_error_string
        describe.restype = ctypes.c_char_p
        return f"CUDA error {status}: {describe(status).decode()}"
    return f"status {status}"
