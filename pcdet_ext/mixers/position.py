"""Position embeddings without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoidal_embedding(
    xy: Tensor, channels: int, temperature: float = 10000.0, grid: Sequence[int] | None = None
) -> Tensor:
    """Sines and cosines of cell indices (FlatFormer, Liu et al., CVPR 2023; after Vaswani et al., 2017).

    xy: [N, 2], cell along x and y; channels: columns of the result, float32 [N, channels]: first half of x, then of y,
    even columns sine, odd cosine; columns that do not divide by four are zero at the end. grid: (X, Y) cells: indices
    are then scaled to about [0, 2π] (6.283, the published constant). Raises ValueError for fewer than four channels.
    """
    if channels < 4:
        raise ValueError(f"channels must be at least 4, got {channels}")
    xy = xy.to(torch.float32)
    if grid is not None:
        xy = xy / xy.new_tensor([float(n) for n in grid]) * 2 * 3.1415
    half = channels // 4 * 2
    exponent = torch.arange(half, device=xy.device, dtype=torch.float32).div(2, rounding_mode="floor") * 2 / half
    phase = xy[:, :, None] / temperature**exponent
    waves = torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(1)
    return torch.nn.functional.pad(waves, (0, channels - 2 * half))
