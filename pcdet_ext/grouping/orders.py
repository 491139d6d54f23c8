"""Orders: which voxel comes when. An order turns the voxels of a batch into one sequence, frame after frame.

Orders are small immutable objects, buildable from a configuration, and called on `SparseVoxels`; what they give is
cached there, so blocks of one stage that use an equal order share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    order: int64 [N], voxel at each place; inverse: int64 [N], place of each voxel; counts: int64 [B], voxels per frame;
    sizes: the same as numbers, where they are known.
    """

    order: Tensor
    inverse: Tensor
    counts: Tensor
    sizes: tuple[int, ...] | None = None


def ordering_of_keys(keys: Tensor, batch_index: Tensor, batch_size: int) -> Ordering:
    """Sort voxels by their keys; voxels with equal keys keep their order.

    Args:
        keys: int64 [N], those of a later frame being larger.
        batch_index: int64 [N], the frame of each voxel.
        batch_size: number of frames.
    """
    return Ordering(*_sorted(keys), torch.bincount(batch_index, minlength=batch_size))


def _sorted(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of keys int64 [N] in their order, and the place of each."""
    order = torch.argsort(keys, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return order, inverse


def _frame_counts(voxels: SparseVoxels) -> tuple[Tensor, tuple[int, ...] | None]:
    """Voxels of each frame int64 [B], on CUDA as numbers too: all orderings of these voxels share one wait for them."""
    counts = torch.bincount(voxels.coords[:, 0], minlength=voxels.batch_size)
    return counts, tuple(counts.tolist()) if voxels.coords.is_cuda else None


class Order(ABC):
    """What orders share: `keys` says how, calling sorts and caches."""

    @abstractmethod
    def keys(self, voxels: SparseVoxels) -> Tensor:
        """Keys int64 [N] whose ascending order is the sequence."""

    def pieces(self, voxels: SparseVoxels) -> Tensor:
        """Number int64 [N] of the piece that each voxel is in: a window, a bucket, or by default its frame.

        A piece is a run of the sequence, which partitions that follow the order's own borders do not join with others.
        """
        return voxels.coords[:, 0].long()

    def __call__(self, voxels: SparseVoxels) -> Ordering:
        """The sequence of these voxels; cached on them."""
        return voxels.plan(self, self._make)

    def _make(self, voxels: SparseVoxels) -> Ordering:
        return Ordering(*_sorted(self.keys(voxels)), *voxels.plan("frame_counts", _frame_counts))


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


@ORDERS.register
@dataclass(frozen=True)
class Window(Order):
    """Window by window; inside a window voxels keep the order in which they are given.

    Args:
        window: sizes (Z, Y, X) in cells; None along an axis: the whole grid.
        shift: cells (Z, Y, X) that are added to the coordinates first.

    Raises:
        ValueError: for sizes that are not positive, and for negative shifts or one along an axis without windows.
    """

    window: tuple[int | None, int | None, int | None]
    shift: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))  # configurations bring lists, plans are keyed by value
        object.__setattr__(self, "shift", tuple(self.shift))
        check_window(self.window, self.shift)

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """Numbers of the windows."""
        return self.pieces(voxels)

    def pieces(self, voxels: SparseVoxels) -> Tensor:
        """Number of each voxel's window, see `window_index`; cached on the voxels."""
        return voxels.plan(
            ("window_index", self.window, self.shift),
            lambda v: window_index(v.coords, v.grid, self.size(v.grid), self.shift),
        )

    def place(self, voxels: SparseVoxels) -> Tensor:
        """Place of each voxel in its window, int32 [N, 3] as (z, y, x); cached on the voxels."""
        return voxels.plan(("place_in_window", self.window, self.shift), self._place)

    def _place(self, voxels: SparseVoxels) -> Tensor:
        size, shift = (torch.tensor(n, device=voxels.coords.device) for n in (self.size(voxels.grid), self.shift))
        return ((voxels.coords[:, 1:] + shift) % size).int()

    def size(self, grid: Sequence[int]) -> tuple[int, int, int]:
        """Cells (Z, Y, X) of a window on a grid."""
        z, y, x = (cells if size is None else size for size, cells in zip(self.window, grid, strict=True))
        return z, y, x


def check_window(window: Sequence[int | None], shift: Sequence[int] = (0, 0, 0)) -> None:
    """Raises ValueError for what is no window (Z, Y, X) and shift in cells, see `Window`."""
    if len(window) != 3 or any(size is not None and size < 1 for size in window):
        raise ValueError(f"window must be three sizes (Z, Y, X) in cells, positive or None, got {list(window)}")
    if len(shift) != 3 or min(shift) < 0:
        raise ValueError(f"shift must be three numbers (Z, Y, X) of cells from 0 on, got {list(shift)}")
    if any(size is None and cells for size, cells in zip(window, shift, strict=True)):
        raise ValueError(f"shift must be 0 where the window is None, got {list(shift)} and {list(window)}")


def window_index(
    coords: Tensor, grid: Sequence[int], window: tuple[int, int, int], shift: tuple[int, int, int]
) -> Tensor:
    """Number the window of each voxel, ascending by the window's frame, x, y and z.

    Args:
        coords: integer [N, 4] (batch, z, y, x).
        grid: cells along z, y and x.
        window: cells of a window along z, y and x.
        shift: cells by which the windows are moved back along z, y and x.

    Returns:
        int64 [N].
    """
    count = [max(-(-g // w) + 1, -(-(g + s) // w)) for g, w, s in zip(grid, window, shift, strict=True)]
    z, y, x = ((coords[:, i + 1].long() + shift[i]) // window[i] for i in range(3))
    return ((coords[:, 0].long() * count[2] + x) * count[1] + y) * count[0] + z


@dataclass(frozen=True)
class _LinesOfWindows(Window):
    path: Literal["rows", "snake"] = "rows"

    def _keys(self, voxels: SparseVoxels, order: str) -> Tensor:
        options = {"window": self.size(voxels.grid), "shift": self.shift, "path": self.path}
        return serialize(voxels.coords, voxels.grid, order, **options)


@ORDERS.register
@dataclass(frozen=True)
class WindowX(_LinesOfWindows):
    """Window by window as `Window`, lines along x; see `serialize` for "rows" and "snake" paths."""

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return self._keys(voxels, "window_x")


@ORDERS.register
@dataclass(frozen=True)
class WindowY(_LinesOfWindows):
    """Window by window as `Window`, lines along y; see `serialize` for "rows" and "snake" paths."""

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        return self._keys(voxels, "window_y")


@ORDERS.register
@dataclass(frozen=True)
class LSH(Order):
    """Locality-sensitive hashing: bucket by bucket of random projections (Datar et al., SCG 2004).

    Inside a bucket voxels keep their order.

    Args:
        projections: directions that a key is made of.
        width: cells that a bucket is wide along each of them.
        seed: of the directions.
        border_shift: share of the width by which all borders are moved.
    """

    projections: int = 3
    width: float = 8.0
    seed: int = 0
    border_shift: float = 0.0

    def keys(self, voxels: SparseVoxels) -> Tensor:
        """See `pcdet_ext.ops.serialize`."""
        options = {
            "projections": self.projections,
            "width": self.width,
            "seed": self.seed,
            "border_shift": self.border_shift,
        }
        return serialize(voxels.coords, voxels.grid, "lsh", **options)

    def pieces(self, voxels: SparseVoxels) -> Tensor:
        """The buckets."""
        return self.keys(voxels)
