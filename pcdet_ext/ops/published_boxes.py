"""The overlaps that OpenPCDet's suppression computes, for results that must equal published ones to the last box.

Rotated: corners up to 1 cm outside of the other box count as inside, touching edges do not cross, so boxes less than
that apart overlap a little, and boxes of a few millimetres may overlap by more than 1. Axis-aligned: a NaN gives way to
the other box's value, so a broken box overlaps everything near it. `pcdet_ext.ops.iou_bev` is the right overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


MARGIN = 0.01  # metres


def published_shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Area [N] that the turned footprints of boxes a and b [N, 7] share; 0 where one is not finite."""
    used = [0, 1, 3, 4, 6]  # what is NaN in height alone still has a footprint
    usable = (a[:, used].isfinite().all(1) & b[:, used].isfinite().all(1))[:, None]
    a, b = torch.where(usable, a, 0.0), torch.where(usable, b, 0.0)
    first, second = _corners(a), _corners(b)
    crossings, crossed = _crossings(first, second)
    points = torch.cat([crossings, first, second], 1)
    valid = torch.cat([crossed, _inside(first, b), _inside(second, a)], 1)
    count = valid.sum(1)
    middle = torch.where(valid.unsqueeze(-1), points, 0.0).sum(1) / count.clamp(min=1)[:, None]
    offset = points - middle[:, None]
    angle = torch.where(valid, torch.atan2(offset[..., 1], offset[..., 0]), torch.inf)
    order = angle.argsort(1)
    ring = offset.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    ring = torch.where((torch.arange(24, device=a.device) < count[:, None]).unsqueeze(-1), ring, ring[:, :1])
    following = ring.roll(-1, 1)
    twice = (ring[..., 0] * following[..., 1] - ring[..., 1] * following[..., 0]).sum(1).abs()
    return torch.where((count > 0) & usable[:, 0], twice / 2, 0.0)


def published_iou_rotated(a: Tensor, b: Tensor) -> Tensor:
    """Overlap [N] of the turned footprints of boxes a and b [N, 7]."""
    shared = published_shared_area(a, b)
    union = a[:, 3] * a[:, 4] + b[:, 3] * b[:, 4] - shared
    return torch.where(shared > 0, shared / union.clamp(min=1e-8), 0.0)


def published_iou_axis_aligned(a: Tensor, b: Tensor) -> Tensor:
    """Overlap [N] of the rectangles (x, y, dx, dy) of boxes a and b [N, 7]."""
    low = torch.fmax(a[:, :2] - a[:, 3:5] / 2, b[:, :2] - b[:, 3:5] / 2)
    high = torch.fmin(a[:, :2] + a[:, 3:5] / 2, b[:, :2] + b[:, 3:5] / 2)
    shared = torch.fmax(high - low, torch.zeros_like(low)).prod(1)
    union = a[:, 3] * a[:, 4] + b[:, 3] * b[:, 4] - shared
    return shared / torch.fmax(union, torch.full_like(union, 1e-8))


def published_removals(boxes: Tensor, threshold: float, rotated: bool) -> Tensor:
    """Pairs of boxes of which the first removes the second, as the published suppression finds them; see `nms`.

    Args:
        boxes: [N, 7], the best score first.
        threshold: overlap above which a box is removed.
        rotated: whether boxes overlap with their headings, or without.

    Returns:
        int64 [K, 2], rows of the boxes.
    """
    centre, radius = boxes[:, :2], boxes[:, 3:5].norm(dim=1) / 2 + 2 * MARGIN
    apart = torch.cdist(centre, centre) > radius[:, None] + radius[None]  # never for NaN
    pairs = (~apart).triu(1).nonzero()
    overlap = published_iou_rotated if rotated else published_iou_axis_aligned
    parts = [overlap(*boxes[part].unbind(1)) for part in pairs.split(1 << 16)]
    return pairs[torch.cat([*parts, boxes.new_zeros(0)]) > threshold]


def _corners(boxes: Tensor) -> Tensor:
    """Corners [N, 4, 2], counter-clockwise."""
    local = torch.tensor(CORNERS, device=boxes.device, dtype=boxes.dtype) * boxes[:, None, 3:5] / 2
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return torch.stack([x, y], -1) + boxes[:, None, :2]


def _crossings(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Where the edges of two rings [N, 4, 2] properly cross: points [N, 16, 2] and whether they exist."""
    p, q = (t[:, :, None] for t in (first, first.roll(-1, 1)))
    r, s = (t[:, None] for t in (second, second.roll(-1, 1)))

    def side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    from_p, from_q = side(r, s, p), side(r, s, q)
    crossed = (from_p * from_q < 0) & (side(p, q, r) * side(p, q, s) < 0)
    share = torch.where(crossed, from_p / torch.where(crossed, from_p - from_q, 1.0), 0.0)
    points = p + (q - p) * share.unsqueeze(-1)
    return points.flatten(1, 2), crossed.flatten(1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points [N, 4, 2] lie in boxes [N, 7] widened by the margin, strictly."""
    offset = points - boxes[:, None, :2]
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    half = boxes[:, None, 3:5] / 2 + MARGIN
    return (along.abs() < half[..., 0]) & (across.abs() < half[..., 1])
