"""Anchors, and which object each of them stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.models.targets.box_coding import limit_period
from pcdet_ext.ops import iou_3d_paired
from pcdet_ext.structures import is_tracing

Made = TypeVar("Made")

BACKGROUND = -1  # label of an anchor that must predict nothing
IGNORED = -2  # label of an anchor that takes no part in the loss


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of one class: every size at every rotation and height in every cell.

    class_name; sizes: (dx, dy, dz) in metres; rotations: radians; bottom_height: z of their lower face in metres, one
    or several;
    matched, unmatched: overlap with an object from which an anchor stands for it, and below which it is background;
    align_center: anchors at the cells' centres, not spread from border to border of the range.
    """

    class_name: str
    sizes: Sequence[Sequence[float]]
    bottom_height: float | Sequence[float]
    matched: float
    unmatched: float
    rotations: Sequence[float] = (0.0, 1.57)
    align_center: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or any(len(s) != 3 or min(s) <= 0 for s in self.sizes):
            raise ValueError(f"sizes of {self.class_name} must be positive (dx, dy, dz), got {self.sizes}")
        if not self.heights:
            raise ValueError(f"bottom_height of {self.class_name} must not be empty")
        if not self.rotations:
            raise ValueError(f"rotations of {self.class_name} must not be empty")
        if not 0 < self.unmatched <= self.matched <= 1:
            raise ValueError(
                f"overlaps of {self.class_name} must be 0 < unmatched <= matched <= 1, "
                f"got {self.unmatched} and {self.matched}"
            )

    @property
    def heights(self) -> tuple[float, ...]:
        """The bottom heights."""
        return tuple(self.bottom_height) if isinstance(self.bottom_height, Sequence) else (self.bottom_height,)

    def __len__(self) -> int:
        return len(self.sizes) * len(self.rotations) * len(self.heights)


def make_anchors(
    spec: AnchorSpec, point_cloud_range: Sequence[float], map_size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Anchors of one class on a map; sizes vary slowest, then rotations, then heights.

    Args:
        spec: sizes, rotations and heights of the anchors.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        map_size: cells along y and x.
        device: where to make them.

    Returns:
        float32 [Y, X, A, 7] (x, y, z, dx, dy, dz, heading), z at the centre.
    """
    height, width = map_size
    xs = _positions(point_cloud_range[0], point_cloud_range[3], width, spec.align_center, device)
    ys = _positions(point_cloud_range[1], point_cloud_range[4], height, spec.align_center, device)
    kinds = list(itertools.product(spec.sizes, spec.rotations, spec.heights))
    sizes, rotations, heights = (
        torch.tensor(part, dtype=torch.float32, device=device) for part in zip(*kinds, strict=True)
    )
    anchors = torch.empty(height, width, len(spec), 7, dtype=torch.float32, device=device)
    anchors[..., 0] = xs[None, :, None]
    anchors[..., 1] = ys[:, None, None]
    anchors[..., 2] = heights + sizes[:, 2] / 2
    anchors[..., 3:6] = sizes
    anchors[..., 6] = rotations
    return anchors


def remembered(known: dict[Any, Made], key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, kept under its key for later calls.

    While `torch.jit` traces, it is made anew and not kept: a graph then depends neither on what was called before, nor
    anything called later on the trace.

    Args:
        known: what was made before, by key.
        key: what the result depends on.
        make: makes it.
    """
    if is_tracing():
        return make()
    if key not in known:
        known[key] = make()
    return known[key]


def _positions(low: float, high: float, count: int, centered: bool, device: torch.device | None) -> Tensor:
    """Positions of the cells along an axis, rounded as published.

    Where an anchor lies inside an object, its neighbour may too, and which of them overlaps it most is a question of
    the last bit: published labels depend on these positions to the bit.
    """
    start, stop = np.float32(low), np.float32(high)
    step = float(stop - start) / (count if centered else max(count - 1, 1))
    first = float(start) + (step / 2 if centered else 0.0)
    return torch.arange(first, first + (count - 0.5) * step, step, dtype=torch.float32).to(device)


@dataclass(frozen=True)
class Matches:
    """The anchors that are not background, as flat indices into the anchors of a class.

    positive: int64 [P], ascending; objects: int64 [P], which object each stands for; close: int64 [Q], anchors that
    overlap an object too much to be background, positive ones among them.
    """

    positive: Tensor
    objects: Tensor
    close: Tensor


def assign(anchors: Tensor, boxes: Tensor, matched: float, unmatched: float, use_3d: bool = False) -> Matches:
    """Which object each anchor of one class stands for (SECOND, Yan et al. 2018; SSD's matching).

    An anchor stands for the object that it overlaps most (the first of equals) if by at least `matched`, or if no
    anchor overlaps some object more. It is background if it overlaps none by `unmatched`.

    Args:
        anchors: [Y, X, A, 7] from `make_anchors`.
        boxes: [G, 7+], objects of that class.
        matched: overlap from which an anchor stands for an object.
        unmatched: overlap below which it is background.
        use_3d: whether overlap is that of the boxes in space, and not of the footprints turned to the nearest axis.
    """
    if not len(boxes):
        nothing = torch.empty(0, dtype=torch.long, device=anchors.device)
        return Matches(nothing, nothing, nothing)
    count = anchors.shape[:3].numel()
    anchor, box, overlap = overlapping_pairs(anchors, boxes[:, :7], use_3d)
    best = overlap.new_zeros(count).scatter_reduce_(0, anchor, overlap, "amax")[anchor]
    highest = overlap.new_zeros(len(boxes)).scatter_reduce_(0, box, overlap, "amax")[box]
    is_best = overlap == best
    first = torch.full((count,), len(boxes), device=anchors.device)
    first.scatter_reduce_(0, anchor[is_best], box[is_best], "amin")
    positive = anchor[(best >= matched) | (overlap == highest)].unique()
    return Matches(positive, first[positive], anchor[best >= unmatched])


def overlapping_pairs(anchors: Tensor, boxes: Tensor, use_3d: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of anchors and boxes that overlap at all.

    Only cells near a box are looked at, so the cost grows with the number of boxes and not with the map.

    Args:
        anchors: [Y, X, A, 7] from `make_anchors`.
        boxes: [G, 7].
        use_3d: whether overlap is that of the boxes in space, and not of the footprints turned to the nearest axis.

    Returns:
        Flat index of the anchor int64 [P], index of the box int64 [P], and their overlap [P], which is positive.
    """
    height, width, kinds = anchors.shape[:3]
    reach = _reach(anchors[0, 0], boxes, use_3d)
    columns = _window(anchors[0, :, 0, 0].contiguous(), boxes[:, 0], reach)
    rows = _window(anchors[:, 0, 0, 1].contiguous(), boxes[:, 1], reach)
    kind = torch.arange(kinds, device=anchors.device)
    index = (rows[:, :, None, None] * width + columns[:, None, :, None]) * kinds + kind  # [G, rows, columns, A]
    box = torch.arange(len(boxes), device=boxes.device)[:, None, None, None].expand_as(index)
    real = ((rows < height)[:, :, None, None] & (columns < width)[:, None, :, None]).expand_as(index)
    index, box = index[real], box[real]
    measure = iou_3d_paired if use_3d else nearest_bev_iou
    overlap = measure(anchors.reshape(-1, 7)[index], boxes[box])
    some = overlap > 0
    return index[some], box[some], overlap[some]


def _reach(anchors: Tensor, boxes: Tensor, use_3d: bool) -> Tensor:
    """Distance [G] in x or y from which no anchor of a cell can overlap a box."""

    def half(x: Tensor) -> Tensor:
        return x[:, 3:5].norm(dim=1) / 2 if use_3d else x[:, 3:5].amax(1) / 2

    return half(boxes) + half(anchors).max()


def _window(positions: Tensor, centers: Tensor, reach: Tensor) -> Tensor:
    """Indices int64 [G, W] of the positions within reach of each centre; those past the end are len(positions)."""
    first = torch.searchsorted(positions, centers - reach)
    last = torch.searchsorted(positions, centers + reach, right=True)
    longest = int((last - first).max())
    index = first[:, None] + torch.arange(longest, device=positions.device)
    return torch.where(index < last[:, None], index, len(positions))


def nearest_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap [P] of footprints a, b [P, 7] turned to the nearest axis."""
    a, b = axis_aligned(a), axis_aligned(b)
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    return inter / (area_a + area_b - inter).clamp_min(1e-6)


def axis_aligned(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) [P, 4] of footprints turned to the nearest axis."""
    lengthwise = limit_period(boxes[:, 6], 0.5, math.pi).abs() < math.pi / 4
    size = torch.where(lengthwise[:, None], boxes[:, 3:5], boxes[:, [4, 3]])
    return torch.cat([boxes[:, :2] - size / 2, boxes[:, :2] + size / 2], 1)
