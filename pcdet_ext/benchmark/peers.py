"""Other libraries to measure against, where they are installed; none is required."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Peers = dict[str, Callable[[], Any]]


def optional(module: str) -> Any:
    """The module, or None where it is not installed or does not load with this PyTorch."""
    return _load(module)[0]


@lru_cache
def _load(module: str) -> tuple[Any, str]:
    """The module, or None and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own names, from libraries of other versions of it
            return import_module(module), ""
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return None, str(error)


def ocnn_module(module: str) -> Any:
    """A module of ocnn by its name below "ocnn", or None."""
    return _load_ocnn(module)[0]


def ocnn_missing(module: str) -> dict[str, str]:
    """Why the module is None, by the name of the peer; nothing where it is not."""
    found, reason = _load_ocnn(module)
    return {"ocnn": reason} if found is None else {}


def _load_ocnn(module: str) -> tuple[Any, str]:
    """A module of ocnn, or None and the reason.

    ocnn imports torchvision for an image encoder among its models, and fails where that is missing or does not load.
    Its octrees do without; so where torchvision does not load, an empty module takes its place during the import.
    """
    if optional("torchvision.models") is not None:
        return _load(f"ocnn.{module}")
    with _empty_torchvision():
        return _load(f"ocnn.{module}")


@contextmanager
def _empty_torchvision() -> Iterator[None]:
    """Modules "torchvision" and "torchvision.models" with nothing but the names that ocnn imports from them."""
    names = ("torchvision", "torchvision.models")
    models = ModuleType(names[1])
    models.resnet18 = None  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(zip(names, (ModuleType(names[0]), models), strict=True))
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def torch_scatter_reduce(values: Tensor, index: Tensor, num_segments: int, kind: str) -> Peers:
    """torch-scatter's reduction of rows, where it is installed.

    Args:
        values: [P, C].
        index: int64 [P], the segment of each row.
        num_segments: how many segments there are.
        kind: "sum", "mean", "max" or "min".
    """
    library = optional("torch_scatter")
    if library is None:
        return {}
    return {"torch-scatter": lambda: library.scatter(values, index, 0, dim_size=num_segments, reduce=kind)}


def torch_scatter_softmax() -> dict[str, Callable[..., Tensor]]:
    """torch-scatter's softmax inside segments (values, index, number of segments)."""
    library = optional("torch_scatter")
    if library is None:
        return {}

    def softmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
        return library.scatter_softmax(values, index, 0, num_segments)

    return {"torch-scatter": softmax}


def ocnn_encode(coords: Tensor) -> Peers:
    """ocnn's z-order keys."""
    library = ocnn_module("octree.shuffled_key")
    if library is None:
        return {}

    def encode() -> Tensor:
        batch, z, y, x = coords.long().unbind(1)
        return library.xyz2key(x, y, z, batch)

    return {"ocnn": encode}


def ocnn_decode(keys: Tensor, depth: int) -> Peers:
    """ocnn's coordinates of z-order keys, (batch, z, y, x)."""
    library = ocnn_module("octree.shuffled_key")
    if library is None:
        return {}
    return {"ocnn": lambda: torch.stack(library.key2xyz(keys, depth)[::-1], 1).int()}


def mamba_scan() -> Callable[..., Tensor] | None:
    """mamba-ssm's selective scan, which takes what ours takes; on CUDA only."""
    library = optional("mamba_ssm.ops.selective_scan_interface")
    return None if library is None else library.selective_scan_fn


def mamba_conv() -> Callable[..., Tensor] | None:
    """The causal convolution that belongs to mamba-ssm (x, weight, bias, activation); on CUDA only."""
    library = optional("causal_conv1d")
    if library is None:
        return None
    return lambda x, weight, bias, activation: library.causal_conv1d_fn(x, weight, bias, activation=activation)


def fla_wkv() -> Callable[..., Tensor] | None:
    """flash-linear-attention's RWKV-6 (r, k, v, w, u), whose decay is the log of ours; on CUDA only."""
    library = optional("fla.ops.rwkv6")
    return None if library is None else lambda r, k, v, w, u: library.chunk_rwkv6(r, k, v, -w.exp(), u, scale=1.0)[0]


def fla_retention() -> Callable[..., Tensor] | None:
    """flash-linear-attention's retention (q, k, v), with its own decay 1 - 2^(-5 - head); on CUDA only."""
    library = optional("fla.ops.retention")
    return None if library is None else lambda q, k, v, _decay: library.chunk_retention(q, k, v, scale=1.0)[0]
