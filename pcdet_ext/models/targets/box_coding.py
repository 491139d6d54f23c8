"""Codes of boxes relative to anchors, points and directions, as SECOND, PartA2 and PointRCNN define them.

Boxes are [..., 7 + E] (x, y, z, dx, dy, dz, heading, extra columns as velocity), in metres and radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SIZE = 1e-5  # metres; sizes are raised to it before their logarithm is taken


def limit_period(angle: Tensor, offset: float = 0.5, period: float = math.pi) -> Tensor:
    """The angle moved by whole periods into [-offset * period, (1 - offset) * period).

    Args:
        angle: floating-point, of any shape, in radians.
        offset: where the interval begins, in periods below zero.
        period: in radians.
    """
    return angle - torch.floor(angle / period + offset) * period


def box_corners(boxes: Tensor) -> Tensor:
    """Corners [N, 8, 3] of boxes [N, >= 7]: below (front left, front right, back right, back left), then above."""
    signs = boxes.new_tensor([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    flat = signs * boxes[:, None, 3:5]
    cos, sin = boxes[:, 6, None].cos(), boxes[:, 6, None].sin()
    x = boxes[:, 0, None] + flat[..., 0] * cos - flat[..., 1] * sin
    y = boxes[:, 1, None] + flat[..., 0] * sin + flat[..., 1] * cos
    below, above = ((boxes[:, 2, None] + sign * boxes[:, 5, None] / 2).expand_as(x) for sign in (-1, 1))
    return torch.cat([torch.stack([x, y, below], 2), torch.stack([x, y, above], 2)], 1)


def usable_boxes(boxes: Tensor) -> Tensor:
    """bool [G]: which boxes [G, >= 7] are finite in their first 7 columns and of positive size."""
    return boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)


def enlarge(boxes: Tensor, extra: Sequence[float]) -> Tensor:
    """Boxes [..., >= 7] with `extra` metres added to (dx, dy, dz), centres unchanged."""
    return torch.cat([boxes[..., :3], boxes[..., 3:6] + boxes.new_tensor(extra), boxes[..., 6:]], -1)


def direction_bin(heading: Tensor, bins: int, offset: float) -> Tensor:
    """Which of several equal sectors of the circle a heading lies in.

    Args:
        heading: floating-point, of any shape, in radians.
        bins: number of sectors.
        offset: where the first one starts, in radians.

    Returns:
        int64 of the same shape.
    """
    turned = limit_period(heading - offset, 0.0, 2 * math.pi)
    return torch.floor(turned / (2 * math.pi / bins)).long().clamp(0, bins - 1)


def apply_direction_bin(heading: Tensor, direction: Tensor, bins: int, offset: float, limit_offset: float) -> Tensor:
    """Turn headings that are known up to a sector into the sector that was predicted.

    Args:
        heading: floating-point, of any shape, in radians.
        direction: int64 of the same shape, the number of the sector.
        bins: number of sectors.
        offset: where the first one starts, in radians.
        limit_offset: where in the sector headings are put, see `limit_period`.
    """
    sector = 2 * math.pi / bins
    return limit_period(heading - offset, limit_offset, sector) + offset + sector * direction.to(heading.dtype)


@dataclass(frozen=True)
class ResidualCoder:
    """Boxes relative to anchors (VoxelNet, Zhou & Tuzel 2018, eq. 1; SECOND).

    Offsets in units of the anchor's BEV diagonal and height, logarithms of the ratios of sizes, difference of headings
    and of the extra columns. sincos: the heading as (cos h - cos ha, sin h - sin ha). extra: columns after the heading.
    """

    sincos: bool = False
    extra: int = 0

    @property
    def code_size(self) -> int:
        """Numbers that describe a box."""
        return 7 + self.sincos + self.extra

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Codes [..., code_size] of boxes [..., 7 + extra] relative to anchors of the same shape."""
        size, anchor_size = (t[..., 3:6].clamp_min(SMALLEST_SIZE) for t in (boxes, anchors))
        offset = (boxes[..., :3] - anchors[..., :3]) / _units(anchor_size)
        heading, anchor_heading = boxes[..., 6:7], anchors[..., 6:7]
        if self.sincos:
            angles = [heading.cos() - anchor_heading.cos(), heading.sin() - anchor_heading.sin()]
        else:
            angles = [heading - anchor_heading]
        return torch.cat([offset, torch.log(size / anchor_size), *angles, boxes[..., 7:] - anchors[..., 7:]], -1)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 7 + extra] from codes [..., code_size]."""
        anchor_size, anchor_heading = anchors[..., 3:6], anchors[..., 6:7]
        center = codes[..., :3] * _units(anchor_size) + anchors[..., :3]
        size = codes[..., 3:6].exp() * anchor_size
        if self.sincos:
            heading = torch.atan2(
                codes[..., 7:8] + anchor_heading.sin(),
                codes[..., 6:7] + anchor_heading.cos(),
            )
        else:
            heading = codes[..., 6:7] + anchor_heading
        return torch.cat([center, size, heading, codes[..., 7 + self.sincos :] + anchors[..., 7:]], -1)


@dataclass(frozen=True)
class PreviousResidualDecoder:
    """Codes of older checkpoints, whose columns 3 and 4 are width and length (swapped), heading as a difference.

    reverse_heading: the code is subtracted from the anchor's heading (second stages, "RoI" variant).
    """

    reverse_heading: bool = False

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [..., 7 + E] from codes of the same shape."""
        swapped = codes[..., [0, 1, 2, 4, 3, 5, 6, *range(7, codes.shape[-1])]]
        boxes = ResidualCoder().decode(swapped, anchors)
        if self.reverse_heading:
            boxes = torch.cat([boxes[..., :6], anchors[..., 6:7] - codes[..., 6:7], boxes[..., 7:]], -1)
        return boxes


@dataclass(frozen=True)
class PointResidualCoder:
    """Boxes relative to points, with the mean size of each class or without (PointRCNN, Shi et al. 2019).

    mean_sizes: one (dx, dy, dz) per class, or None for plain offsets and logarithms. The heading is (cos, sin).
    """

    mean_sizes: tuple[tuple[float, float, float], ...] | None = None

    code_size = 8

    def encode(self, boxes: Tensor, points: Tensor, labels: Tensor | None = None) -> Tensor:
        """Codes of boxes for the points that stand for them.

        Args:
            boxes: floating-point [N, 7 + E].
            points: [N, 3] in metres.
            labels: int64 [N], 0-based, where sizes are coded relative to the mean of a class.

        Returns:
            [N, 8 + E].
        """
        heading = boxes[..., 6:7]
        angles = [heading.cos(), heading.sin(), boxes[..., 7:]]
        size = boxes[..., 3:6].clamp_min(SMALLEST_SIZE)
        offset = boxes[..., :3] - points[..., :3]
        if self.mean_sizes is None:
            return torch.cat([offset, size.log(), *angles], -1)
        mean = self._means(labels, boxes)
        return torch.cat([offset / _units(mean), torch.log(size / mean), *angles], -1)

    def decode(self, codes: Tensor, points: Tensor, labels: Tensor | None = None) -> Tensor:
        """Boxes [N, 7 + E] from codes [N, 8 + E]. The other arguments as in `encode`."""
        heading = torch.atan2(codes[..., 7:8], codes[..., 6:7])
        if self.mean_sizes is None:
            return torch.cat([codes[..., :3] + points[..., :3], codes[..., 3:6].exp(), heading, codes[..., 8:]], -1)
        mean = self._means(labels, codes)
        center = codes[..., :3] * _units(mean) + points[..., :3]
        return torch.cat([center, codes[..., 3:6].exp() * mean, heading, codes[..., 8:]], -1)

    def _means(self, labels: Tensor | None, like: Tensor) -> Tensor:
        sizes: Sequence[Sequence[float]] = self.mean_sizes or ()
        if labels is None:
            raise ValueError("labels must be given where the coder has mean sizes")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(sizes):
            raise ValueError(f"labels must lie in [0, {len(sizes)}), the classes that have a mean size")
        return like.new_tensor(sizes)[labels]


def lifted(boxes: Tensor) -> Tensor:
    """Boxes [N, >= 7] moved up by half their height, [N, 7]: their overlap is that of boxes taken to stand at z."""
    return torch.cat([boxes[:, :2], boxes[:, 2:3] + boxes[:, 5:6] / 2, boxes[:, 3:7]], 1)


def _units(size: Tensor) -> Tensor:
    """What offsets in x, y, z are measured in: BEV diagonal, BEV diagonal, height."""
    diagonal = torch.sqrt(size[..., 0:1] ** 2 + size[..., 1:2] ** 2)
    return torch.cat([diagonal, diagonal, size[..., 2:3]], -1)
