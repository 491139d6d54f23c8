"""The overlap of upright boxes turned about z, with gradients, for losses of boxes (Zhou et al., 3DV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

PARALLEL = 1e-9  # metres along an axis below which an edge of a footprint counts as parallel to the sides across it


def rotated_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of the volumes of boxes, row by row; differentiable in both arguments.

    The values are those of `pcdet_ext.ops.iou_3d_paired`, which has no gradients. They are computed in float64.

    Args:
        a: floating-point [N, 7 or more], (x, y, z, dx, dy, dz, heading) in metres and radians, of positive sizes.
        b: the same for the other box of each pair.

    Returns:
        [N], in [0, 1], of the type of `a`.
    """
    first, second = a.double(), b.double()
    top = torch.minimum(first[:, 2] + first[:, 5] / 2, second[:, 2] + second[:, 5] / 2)
    bottom = torch.maximum(first[:, 2] - first[:, 5] / 2, second[:, 2] - second[:, 5] / 2)
    shared = shared_footprint(first, second) * (top - bottom).clamp_min(0)
    union = first[:, 3:6].prod(1) + second[:, 3:6].prod(1) - shared
    return (shared / union).to(a.dtype)


def shared_footprint(a: Tensor, b: Tensor) -> Tensor:
    """Area [N] in m² that the footprints of boxes float64 [N, 7 or more] share, row by row; differentiable.

    The outline of `a`, in the frame of `b`, is cut where it crosses the lines along b's sides, and what lies outside is
    moved onto the nearest side. What is moved then runs along the sides and encloses nothing, so that Green's theorem
    gives the area of the intersection. This needs neither sorted corners nor cases.
    """
    half = b[:, None, None, 3:5] / 2
    start = _corners(a, b)[:, :, None]
    edge = start.roll(-1, 1) - start
    crossings = torch.cat([_crossings(start, edge, -half), _crossings(start, edge, half)], 3)
    share = crossings.flatten(2).sort(2).values
    share = torch.cat([torch.zeros_like(share[..., :1]), share, torch.ones_like(share[..., :1])], 2)
    outline = start + share[..., None] * edge
    outline = torch.minimum(torch.maximum(outline, -half), half)
    here, there = outline[:, :, :-1], outline[:, :, 1:]
    area = (here[..., 0] * there[..., 1] - here[..., 1] * there[..., 0]).sum((1, 2)) / 2
    return area.clamp_min(0)


def _corners(a: Tensor, b: Tensor) -> Tensor:
    """Corners [N, 4, 2] of a's footprints, counter-clockwise, in the frame whose origin and x axis are those of b."""
    turn = a[:, 6] - b[:, 6]
    signs = a.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    own = _turned(signs * a[:, None, 3:5], turn)
    return own + _turned((a[:, :2] - b[:, :2])[:, None], -b[:, 6])


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """Points [N, K, 2] turned about the origin by an angle [N], counter-clockwise."""
    (x, y), cos, sin = points.unbind(2), angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([x * cos - y * sin, x * sin + y * cos], 2)


def _crossings(start: Tensor, edge: Tensor, side: Tensor) -> Tensor:
    """How far along each edge, in [0, 1], it meets the line of a side across x, and across y; an end where it does not.

    start, edge: [N, 4, 1, 2]; side: [N, 1, 1, 2], the place of the sides. Returns [N, 4, 1, 2].
    """
    parallel = edge.abs() < PARALLEL
    place = (side - start) / torch.where(parallel, 1, edge)
    return torch.where(parallel, 0, place).clamp(0, 1)
