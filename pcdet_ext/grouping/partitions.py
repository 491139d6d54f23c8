"""Partitions: where a sequence is cut. They turn an ordering into equal-size `Groups` or variable-length `Segments`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_ext.config import Registry
from pcdet_ext.grouping.orders import Order, Ordering
from pcdet_ext.structures import Groups, Segments, SparseVoxels

PARTITIONS = Registry("partition")


def equal_groups(ordering: Ordering, size: int, masked: bool = False) -> Groups:
    """Consecutive groups of `size` voxels, none across a frame's border.

    The free slots of a frame's last group hold the voxels one group earlier (FlatFormer section 3.2, LION section 3.2);
    in a frame of a single group its own voxels, repeated from the start. They take part like any other slot, unless
    `masked`: then `valid` is False there. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    counts = ordering.counts
    padded = (counts + size - 1) // size * size
    frame = torch.repeat_interleave(padded)
    slot = torch.arange(len(frame), device=frame.device) - _starts(padded)[frame]
    count = counts[frame]
    earlier = torch.where(count > size, slot - size, slot % count.clamp(min=1))
    place = torch.where(slot < count, slot, earlier) + _starts(counts)[frame]
    voxel_frame = torch.repeat_interleave(counts)
    place_slot = torch.arange(len(voxel_frame), device=frame.device) + (_starts(padded) - _starts(counts))[voxel_frame]
    return Groups(
        index=ordering.order[place].view(-1, size),
        inverse=place_slot[ordering.inverse],
        valid=(slot < count).view(-1, size) if masked else None,
    )


def octree_windows(ordering: Ordering, size: int, dilation: int = 1, straddle: bool = False) -> Groups:
    """Windows of `size` consecutive nodes of a z-ordered sequence, or of every `dilation`-th (OctFormer, section 3.2).

    Slots of different frames do not see each other: `owner` tells the frame of each slot, padding has the owner B.
    straddle: cut windows from the joined sequence of all frames, as published, so that a window may hold the end of one
    frame and the start of the next; by default every frame is padded to whole windows.
    Raises ValueError for a size or dilation below 1.
    """
    if size < 1 or dilation < 1:
        raise ValueError(f"size and dilation must be at least 1, got {size} and {dilation}")
    counts, block = ordering.counts, size * dilation
    pieces = counts.sum().view(1) if straddle else counts
    padded = (pieces + block - 1) // block * block
    piece = torch.repeat_interleave(padded)
    slot = torch.arange(len(piece), device=piece.device) - _starts(padded)[piece]
    valid = slot < pieces[piece]
    place = torch.where(valid, slot + _starts(pieces)[piece], 0)
    frames = torch.cat([torch.repeat_interleave(counts), counts.new_full((1,), len(counts))])
    owner = frames[torch.where(valid, place, len(frames) - 1)]

    def windows(x: Tensor) -> Tensor:
        return x.view(-1, size, dilation).transpose(1, 2).reshape(-1, size)

    order = ordering.order if len(ordering.order) else ordering.order.new_zeros(1)
    flat = windows(torch.where(valid, place, -1)).reshape(-1)
    place_slot = torch.empty_like(ordering.order)
    place_slot[flat[flat >= 0]] = torch.nonzero(flat >= 0).squeeze(1)
    return Groups(windows(order[place]), place_slot[ordering.inverse], windows(valid), windows(owner))


def window_index(
    coords: Tensor, grid: tuple[int, int, int], window: tuple[int, int, int], shift: tuple[int, int, int]
) -> Tensor:
    """Number int64 [N] of each voxel's window, ascending by its (frame, x, y, z); sizes in cells, (Z, Y, X)."""
    count = [math.ceil(g / w) + 1 for g, w in zip(grid, window, strict=True)]
    z, y, x = ((coords[:, i + 1].long() + shift[i]) // window[i] for i in range(3))
    return ((coords[:, 0].long() * count[2] + x) * count[1] + y) * count[0] + z


def window_segments(index: Tensor) -> Segments:
    """Voxels gathered by window number int64 [N] (windows ascending, voxels inside in their order)."""
    order = torch.argsort(index, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = torch.unique_consecutive(index[order], return_counts=True)[1]
    return Segments(order, inverse, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _starts(counts: Tensor) -> Tensor:
    """Exclusive running sum: where each frame begins."""
    return counts.cumsum(0) - counts


class Partition(ABC):
    """What partitions share: called on voxels and an order, the result is cached on the voxels."""

    def __call__(self, voxels: SparseVoxels, order: Order) -> Groups:
        """The groups of these voxels along this order."""
        return voxels.plan((self, order), lambda v: self.cut(order(v)))

    @abstractmethod
    def cut(self, ordering: Ordering) -> Groups:
        """Cut one sequence."""


@PARTITIONS.register
@dataclass(frozen=True)
class EqualGroups(Partition):
    """See `equal_groups`."""

    size: int
    masked: bool = False

    def cut(self, ordering: Ordering) -> Groups:
        """See `equal_groups`."""
        return equal_groups(ordering, self.size, self.masked)


@PARTITIONS.register
@dataclass(frozen=True)
class OctreeWindows(Partition):
    """See `octree_windows`."""

    size: int
    dilation: int = 1
    straddle: bool = False

    def cut(self, ordering: Ordering) -> Groups:
        """See `octree_windows`."""
        return octree_windows(ordering, self.size, self.dilation, self.straddle)
