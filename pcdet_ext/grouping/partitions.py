"""Partitions: where a sequence is cut. They turn an ordering into equal-size `Groups` or variable-length `Segments`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pcdet_ext.config import Registry
from pcdet_ext.grouping.orders import LSH, Order, Ordering, Window, WindowX, WindowY
from pcdet_ext.ops.equal_groups import equal_group_slots, starts_of
from pcdet_ext.ops.rotated_sets import rotated_sets
from pcdet_ext.structures import Groups, Segments, SparseVoxels

PARTITIONS = Registry("partition")


def equal_groups(ordering: Ordering, size: int, masked: bool = False) -> Groups:
    """Consecutive groups of `size` voxels, none across a frame's border.

    The free slots of a frame's last group hold the voxels one group earlier (FlatFormer section 3.2, LION section 3.2);
    in a frame of a single group its own voxels, repeated from the start. They take part like any other slot, unless
    `masked`.

    Args:
        ordering: the sequence.
        size: slots of a group.
        masked: `valid` is False in the free slots.

    Raises:
        ValueError: for a size below 1.
    """
    _check_size(size)
    index, inverse, valid = equal_group_slots(ordering.order, ordering.inverse, ordering.counts, size, ordering.sizes)
    return Groups(index.view(-1, size), inverse, valid.view(-1, size) if masked else None)


def octree_windows(
    ordering: Ordering, size: int, dilation: int = 1, straddle: bool = False, padding: int | None = None
) -> Groups:
    """Windows of `size` nodes of a z-ordered sequence, consecutive or every `dilation`-th (OctFormer, section 3.2).

    Slots of different frames do not see each other: `owner` tells the frame of each slot, padding has the owner B.

    Args:
        ordering: the sequence.
        size: slots of a window.
        dilation: distance in the sequence between two slots of a window.
        straddle: cut windows from the joined sequence of all frames, as published, so that a window may hold the end of
            one frame and the start of the next; by default every frame is padded to whole windows.
        padding: the sequence is filled up to a multiple of it, a multiple of size * dilation, which it is by default.

    Raises:
        ValueError: for a size or dilation below 1, and a padding that is no multiple of size * dilation.
    """
    _check_size(size, dilation)
    counts, block = ordering.counts, size * dilation if padding is None else padding
    if block < 1 or block % (size * dilation):
        raise ValueError(f"padding must be a multiple of size * dilation = {size * dilation}, got {padding}")
    pieces = counts.sum().view(1) if straddle else counts
    padded = (pieces + block - 1) // block * block
    piece = torch.repeat_interleave(padded)
    slot = torch.arange(len(piece), device=piece.device) - starts_of(padded)[piece]
    valid = slot < pieces[piece]
    place = torch.where(valid, slot + starts_of(pieces)[piece], 0)
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

    Slot k of set j of a piece of n voxels in S sets holds the voxel at place ⌊(j · size + k) · n / (S · size)⌋; `valid`
    is False where a slot repeats the one to its left.

    Args:
        order: int64 [N], voxel at each place of the sequence.
        counts: int64 [P], length of each piece, at least 1.
        size: slots of a set.

    Raises:
        ValueError: for a size below 1.
    """
    _check_size(size)
    sets = (counts + size - 1) // size
    owner = torch.repeat_interleave(sets)
    local = torch.arange(len(owner), device=owner.device) - starts_of(sets)[owner]
    slot = local[:, None] * size + torch.arange(size, device=owner.device)
    place = slot * counts[owner, None] // (sets[owner, None] * size)
    index = order[starts_of(counts)[owner, None] + place]
    repeats = torch.cat([torch.zeros_like(index[:, :1], dtype=torch.bool), index[:, 1:] == index[:, :-1]], 1)
    slots = torch.arange(index.numel(), device=index.device)
    inverse = slots.new_empty(len(order) + 1)  # one more takes the repeats, so that no two write to the same place
    inverse[torch.where(repeats, len(order), index).flatten()] = slots
    return Groups(index, inverse[:-1], ~repeats)


def window_segments(index: Tensor) -> Segments:
    """Voxels gathered by window number int64 [N] (windows ascending, voxels inside in their order)."""
    order = torch.argsort(index, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = torch.unique_consecutive(index[order], return_counts=True)[1]
    return Segments(order, inverse, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


class Partition(ABC):
    """What partitions share: called on voxels and an order, the result is cached on the voxels.

    plan_type: what they give, which a mixer must be able to take.
    """

    plan_type: ClassVar[type[Groups] | type[Segments]] = Groups

    def __call__(self, voxels: SparseVoxels, order: Order) -> Groups | Segments:
        """The groups or segments of these voxels along this order; groups know the cells of the voxels."""
        return voxels.plan((self, order), lambda v: self._placed(v, order))

    def _placed(self, voxels: SparseVoxels, order: Order) -> Groups | Segments:
        plan = self.cut(voxels, order)
        return replace(plan, cells=voxels.coords[:, 1:]) if isinstance(plan, Groups) else plan

    @abstractmethod
    def cut(self, voxels: SparseVoxels, order: Order) -> Groups | Segments:
        """Cut the sequence of these voxels along this order."""


@dataclass(frozen=True)
class _Groups(Partition):
    group_size: int

    def __post_init__(self) -> None:
        _check_size(self.group_size)


@PARTITIONS.register
@dataclass(frozen=True)
class EqualGroups(_Groups):
    """See `equal_groups`."""

    masked: bool = False

    def cut(self, voxels: SparseVoxels, order: Order) -> Groups:
        """See `equal_groups`."""
        return equal_groups(order(voxels), self.group_size, self.masked)


@PARTITIONS.register
@dataclass(frozen=True)
class OctreeWindows(_Groups):
    """See `octree_windows`."""

    dilation: int = 1
    straddle: bool = False

    def __post_init__(self) -> None:
        _check_size(self.group_size, self.dilation)

    def cut(self, voxels: SparseVoxels, order: Order) -> Groups:
        """See `octree_windows`."""
        return octree_windows(order(voxels), self.group_size, self.dilation, self.straddle)


@PARTITIONS.register
@dataclass(frozen=True)
class RotatedSets(_Groups):
    """Sets that share out evenly the voxels of each piece of the order: window, bucket or frame. See `even_sets`.

    Along `WindowY` and `WindowX` in rows these are the two directions of DSVT (section 3.2): a window's voxels sorted
    by (y, x, z) and by (x, y, z). A native operation makes both together, without sorting.
    """

    def cut(self, voxels: SparseVoxels, order: Order) -> Groups:
        """The sets of these voxels along this order."""
        if isinstance(order, (WindowX, WindowY)) and order.path == "rows":
            key = ("rotated_sets", self.group_size, order.window, order.shift)
            y_major, x_major = voxels.plan(key, lambda v: self._directions(v, order))
            return y_major if isinstance(order, WindowY) else x_major
        return even_sets(*_pieces(voxels, order), self.group_size)

    def _directions(self, voxels: SparseVoxels, order: Window) -> tuple[Groups, Groups]:
        """Sets sorted by (y, x, z) and by (x, y, z)."""
        window = order.size(voxels.grid)
        sets = rotated_sets(voxels.coords, voxels.grid, voxels.batch_size, window, order.shift, self.group_size)
        y_major, x_major = (Groups(*parts) for parts in zip(sets.index, sets.slot, ~sets.repeats, strict=True))
        return y_major, x_major


@PARTITIONS.register
@dataclass(frozen=True)
class LSHWindows(_Groups):
    """Sets inside windows of locality-sensitive hashing: voxels of one bucket of random projections are together.

    The windows are those of the hash, whatever the order; the order is that of the voxels inside a window, along which
    its ⌈n / group_size⌉ sets are filled evenly (see `even_sets`). Two layers whose shifts differ by a half see across
    each other's borders, as shifted windows do (cross-window).

    Args:
        group_size: slots of a set.
        projections: directions that a hash is made of (Datar et al., SCG 2004).
        width: cells that a window is wide along each of them.
        seed: of the directions.
        border_shift: share of the width, from 0 to below 1, by which all borders are moved.

    Raises:
        ValueError: for a size below 1; when cut, for a hash that `pcdet_ext.ops.serialize` refuses.
    """

    projections: int = 3
    width: float = 8.0
    seed: int = 0
    border_shift: float = 0.0

    def cut(self, voxels: SparseVoxels, order: Order) -> Groups:
        """The sets of these voxels."""
        sequence = order(voxels).order
        windows = LSH(self.projections, self.width, self.seed, self.border_shift).keys(voxels)[sequence]
        place = torch.argsort(windows, stable=True)
        counts = torch.unique_consecutive(windows[place], return_counts=True)[1]
        return even_sets(sequence[place], counts, self.group_size)


@PARTITIONS.register
@dataclass(frozen=True)
class Windows(Partition):
    """Segments of any length, the pieces of the order: windows of a window order, buckets of `LSH`, or else frames."""

    plan_type = Segments

    def cut(self, voxels: SparseVoxels, order: Order) -> Segments:
        """The segments of these voxels along this order."""
        ordering, (_, counts) = order(voxels), _pieces(voxels, order)
        return Segments(ordering.order, ordering.inverse, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _pieces(voxels: SparseVoxels, order: Order) -> tuple[Tensor, Tensor]:
    """The sequence int64 [N] of an order, and the lengths int64 [P] of its pieces."""
    sequence = order(voxels).order
    return sequence, torch.unique_consecutive(order.pieces(voxels)[sequence], return_counts=True)[1]


def _check_size(size: int, dilation: int = 1) -> None:
    if dilation < 1:
        raise ValueError(f"group_size and dilation must be at least 1, got {size} and {dilation}")
    if size < 1:
        raise ValueError(f"group_size must be at least 1, got {size}")
