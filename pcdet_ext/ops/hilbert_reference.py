"""The Hilbert curve in PyTorch on any device: Skilling's transform (AIP Conf. Proc. 707, 2004)."""

from __future__ import annotations

import torch
from torch import Tensor


def hilbert_transpose(x: Tensor, y: Tensor, z: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of places on the curve, which interleaved with x highest are the key.

    Args:
        x: coordinates int64 [N].
        y: coordinates int64 [N].
        z: coordinates int64 [N].
        depth: bits of a coordinate.

    Returns:
        Three int64 [N].
    """
    axes = [x, y, z]
    for level in range(depth - 1, 0, -1):
        axes = _hilbert_level(axes, level, (0, 1, 2))
    x, y, z = axes
    y = y ^ x
    z = z ^ y
    flip = torch.zeros_like(z)
    for level in range(depth - 1, 0, -1):
        flip = flip ^ ((z >> level) & 1) * ((1 << level) - 1)
    return x ^ flip, y ^ flip, z ^ flip


def hilbert_untranspose(x: Tensor, y: Tensor, z: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `hilbert_transpose`. Arguments as in that function."""
    x, y, z = x ^ (z >> 1), y ^ x, z ^ y
    axes = [x, y, z]
    for level in range(1, depth):
        axes = _hilbert_level(axes, level, (2, 1, 0))
    return axes[0], axes[1], axes[2]


def _hilbert_level(axes: list[Tensor], level: int, turns: tuple[int, ...]) -> list[Tensor]:
    """Skilling's inner loop at one bit: invert the lower bits of the first axis, or exchange them with an axis."""
    axes = list(axes)
    lower = (1 << level) - 1
    for i in turns:
        is_set = ((axes[i] >> level) & 1).bool()
        exchange = torch.where(is_set, 0, (axes[0] ^ axes[i]) & lower)
        axes[0] = axes[0] ^ torch.where(is_set, lower, exchange)
        if i:
            axes[i] = axes[i] ^ exchange
    return axes
