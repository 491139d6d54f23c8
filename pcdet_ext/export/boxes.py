"""Non-maximum suppression written with basic operators, the same boxes as `pcdet_ext.ops.nms` keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.export.basics import count_up, rows
from pcdet_ext.export.operators import argsort, keep_greedily
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
    boxes, scores = boxes[order][:, :7], scores[order]
    if kind == "axis_aligned":
        boxes = torch.cat([boxes[:, :6], torch.zeros_like(boxes[:, 6:])], 1)
    first, second = _removals(boxes, iou_threshold, kind)
    kept = rows(keep_greedily(first, second, scores))
    return order[kept if post_max is None else kept[:post_max]]


def _removals(boxes: Tensor, threshold: float, kind: str) -> tuple[Tensor, Tensor]:
    """Pairs (better box, worse box), int64 [Q] each, of boxes [K, 7], best first, that overlap too much."""
    place = count_up(boxes)
    better = place[:, None] < place
    centre = boxes[:, :2].double() if kind == "circle" else boxes[:, :2]
    distance = (centre[:, None] - centre[None]).square().sum(2)
    if kind == "circle":
        return _pairs(better & (distance <= threshold))
    radius = boxes[:, 3:5].square().sum(1).sqrt() / 2
    reach = (radius[:, None] + radius) * 1.001 + 0.001  # beyond rounding
    first, second = _pairs(better & (distance <= reach.square()))
    chosen = rows(overlap(boxes[first].double(), boxes[second].double()) > threshold)
    return first[chosen], second[chosen]


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
