"""Partitions: where a sequence is cut. They turn an ordering into equal-size `Groups` or variable-length `Segments`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_ext.config import Registry
from pcdet_ext.grouping.orders import LSH, Order, Ordering, WindowX, WindowY
from pcdet_ext.ops.rotated_sets import rotated_sets
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


def even_sets(order: Tensor, counts: Tensor, size: int) -> Groups:
    """Each piece of a sequence shared out evenly among ⌈n / size⌉ sets (DSVT section 3.2).

    order: int64 [N], voxel at each place; counts: int64 [P], length of each piece, at least 1. Slot k of set j of a
    piece of n voxels in S sets holds the voxel at place ⌊(j · size + k) · n / (S · size)⌋; `valid` is False where a
    slot repeats the one to its left. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    sets = (counts + size - 1) // size
    owner = torch.repeat_interleave(sets)
    local = torch.arange(len(owner), device=owner.device) - _starts(sets)[owner]
    slot = local[:, None] * size + torch.arange(size, device=owner.device)
    place = slot * counts[owner, None] // (sets[owner, None] * size)
    index = order[_starts(counts)[owner, None] + place]
    repeats = torch.zeros_like(index, dtype=torch.bool)
    repeats[:, 1:] = index[:, 1:] == index[:, :-1]
    slots = torch.arange(index.numel(), device=index.device)
    inverse = slots.new_empty(len(order) + 1)  # one more takes the repeats, so that no two write to the same place
    inverse[torch.where(repeats, len(order), index).flatten()] = slots
    return Groups(index, inverse[:-1], ~repeats)


@dataclass(frozen=True)
class SetPlan:
    """Rotated sets of a batch of voxels.

    y_major, x_major: sets of each window's voxels sorted by (y, x, z) and by (x, y, z), `valid` being False in slots
    that repeat the one to their left; window: int64 [N], number of each voxel's window, ascending by (frame, x, y, z);
    inside: int32 [N, 3], place in the window as (z, y, x).
    """

    y_major: Groups
    x_major: Groups
    window: Tensor
    inside: Tensor


def rotated_set_plan(
    voxels: SparseVoxels, window: tuple[int, int, int], shift: tuple[int, int, int], size: int
) -> SetPlan:
    """Windows cut into sets of `size` slots, in both directions (DSVT section 3.2); cached on the voxels.

    window, shift: cells, (Z, Y, X), the shift is added to the coordinates. Raises ValueError for a size or window below
    1 and for a negative shift.
    """
    key = ("rotated sets", tuple(window), tuple(shift), size)
    return voxels.plan(key, lambda v: _set_plan(v, window, shift, size))


def _set_plan(voxels: SparseVoxels, window: Sequence[int], shift: Sequence[int], size: int) -> SetPlan:
    sets = rotated_sets(voxels.coords, voxels.grid, voxels.batch_size, window, shift, size)
    valid = ~sets.repeats
    y_major, x_major = (Groups(*parts) for parts in zip(sets.index, sets.slot, valid, strict=True))
    return SetPlan(y_major, x_major, sets.window, sets.inside)


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

    def __call__(self, voxels: SparseVoxels, order: Order) -> Groups | Segments:
        """The groups or segments of these voxels along this order."""
        return voxels.plan((self, order), lambda v: self.cut(order(v)))

    @abstractmethod
    def cut(self, ordering: Ordering) -> Groups | Segments:
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


@PARTITIONS.register
@dataclass(frozen=True)
class RotatedSets(Partition):
    """Sets that share out evenly the voxels of each window of the order, or of each frame where it has no windows.

    With `WindowY` and `WindowX` these are the two directions of DSVT (section 3.2), as in `rotated_set_plan`; only the
    order of the sets differs. See `even_sets`.
    """

    size: int

    def __call__(self, voxels: SparseVoxels, order: Order) -> Groups:
        """The sets of these voxels along this order."""
        if not isinstance(order, (WindowX, WindowY)):
            return super().__call__(voxels, order)
        return voxels.plan((self, order), lambda v: self._cut_windows(v, order))

    def _cut_windows(self, voxels: SparseVoxels, order: WindowX | WindowY) -> Groups:
        sequence = order(voxels).order
        windows = window_index(voxels.coords[sequence], voxels.grid, order.window, order.shift)
        return even_sets(sequence, torch.unique_consecutive(windows, return_counts=True)[1], self.size)

    def cut(self, ordering: Ordering) -> Groups:
        """Each frame of a sequence as if it were one window."""
        counts = ordering.counts
        return even_sets(ordering.order, counts[counts > 0], self.size)


@PARTITIONS.register
@dataclass(frozen=True)
class Windows(Partition):
    """Segments of any length: the windows of a window order, the buckets of `LSH`, the frames of any other order."""

    def __call__(self, voxels: SparseVoxels, order: Order) -> Segments:
        """The segments of these voxels along this order."""
        if not isinstance(order, (WindowX, WindowY, LSH)):
            return super().__call__(voxels, order)
        return voxels.plan((self, order), lambda v: self._cut_numbers(v, order))

    def _cut_numbers(self, voxels: SparseVoxels, order: WindowX | WindowY | LSH) -> Segments:
        ordering = order(voxels)
        if isinstance(order, LSH):
            numbers = order.keys(voxels)
        else:
            numbers = window_index(voxels.coords, voxels.grid, order.window, order.shift)
        counts = torch.unique_consecutive(numbers[ordering.order], return_counts=True)[1]
        return _segments(ordering, counts)

    def cut(self, ordering: Ordering) -> Segments:
        """Each frame of a sequence as one segment."""
        return _segments(ordering, ordering.counts)


def _segments(ordering: Ordering, counts: Tensor) -> Segments:
    return Segments(ordering.order, ordering.inverse, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
