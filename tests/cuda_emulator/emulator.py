"""The CUDA kernels compiled by a C++ compiler, and operations that run on them; see README.md in this folder."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from pcdet_ext.ops import _native

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "ops"
BUILD = ROOT / "build" / "emulated"
# The macros of nvcc: the headers show the kernels what they show on a device.
FLAGS = ["-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
FLAGS += ["-D__CUDACC__", "-D__CUDA_ARCH__=800", "-Wno-unknown-pragmas", "-Wno-sign-compare"]
FLAGS += ["-include", str(HERE / "cuda_runtime.h"), f"-I{HERE}", f"-I{SOURCES}"]
ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def kernels() -> list[Path]:
    """Every source that nvcc compiles."""
    return sorted(SOURCES.rglob("*_cuda.cu"))


def build(sources: Sequence[Path], name: str, flags: Sequence[str] = ()) -> Path:
    """Compile CUDA sources into a library for the CPU, or take the one that an earlier call has made of them."""
    command = [str(compiler()), *FLAGS, *flags]
    common = hashlib.sha256(" ".join(command).encode())
    for header in sorted([*SOURCES.rglob("*.h"), *HERE.glob("*.h")]):
        common.update(header.read_bytes())
    BUILD.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        digest = common.copy()
        digest.update(source.read_bytes())
        target = BUILD / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            _make([*command, "-x", "c++", "-c", str(source)], target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sources, HERE / "control.cu"]))
    linked = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    library = BUILD / f"lib{name}-{linked}.so"
    if not library.exists():
        own = ["-fno-sanitize=thread"] if "-fsanitize=thread" in flags else []  # the library is not linked
        _make([*command, "-shared", *own, *map(str, objects)], library)
    return library


def _make(command: list[str], target: Path) -> None:
    partial = target.with_suffix(f".{os.getpid()}.part{target.suffix}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    partial.replace(target)


@cache
def load(sources: tuple[Path, ...] = (), name: str = "pcdet_emulated", flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library of these sources, by default of all kernels."""
    return ctypes.CDLL(str(build(sources or kernels(), name, flags)))


@contextlib.contextmanager
def emulated(order: str = "forward", seed: int = 0, library: Any = None) -> Iterator[None]:
    """Within it, operations take tensors of the CPU as if they were on CUDA, and the emulator runs the kernels.

    New tensors are filled with NaN or the largest number, so that what a kernel should have written is seen.

    Args:
        order: in which the threads of a block, and the blocks, run between barriers: "forward", "reversed", or
            "shuffled" by the seed.
        seed: of "shuffled".
        library: another one than that of `load()`.
    """
    native, emulator = _native.library, library or load()
    emulator.cuda_emulator_set_order(ORDERS[order], ctypes.c_uint64(seed))
    stream = SimpleNamespace(cuda_stream=None)
    before = torch.are_deterministic_algorithms_enabled()
    with (
        mock.patch.object(_native, "library", lambda kind: emulator if kind == "cuda" else native(kind)),
        mock.patch.dict(_native.KERNELS_OF, cpu="cuda"),
        mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "current_stream", return_value=stream),
    ):
        _native._function.cache_clear()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            _native._function.cache_clear()
    left = emulator.cuda_emulator_allocations
    left.restype = ctypes.c_int64
    assert left() == 0, "a kernel has not freed its memory"


class Accelerator:
    """Where a test runs the CUDA kernels: on a device, or in the emulator. Operations within `with` run there."""

    def __init__(self, order: str | None) -> None:
        """Args:
        order: of the emulator's threads, see `emulated`; None: a CUDA device.
        """
        self.order = order
        self.device = "cuda" if order is None else "cpu"
        self._contexts = contextlib.ExitStack()

    @property
    def is_emulated(self) -> bool:
        """Whether the kernels run on the CPU, which takes long for large inputs."""
        return self.order is not None

    def __enter__(self) -> None:
        if self.order is not None:
            self._contexts.enter_context(emulated(self.order))

    def __exit__(self, *error: object) -> None:
        self._contexts.__exit__(*error)
