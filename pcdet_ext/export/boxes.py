"""Non-maximum suppression written with basic operators, the same boxes as `pcdet_ext.ops.nms` keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.export.basics import rows
from pcdet_ext.export.operators import argsort, suppress
from pcdet_ext.ops.boxes_reference import have_footprints


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    kind: str = "rotated",
    pre_max: int | None = None,
    post_max: int | None = None,
    published: bool = False,
) -> Tensor:
    """The form of `pcdet_ext.ops.nms` for export. Arguments as in that function.

    Raises:
        NotImplementedError: `published` is True; the overlap of published kernels has no form.
    """
    if published:
        raise NotImplementedError("nms with published=True has no ONNX form")
    usable = rows(~scores.isnan())
    order = usable[argsort(-scores[usable])]
    order = order if pre_max is None else order[:pre_max]
    boxes = boxes[order][:, :7]
    if kind == "axis_aligned":
        boxes = torch.cat([boxes[:, :6], torch.zeros_like(boxes[:, 6:])], 1)
    most = torch.tensor([torch.iinfo(torch.int64).max if post_max is None else post_max])
    threshold = torch.tensor(iou_threshold, dtype=torch.float64)
    return order[suppress(boxes, threshold, most, "circle" if kind == "circle" else "rotated")]


def overlapping_rotated(
    boxes: Tensor, places: Tensor, others: Tensor, other_places: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Which boxes remove others if they stay, by the overlap of footprints.

    Args:
        boxes: float32 [A, 7].
        places: int64 [A], where each is among all boxes, best first. A box removes only those behind it.
        others: float32 [B, 7].
        other_places: int64 [B].
        threshold: float64 [], a larger overlap removes.

    Returns:
        The pairs, rows of `boxes` int64 [Q] and rows of `others` int64 [Q].
    """
    radius, reach = (each[:, 3:5].square().sum(1).sqrt() / 2 for each in (boxes, others))
    near = (radius[:, None] + reach) * 1.001 + 0.001  # beyond rounding
    behind = places[:, None] < other_places
    first, second = _pairs(behind & (_squared_distance(boxes, others) <= near.square()))
    chosen = rows(overlap(boxes[first].double(), others[second].double()) > threshold)
    return first[chosen], second[chosen]


def overlapping_circle(
    boxes: Tensor, places: Tensor, others: Tensor, other_places: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by squared distances of centres (m²) of at most `threshold`. Arguments as in `overlapping_rotated`."""
    behind = places[:, None] < other_places
    return _pairs(behind & (_squared_distance(boxes.double(), others.double()) <= threshold))


def _squared_distance(boxes: Tensor, others: Tensor) -> Tensor:
    x, y = (boxes[:, axis][:, None] - others[:, axis] for axis in (0, 1))
    return x * x + y * y


def _pairs(marked: Tensor) -> tuple[Tensor, Tensor]:
    first, second = marked.nonzero().unbind(1)
    return first, second


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [Q] of the footprints of boxes float64 [Q, 7], as `pcdet_ext.ops.iou_bev_paired`."""
    valid = have_footprints(a) & have_footprints(b)
    a, b = torch.where(valid[:, None], a, 1.0), torch.where(valid[:, None], b, 1.0)
    size_a, size_b = a[:, 3] * a[:, 4], b[:, 3] * b[:, 4]
    shared = shared_area(a, b)
    shared = torch.where(shared > 1e-10 * torch.minimum(size_a, size_b), shared, 0.0)
    iou = (shared / (size_a + size_b - shared)).clamp(max=1)
    return torch.where(valid & (shared > 0), iou, 0.0)


def shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Area [Q] that the footprints of boxes [Q, 7] share.

    In a's frame the border of b is moved to the nearest points of a's rectangle; what it then goes around is what
    both share (the nearest-point map keeps what is inside, and lays what is outside onto the border, without area).
    Along an edge that map bends at most where the edge crosses the lines of a's four sides.
    """
    offset = b[:, :2] - a[:, :2]
    cos, sin = a[:, 6].cos(), a[:, 6].sin()
    x, y = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
    turn = b[:, 6] - a[:, 6]
    cos, sin = turn.cos(), turn.sin()
    u = torch.stack([cos, sin], 1) * b[:, 3:4] / 2
    v = torch.stack([-sin, cos], 1) * b[:, 4:5] / 2
    centre = torch.stack([x, y], 1)
    start = torch.stack([centre + u + v, centre - u + v, centre - u - v, centre + u - v], 1)
    step = start[:, [1, 2, 3, 0]] - start
    half = a[:, None, 3:5] / 2
    safe = torch.where(step == 0, 1.0, step)
    bends = torch.cat([(half - start) / safe, (-half - start) / safe], 2).clamp(0, 1)  # [Q, 4 edges, 4]
    share = torch.sort(bends, dim=2).values[..., None]
    along = start[:, :, None] + share * step[:, :, None]
    edges = torch.cat([start[:, :, None], along], 2).unbind(1)  # each ends where the next one starts
    path = torch.cat(edges, 1)
    path = torch.maximum(torch.minimum(path, half), -half)
    following = torch.cat([path[:, 1:], path[:, :1]], 1)
    return (path[..., 0] * following[..., 1] - path[..., 1] * following[..., 0]).sum(1).abs() / 2
