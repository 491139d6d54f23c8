"""Boxes seen from their own tracks: local coordinates, features of points around a box, and overlaps.

Boxes are [..., 7 or more] (x, y, z, dx, dy, dz, heading, then other columns such as time), metres and radians. A box
whose sizes sum to zero is *empty*: it stands for "nothing there".
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops.boxes import iou_3d as exact_iou_3d
from pcdet_ext.ops.published_boxes import published_shared_area

PERIOD = 0.1  # seconds between frames
GUARD = 1e-5  # in the denominators of the features of points
PAIRS_AT_ONCE = 1 << 15


def is_empty(boxes: Tensor) -> Tensor:
    """Whether boxes [..., 7 or more] are empty, bool [...]."""
    return boxes[..., 3:6].sum(-1) == 0


def rotated(values: Tensor, angle: Tensor) -> Tensor:
    """Values [..., C] whose first two columns are turned counter-clockwise by angles [...] (radians)."""
    cos, sin = angle.cos(), angle.sin()
    x, y = values[..., 0], values[..., 1]
    return torch.cat([torch.stack([x * cos - y * sin, x * sin + y * cos], -1), values[..., 2:]], -1)


def to_local(boxes: Tensor, origin: Tensor) -> Tensor:
    """Boxes in the coordinates of other boxes: places from above relative to them, headings as differences.

    Heights above ground stay as they are. A box is all zeros where it is empty, or where x + y of the origin is zero.

    Args:
        boxes: [..., C], seven columns or more.
        origin: [..., 7 or more], of a shape that broadcasts with that of the boxes.

    Returns:
        [..., C], headings not wrapped.
    """
    moved = torch.cat([boxes[..., :2] - origin[..., :2], boxes[..., 2:]], -1)
    turned = rotated(moved, -origin[..., 6])
    turned = torch.cat([turned[..., :6], turned[..., 6:7] - origin[..., 6:7], turned[..., 7:]], -1)
    return turned.masked_fill(_nowhere(boxes, origin), 0.0)


def velocity_to_local(velocity: Tensor, boxes: Tensor, origin: Tensor) -> Tensor:
    """Velocities [..., 2] of boxes in the coordinates of other boxes; zero where `to_local` makes the box zero.

    velocity: [..., 2] in metres per second; the other arguments as in `to_local`.
    """
    return rotated(velocity, -origin[..., 6]).masked_fill(_nowhere(boxes, origin), 0.0)


def from_local(boxes: Tensor, origin: Tensor) -> Tensor:
    """What `to_local` undoes; nothing is made zero."""
    turned = rotated(boxes, origin[..., 6])
    xy, heading = turned[..., :2] + origin[..., :2], turned[..., 6:7] + origin[..., 6:7]
    return torch.cat([xy, turned[..., 2:6], heading, turned[..., 7:]], -1)


def _nowhere(boxes: Tensor, origin: Tensor) -> Tensor:
    return (is_empty(boxes) | (origin[..., :2].sum(-1) == 0))[..., None]


def corner_points(boxes: Tensor) -> Tensor:
    """Corners [..., 8, 3] of boxes [..., 7 or more]: the signs of x, y, z count up, z changing fastest."""
    steps = torch.arange(8, device=boxes.device)
    signs = torch.stack([steps // 4, steps // 2 % 2, steps % 2], -1).to(boxes.dtype) - 0.5
    offsets = rotated(signs * boxes[..., None, 3:6], boxes[..., 6:7].expand(*boxes.shape[:-1], 8))
    return offsets + boxes[..., None, :3]


def spherical(offsets: Tensor, diagonal: Tensor) -> Tensor:
    """Differences of places in polar coordinates.

    Args:
        offsets: [..., 3 K], K differences (x, y, z) one after the other, metres.
        diagonal: [..., 1], metres, by which distances are divided.

    Returns:
        [..., 3 K]: K distances, then the arc tangents of y / x, then the angles from the z axis.
    """
    x, y, z = offsets.unflatten(-1, (-1, 3)).unbind(-1)
    distance = torch.sqrt(x**2 + y**2 + z**2)
    angles = torch.atan(y / (x + GUARD)), torch.acos(z / (distance + GUARD))
    return torch.cat([distance / (diagonal + GUARD), *angles], -1)


def around_box(points: Tensor, boxes: Tensor) -> Tensor:
    """Where points are relative to the corners and the centre of their box.

    Args:
        points: [M, K, 3].
        boxes: [M, 7 or more].

    Returns:
        [M, K, 27], see `spherical`.
    """
    anchors = torch.cat([corner_points(boxes), boxes[:, None, :3]], 1)
    offsets = (points[:, :, None] - anchors[:, None]).flatten(2)
    diagonal = boxes[:, 3:6].norm(dim=1)[:, None, None].expand(-1, points.shape[1], 1)
    return spherical(offsets, diagonal)


def to_global(boxes: Tensor, velocity: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and velocities moved by a pose; in float64, then rounded to float32.

    Args:
        boxes: [N, 7].
        velocity: [N, 2], metres per second.
        pose: float64 [4, 4], vehicle to world.

    Returns:
        float32 [N, 7] and [N, 2].
    """
    box, speed = _posed(boxes.double(), velocity.double(), pose, _yaw(pose))
    return box.to(torch.float32), speed.to(torch.float32)


def to_vehicle(boxes: Tensor, velocity: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `to_global`, in the type of the boxes. Arguments as in `to_global`."""
    own = pose.to(boxes.dtype)
    return _posed(boxes, velocity, torch.linalg.inv(own), -_yaw(own))


def _yaw(pose: Tensor) -> Tensor:
    return torch.atan2(pose[1, 0], pose[0, 0])


def _posed(boxes: Tensor, velocity: Tensor, pose: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    place = boxes[..., :3] @ pose[:3, :3].T + pose[:3, 3]
    return torch.cat([place, boxes[..., 3:6], boxes[..., 6:7] + turn], -1), velocity @ pose[:2, :2].T


def iou_3d(first: Tensor, second: Tensor, published: bool = False) -> Tensor:
    """Overlaps [N, M] of the volumes of boxes (intersection over union).

    Args:
        first: [N, 7 or more].
        second: [M, 7 or more].
        published: count corners up to 1 cm outside of a footprint as inside it, as the published kernel does.
    """
    if not published:
        return exact_iou_3d(first[:, :7], second[:, :7])
    reach = [boxes[:, 3:5].norm(dim=1) / 2 + 0.02 for boxes in (first, second)]
    apart = (first[:, None, :2] - second[None, :, :2]).norm(dim=-1) > reach[0][:, None] + reach[1][None]
    pairs = (~apart).nonzero()
    table = first.new_zeros(len(first), len(second))
    for part in pairs.split(PAIRS_AT_ONCE):
        table[part[:, 0], part[:, 1]] = _iou_of_rows(first[part[:, 0], :7], second[part[:, 1], :7])
    return table


def _iou_of_rows(first: Tensor, second: Tensor) -> Tensor:
    top = torch.minimum(first[:, 2] + first[:, 5] / 2, second[:, 2] + second[:, 5] / 2)
    bottom = torch.maximum(first[:, 2] - first[:, 5] / 2, second[:, 2] - second[:, 5] / 2)
    shared = published_shared_area(first, second) * (top - bottom).clamp_min(0)
    volumes = first[:, 3:6].prod(1) + second[:, 3:6].prod(1)
    return shared / (volumes - shared).clamp_min(1e-6)
