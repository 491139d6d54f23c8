"""What code written for older versions of torch and NumPy, and for a GPU, needs to run on those of today.

Each function does one thing, only where it is needed, and says so in a line.
"""

from __future__ import annotations

import multiprocessing
import os
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pcdet_ext.interop.checkpoints import HARMLESS
from pcdet_ext.plugins.imports import after_import, is_installed, stand_in, tell

ALIASES = {"int": int, "float": float, "bool": bool, "object": object}  # of Python's types, which NumPy 1.24 dropped
TENSORS = ("FloatTensor", "DoubleTensor", "HalfTensor", "IntTensor", "LongTensor", "BoolTensor", "ByteTensor")


def restore_numpy_aliases() -> None:
    """`np.int`, `np.float` and the like, where NumPy has nothing of that name (NumPy 2 has a `np.bool` of its own)."""
    missing = [name for name in ALIASES if name not in np.__dict__]
    for name in missing:
        setattr(np, name, ALIASES[name])
    if missing:
        tell(f"NumPy {np.__version__} lacks {', '.join(f'np.{name}' for name in missing)}: set to Python's types")


def without_cuda() -> None:
    """Where there is no GPU: `.cuda()` leaves tensors and modules where they are, `torch.cuda.*Tensor` are on the CPU.

    What asks for a GPU by other means still fails.
    """
    if torch.cuda.is_available():
        return
    torch.Tensor.cuda = _stay  # type: ignore[method-assign]
    nn.Module.cuda = _stay  # type: ignore[method-assign]
    for name in TENSORS:
        setattr(torch.cuda, name, getattr(torch, name))
    sparse_convolutions_without_cuda()
    tell("there is no GPU: .cuda() does nothing, torch.cuda.FloatTensor and the like are tensors of the CPU")


def sparse_convolutions_without_cuda() -> None:
    """Where there is no GPU, let spconv use its native algorithm, the one that its CPU kernels have."""
    if not torch.cuda.is_available():
        after_import("spconv.core", _without_implicit_gemm)
        after_import("spconv.pytorch.conv", _plain_sparse_convolutions)
        after_import("spconv.pytorch.pool", _plain_sparse_convolutions)


def _stay(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _plain_sparse_convolutions(module: ModuleType) -> None:
    """spconv built with CUDA picks algorithms that need a GPU, unless it takes itself for a build without."""
    if not module.__dict__["CPU_ONLY_BUILD"]:
        module.__dict__["CPU_ONLY_BUILD"] = True
        tell(f"there is no GPU: {module.__name__} uses its native algorithm")


def _without_implicit_gemm(module: ModuleType) -> None:
    """Empty the list of the kernels that only a GPU runs: `spconv.algo` describes each of the hundreds at import.

    That takes ten seconds or more of the start of each process.
    """
    if module.__dict__.get("ALL_IMPGEMM_PARAMS"):
        module.__dict__["ALL_IMPGEMM_PARAMS"] = []
        tell("there is no GPU: spconv leaves out its implicit matrix products, which only a GPU computes")


def distributed_without_cuda() -> None:
    """Where processes that torchrun started train together without a GPU: gloo connects them, and all is on the CPU.

    `torch.cuda.device_count` is then 1, as such code shares its processes out among the devices, and what is said of
    devices to `DistributedDataParallel` is left out.
    """
    if torch.cuda.is_available() or not are_distributed():
        return
    torch.cuda.device_count = lambda: 1
    nn.parallel.DistributedDataParallel = _OnCPU  # type: ignore[assignment, misc]
    tell("there is no GPU: processes are connected by gloo, and DistributedDataParallel trains on the CPU")


def are_distributed() -> bool:
    """Whether torchrun (or what sets the same variables) started this process."""
    return dist.is_available() and "RANK" in os.environ and "WORLD_SIZE" in os.environ


class _OnCPU(nn.parallel.DistributedDataParallel):
    """DistributedDataParallel for a module on the CPU, whatever is said of devices."""

    def __init__(self, module: nn.Module, device_ids: Any = None, output_device: Any = None, **options: Any) -> None:
        del device_ids, output_device
        super().__init__(module, **options)


def forked_workers() -> None:
    """Let further processes begin as copies of this one, which have what was done here; spawned ones would not."""
    if are_distributed() and multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("fork")
        tell("workers of data loaders are forked, so that they have pcdet_ext's operations")


def allow_numpy_numbers_in_checkpoints() -> None:
    """Let `torch.load` read NumPy's numbers, which training logs in checkpoints hold; they cannot run code."""
    torch.serialization.add_safe_globals(HARMLESS)
    tell("torch.load reads NumPy's numbers in checkpoints, besides tensors and plain values")


def stand_in_for_missing(packages: dict[str, str]) -> None:
    """Let packages that are not installed be imported; what is used of them raises ImportError with the advice.

    packages: what to do about it, by package.
    """
    missing = [name for name in packages if not is_installed(name)]
    for name in missing:
        stand_in(name, packages[name])
    if missing:
        tell(f"not installed, and needed only where they are used: {', '.join(missing)}")
