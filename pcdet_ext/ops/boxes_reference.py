"""The definitions behind `pcdet_ext.ops.boxes`, in PyTorch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

BEV, VOLUME, AREA = 0, 1, 2  # kinds of overlap: of footprints, of volumes, and the area that footprints share
CHUNK = 1 << 16  # pairs whose polygons are held at once


LIMIT = 1e100  # of what counts as finite, so that products of sizes are


def have_footprints(boxes: Tensor) -> Tensor:
    """bool [N]: which rows [N, 7] have an area in the plane; any height will do that is not negative."""
    finite = (boxes[:, [0, 1, 3, 4, 6]].double().abs() < LIMIT).all(1)
    return finite & (boxes[:, 3:5] > 0).all(1) & ~(boxes[:, 5] < 0)


def have_heights(boxes: Tensor) -> Tensor:
    """bool [N]: which rows [N, 7] are finite and of some height along z."""
    return (boxes[:, [2, 5]].double().abs() < LIMIT).all(1) & (boxes[:, 5] > 0)


def iou_matrix_reference(a: Tensor, b: Tensor, kind: int) -> Tensor:
    """Overlaps of all pairs of boxes; see `iou_bev` and `iou_3d`.

    Args:
        a: boxes [N, 7], float32 or float64.
        b: boxes [M, 7] of the same type.
        kind: `BEV`, `VOLUME` or `AREA`.

    Returns:
        [N, M], intersection over union, or for `AREA` the shared area in m².
    """
    rows, columns = torch.meshgrid(
        torch.arange(len(a), device=a.device), torch.arange(len(b), device=a.device), indexing="ij"
    )
    return iou_paired_reference(a[rows.flatten()], b[columns.flatten()], kind).view(len(a), len(b))


def iou_paired_reference(a: Tensor, b: Tensor, kind: int) -> Tensor:
    """Overlaps of the boxes in equal rows; see `iou_bev_paired`.

    Args:
        a: boxes [N, 7], float32 or float64.
        b: boxes [N, 7] of the same type.
        kind: `BEV`, `VOLUME` or `AREA`.

    Returns:
        [N], intersection over union, or for `AREA` the shared area in m².
    """
    if len(a) == 0:
        return a.new_zeros(0)
    parts = zip(a.double().split(CHUNK), b.double().split(CHUNK), strict=True)
    return torch.cat([_iou(x, y, kind) for x, y in parts]).to(a.dtype)


def _iou(a: Tensor, b: Tensor, kind: int) -> Tensor:
    valid = have_footprints(a) & have_footprints(b)
    if kind == VOLUME:
        valid = valid & have_heights(a) & have_heights(b)
    a, b = torch.where(valid[:, None], a, 1.0), torch.where(valid[:, None], b, 1.0)
    shared = _shared_area(a, b)
    size_a, size_b = a[:, 3] * a[:, 4], b[:, 3] * b[:, 4]
    shared = torch.where(shared > 1e-10 * torch.minimum(size_a, size_b), shared, 0.0)
    if kind == AREA:
        return torch.where(valid, shared, 0.0)
    if kind == VOLUME:
        high = torch.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
        low = torch.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
        shared = shared * (high - low).clamp(min=0)
        size_a, size_b = size_a * a[:, 5], size_b * b[:, 5]
    iou = (shared / (size_a + size_b - shared)).clamp(max=1)
    return torch.where(valid & (shared > 0), iou, 0.0)


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Area of b's rectangle in a's frame, clipped at a's four sides (Sutherland and Hodgman, CACM 17, 1974)."""
    dx, dy = (b[:, :2] - a[:, :2]).unbind(1)
    cos, sin = a[:, 6].cos(), a[:, 6].sin()
    centre = torch.stack([dx * cos + dy * sin, dy * cos - dx * sin], 1)
    turn = b[:, 6] - a[:, 6]
    cos, sin = turn.cos(), turn.sin()
    u = torch.stack([cos, sin], 1) * b[:, 3:4] / 2
    v = torch.stack([-sin, cos], 1) * b[:, 4:5] / 2
    polygon = torch.stack([centre + u + v, centre - u + v, centre - u - v, centre + u - v], 1)
    size = torch.full((len(a),), 4, device=a.device)
    for axis in (0, 1):
        for sign in (1, -1):
            polygon, size = _clip(polygon, size, axis, sign, a[:, 3 + axis] / 2)
    following = _following(polygon, size)
    cross = polygon[..., 0] * following[..., 1] - polygon[..., 1] * following[..., 0]
    used = torch.arange(polygon.shape[1], device=a.device) < size[:, None]
    return (cross * used).sum(1).abs() / 2


def _following(polygon: Tensor, size: Tensor) -> Tensor:
    """The next corner of each corner [N, V, 2], the first after the last that counts."""
    place = torch.arange(1, polygon.shape[1] + 1, device=size.device).expand(len(size), -1)
    place = torch.where(place >= size[:, None], 0, place)
    return polygon.gather(1, place.unsqueeze(-1).expand(-1, -1, 2))


def _clip(polygon: Tensor, size: Tensor, axis: int, sign: int, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Keep where sign · coordinate <= limit; corners [N, V, 2] become [N, V + 1, 2], of which `size` count."""
    following = _following(polygon, size)
    here = limit[:, None] - sign * polygon[..., axis]
    there = limit[:, None] - sign * following[..., axis]
    used = torch.arange(polygon.shape[1], device=size.device) < size[:, None]
    crosses = used & ((here >= 0) != (there >= 0))
    share = torch.where(crosses, here / torch.where(crosses, here - there, 1.0), 0.0)
    met = polygon + (following - polygon) * share.unsqueeze(-1)
    corners = torch.stack([polygon, met], 2).flatten(1, 2)
    kept = torch.stack([used & (here >= 0), crosses], 2).flatten(1)
    first = torch.argsort(~kept, dim=1, stable=True)[:, : polygon.shape[1] + 1]
    return corners.gather(1, first.unsqueeze(-1).expand(-1, -1, 2)), kept.sum(1)


def nms_reference(boxes: Tensor, threshold: float, kind: int, most: int) -> Tensor:
    """The boxes that stay when each removes later ones too near to it; see `nms`.

    Args:
        boxes: [N, 7], the best score first.
        threshold: overlap in the plane above which a box is removed, or for circles the squared distance in m² up to
            which it is.
        kind: 0 for the overlap of rotated boxes, 1 for that of boxes without their heading, 2 for distances of centres
            (`NMS_KINDS`).
        most: how many rows are returned at most.

    Returns:
        Rows int64 [K], ascending.
    """
    if kind == 0:
        removes = iou_matrix_reference(boxes, boxes, BEV) > threshold
    elif kind == 1:
        upright = torch.cat([boxes[:, :6], torch.zeros_like(boxes[:, 6:])], 1)
        removes = iou_matrix_reference(upright, upright, BEV) > threshold
    else:
        distance = boxes[:, None, :2].double() - boxes[None, :, :2].double()
        removes = distance.square().sum(-1) <= threshold
    return keep_greedily(removes.triu(1).nonzero(), len(boxes))[:most]


def keep_greedily(pairs: Tensor, count: int) -> Tensor:
    """Rows int64 [K] of `count` that stay when row i, unless removed itself, removes row j for each pair (i, j), i < j.

    pairs: int64 [P, 2], ascending by i.
    """
    alive = [True] * count
    for i, j in pairs.tolist():
        if alive[i]:
            alive[j] = False
    return torch.tensor(alive, dtype=torch.bool, device=pairs.device).nonzero().squeeze(1)


def points_in_boxes_reference(points: Tensor, boxes: Tensor, margin: float) -> Tensor:
    """The box that each point is in; see `points_in_boxes`.

    Args:
        points: [P, 3 or more].
        boxes: [M, 7] of the same type.
        margin: metres by which boxes are longer and wider at each side.

    Returns:
        int64 [P], the lowest row of a box that holds the point, -1 where none does.
    """
    found = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    usable = (boxes.double().abs() < LIMIT).all(1) & (boxes[:, 3:6] >= 0).all(1)
    boxes = torch.where(usable[:, None], boxes, torch.nan)  # NaN holds nothing
    for number in range(len(boxes) - 1, -1, -1):
        x, y, z, dx, dy, dz, heading = boxes[number].unbind()
        offset = points[:, :3] - torch.stack([x, y, z])
        cos, sin = heading.double().cos().to(points.dtype), heading.double().sin().to(points.dtype)
        along = offset[:, 0] * cos + offset[:, 1] * sin
        across = offset[:, 1] * cos - offset[:, 0] * sin
        inside = (offset[:, 2].abs() <= dz / 2) & (along.abs() < dx / 2 + margin) & (across.abs() < dy / 2 + margin)
        found = torch.where(inside, number, found)
    return found
