"""Position embeddings without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoidal_embedding(
    xy: Tensor, channels: int, temperature: float = 10000.0, grid: Sequence[int] | None = None
) -> Tensor:
    """Sines and cosines of cell indices (FlatFormer, Liu et al., CVPR 2023; after Vaswani et al., 2017).

    Args:
        xy: [N, 2], the cell along x and y.
        channels: C. The first half of the columns is of x, the other of y; even columns are sines, odd ones cosines.
            Columns that do not divide by four are zero at the end.
        temperature: ratio of the longest wavelength to the shortest, about.
        grid: cells along x and y; indices are then scaled to about [0, 2π] (6.283, the published constant).

    Returns:
        float32 [N, C].

    Raises:
        ValueError: there are fewer than four channels.
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
