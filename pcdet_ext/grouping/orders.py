"""Orders: which voxel comes when. An order turns the voxels of a batch into one sequence, frame after frame.

Orders are small immutable objects, buildable from a configuration, and called on `SparseVoxels`; what they give is
cached there, so blocks of one stage that use an equal order share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.config import Registry
from pcdet_ext.ops.serialize import serialize
from pcdet_ext.structures import SparseVoxels

ORDERS = Registry("order")


@dataclass(frozen=True)
class Ordering:
    """The voxels of a batch as one sequence, frame after frame.

    order: int64 [N], voxel at each place; inverse: int64 [N], place of each voxel; counts: int64 [B], voxels a frame.
    """

    order: Tensor
    inverse: Tensor
    counts: Tensor


def ordering_of_keys(keys: Tensor, batch_index: Tensor, batch_size: int) -> Ordering:
    """Sort by keys int64 [N] that ascend with the frame; equal keys keep the order of the voxels."""
    order = torch.argsort(keys, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return Ordering(order, inverse, torch.bincount(batch_index, minlength=batch_size))


class Order(ABC):
    """What orders share: `keys` says how, calling sorts and caches."""

    @abstractmethod
    def keys(self, voxels: SparseVoxels) -> Tensor:
        """Keys int64 [N] whose ascending order is the sequence."""

    def __call__(self, voxels: SparseVoxels) -> Ordering:
        """The sequence of these voxels; cached on them."""
        return voxels.plan(self, self._make)

    def _make(self, voxels: SparseVoxels) -> Ordering:
        return ordering_of_keys(self.keys(voxels), voxels.coords[:, 0], voxels.batch_size)


@ORDERS.register
@dataclass(frozen=True)
class ZOrder(Order):
    """Morton order (Morton 1966). lowest: the axis of the lowest bit, "z" as in octrees, or "x"."""

    lowest: Literal["z", "x"] = "z"

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return serialize(voxels.coords, voxels.grid, "zorder", lowest=self.lowest)


@ORDERS.register
@dataclass(frozen=True)
class Hilbert(Order):
    """Hilbert curve over the whole grid: neighbours in the sequence are neighbours in space."""

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return serialize(voxels.coords, voxels.grid, "hilbert")


@dataclass(frozen=True)
class _WindowOrder(Order):
    window: tuple[int, int, int]
    shift: tuple[int, int, int] = (0, 0, 0)
    path: Literal["rows", "snake"] = "rows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))  # configurations bring lists, plans are keyed by value
        object.__setattr__(self, "shift", tuple(self.shift))

    def _keys(self, voxels: SparseVoxels, order: str) -> Tensor:
        options = {"window": self.window, "shift": self.shift, "path": self.path}
        return serialize(voxels.coords, voxels.grid, order, **options)


@ORDERS.register
@dataclass(frozen=True)
class WindowX(_WindowOrder):
    """Window by window (sizes (Z, Y, X) in cells), lines along x; see `serialize` for "rows" and "snake" paths."""

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return self._keys(voxels, "window_x")


@ORDERS.register
@dataclass(frozen=True)
class WindowY(_WindowOrder):
    """Window by window (sizes (Z, Y, X) in cells), lines along y; see `serialize` for "rows" and "snake" paths."""

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return self._keys(voxels, "window_y")


@ORDERS.register
@dataclass(frozen=True)
class LSH(Order):
    """Locality-sensitive hashing: bucket by bucket of random projections (Datar et al., SCG 2004).

    projections: directions a key is made of; width: cells a bucket is wide; seed: of the directions. Inside a bucket
    voxels keep their order.
    """

    projections: int = 3
    width: float = 8.0
    seed: int = 0

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        options = {"projections": self.projections, "width": self.width, "seed": self.seed}
        return serialize(voxels.coords, voxels.grid, "lsh", **options)
