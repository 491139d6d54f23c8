"""Conversions to and from the boxes of older LiDAR codebases."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def to_second(boxes: Tensor) -> Tensor:
    """Boxes [N, 7] as SECOND wrote them: (x, y, z of the lower face, width, length, height, -(heading + π/2))."""
    x, y, z, length, width, height, heading = boxes.unbind(-1)
    return torch.stack([x, y, z - height / 2, width, length, height, -(heading + math.pi / 2)], -1)


def from_second(boxes: Tensor) -> Tensor:
    """The inverse of `to_second`."""
    x, y, bottom, width, length, height, rotation = boxes.unbind(-1)
    return torch.stack([x, y, bottom + height / 2, length, width, height, -(rotation + math.pi / 2)], -1)
