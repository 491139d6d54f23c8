"""What heads learn from: anchors and their ground truth, and heatmaps of Gaussians around object centres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.models.targets.box_coding import limit_period
from pcdet_ext.ops import iou_3d_paired

BACKGROUND = -1  # label of an anchor that must predict nothing
IGNORED = -2  # label of an anchor that takes no part in the loss


@dataclass(frozen=True)
class AnchorSpec:
    """The anchors of one class: every size at every rotation in every cell.

    class_name; sizes: (dx, dy, dz) in metres; rotations: radians; bottom_height: z of their lower face in metres;
    matched, unmatched: overlap with an object from which an anchor stands for it, and below which it is background;
    align_center: anchors at the cells' centres, not spread from border to border of the range.
    """

    class_name: str
    sizes: Sequence[Sequence[float]]
    bottom_height: float
    matched: float
    unmatched: float
    rotations: Sequence[float] = (0.0, 1.57)
    align_center: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or any(len(s) != 3 or min(s) <= 0 for s in self.sizes):
            raise ValueError(f"sizes of {self.class_name} must be positive (dx, dy, dz), got {self.sizes}")
        if not self.rotations:
            raise ValueError(f"rotations of {self.class_name} must not be empty")
        if not 0 < self.unmatched <= self.matched <= 1:
            raise ValueError(
                f"overlaps of {self.class_name} must be 0 < unmatched <= matched <= 1, "
                f"got {self.unmatched} and {self.matched}"
            )

    def __len__(self) -> int:
        return len(self.sizes) * len(self.rotations)


def make_anchors(
    spec: AnchorSpec, point_cloud_range: Sequence[float], map_size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Anchors [Y, X, A, 7] of one class on a map of (Y, X) cells; size major, rotation minor."""
    height, width = map_size
    xs = _positions(point_cloud_range[0], point_cloud_range[3], width, spec.align_center, device)
    ys = _positions(point_cloud_range[1], point_cloud_range[4], height, spec.align_center, device)
    sizes = torch.tensor(spec.sizes, dtype=torch.float32, device=device).repeat_interleave(len(spec.rotations), 0)
    rotations = torch.tensor(spec.rotations, dtype=torch.float32, device=device).repeat(len(spec.sizes))
    anchors = torch.empty(height, width, len(spec), 7, device=device)
    anchors[..., 0] = xs[None, :, None]
    anchors[..., 1] = ys[:, None, None]
    anchors[..., 2] = spec.bottom_height + sizes[:, 2] / 2
    anchors[..., 3:6] = sizes
    anchors[..., 6] = rotations
    return anchors


def _positions(low: float, high: float, count: int, centered: bool, device: torch.device | None) -> Tensor:
    cells = torch.arange(count, dtype=torch.float32, device=device)
    if centered:
        return low + (cells + 0.5) * ((high - low) / count)
    return low + cells * ((high - low) / max(count - 1, 1))


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

    anchors: [Y, X, A, 7] from `make_anchors`; boxes: [G, >= 7], objects of that class. An anchor stands for the object
    that it overlaps most (the first of equals) if by at least `matched`, or if no anchor overlaps some object more. It
    is background if it overlaps none by `unmatched`. Overlap is that of the footprints turned to the nearest axis,
    with `use_3d` the 3-D one.
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
    """The pairs that overlap at all: (flat anchor index int64 [P], box index int64 [P], overlap [P] > 0).

    Only cells near a box are looked at, so the cost grows with the number of boxes and not with the map.
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


def gaussian_radius(length: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """Radius in cells within which a box of this size may be moved and still overlap itself by `min_overlap`.

    As CenterPoint has it (after CornerNet, Law & Deng 2018), which takes (b + √(b² - 4ac)) / 2 without dividing by the
    leading coefficient a.
    """
    total, area = length + width, length * width
    r1 = (total + (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).clamp_min(0).sqrt()) / 2
    r2 = (2 * total + (4 * total**2 - 16 * (1 - min_overlap) * area).clamp_min(0).sqrt()) / 2
    b3 = -2 * min_overlap * total
    r3 = (b3 + (b3**2 - 16 * min_overlap * (min_overlap - 1) * area).clamp_min(0).sqrt()) / 2
    return torch.minimum(torch.minimum(r1, r2), r3)


def gaussian(radius: int, device: torch.device | None = None) -> Tensor:
    """A bump [2r + 1, 2r + 1] of standard deviation (2r + 1) / 6 and peak exactly 1, float32."""
    sigma = (2 * radius + 1) / 6
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    bump = torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2))
    return torch.where(bump < torch.finfo(bump.dtype).eps, 0.0, bump).float()


def draw_gaussians(heatmap: Tensor, channels: Tensor, cells: Tensor, radii: Tensor) -> None:
    """Raise a heatmap [C, H, W] in place to the Gaussians around cells, clipped at its borders.

    channels: int64 [G]; cells: int64 [G, 2] as (x, y), which may lie outside; radii: int64 [G].
    """
    height, width = heatmap.shape[1:]
    bumps: dict[int, Tensor] = {}
    for channel, (x, y), r in zip(channels.tolist(), cells.tolist(), radii.tolist(), strict=True):
        bump = bumps.setdefault(r, gaussian(r, heatmap.device))
        left, right, top, bottom = max(x - r, 0), min(x + r + 1, width), max(y - r, 0), min(y + r + 1, height)
        if left >= right or top >= bottom:
            continue
        area = heatmap[channel, top:bottom, left:right]
        torch.maximum(area, bump[top - y + r : bottom - y + r, left - x + r : right - x + r].to(area), out=area)


def usable_boxes(boxes: Tensor) -> Tensor:
    """bool [G]: which boxes [G, >= 7] are finite in their first 7 columns and of positive size."""
    return boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)


@dataclass(frozen=True)
class CenterTargets:
    """What a heatmap head should predict for K object slots a frame, unused ones zero.

    heatmap: [B, C, Y, X]; cells: flat cell int64 [B, K]; mask: bool [B, K], whether the slot counts; codes: [B, K, 8 or
    10] as (offset from the cell's corner in cells, z, logarithms of the sizes, cos and sin of the heading, velocity);
    boxes: [B, K, 7 or 9], the objects; labels: int64 [B, K] within the task, -1 where there is no object.
    """

    heatmap: Tensor
    cells: Tensor
    mask: Tensor
    codes: Tensor
    boxes: Tensor
    labels: Tensor


def center_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    task: Sequence[int],
    heatmap: Tensor,
    origin: Sequence[float],
    cell: Sequence[float],
    min_overlap: float,
    min_radius: int,
    outside: Literal["border", "skip"] = "border",
) -> CenterTargets:
    """Targets for the objects of some classes (CenterPoint).

    boxes: per frame [G, 7 or 9]; labels: per frame int64 [G]; task: the labels of its classes, in channel order;
    heatmap: [B, C, Y, X], for its shape; origin: (x, y) of the map's corner and cell: (x, y) of a cell, in metres;
    min_overlap, min_radius: see `gaussian_radius`. Objects beyond the border are drawn at the border, or with `outside`
    "skip" keep their slot, unused, if more than a cell below the lower edges or at all beyond the upper ones
    (CenterPoint). So do objects with a non-finite number or a size that is not positive.
    """
    channels, objects = _slots(boxes, labels, task)
    mask = usable_boxes(objects.flatten(0, 1)).view(channels.shape) & (channels >= 0)
    safe = torch.where(mask[..., None], objects, 1.0)
    height, width = heatmap.shape[2:]
    x, y = ((safe[..., i] - origin[i]) / cell[i] for i in range(2))
    if outside == "border":
        x, y = x.clamp(0, width - 0.5), y.clamp(0, height - 0.5)
    mask = mask & (x > -1) & (x < width) & (y > -1) & (y < height)
    ix, iy = x.long(), y.long()  # towards zero
    heading = safe[..., 6]
    codes = torch.stack(
        [x - ix, y - iy, safe[..., 2], *safe[..., 3:6].log().unbind(-1), heading.cos(), heading.sin()], -1
    )
    codes = torch.cat([codes, safe[..., 7:]], -1)
    radii = gaussian_radius(safe[..., 3] / cell[0], safe[..., 4] / cell[1], min_overlap).long().clamp_min(min_radius)
    drawn = torch.zeros_like(heatmap, dtype=torch.float32)
    for frame, used in enumerate(mask):
        at = torch.stack([ix[frame, used], iy[frame, used]], 1)
        draw_gaussians(drawn[frame], channels[frame, used], at, radii[frame, used])
    return CenterTargets(
        heatmap=drawn,
        cells=torch.where(mask, iy * width + ix, 0),
        mask=mask,
        codes=torch.where(mask[..., None], codes, 0.0),
        boxes=objects,
        labels=channels,
    )


def _slots(boxes: Sequence[Tensor], labels: Sequence[Tensor], task: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The objects of a task, padded: channels int64 [B, K] (-1 where there is none) and boxes [B, K, columns]."""
    channels, objects = [], []
    for frame, label in zip(boxes, labels, strict=True):
        index, channel = (label[:, None] == torch.tensor(task, device=label.device)).nonzero().unbind(1)
        objects.append(frame[index])
        channels.append(channel)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(channels, batch_first=True, padding_value=-1), pad(objects, batch_first=True)
