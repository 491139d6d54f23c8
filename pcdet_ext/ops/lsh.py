"""The buckets of locality-sensitive hashing (Datar et al., SCG 2004), from which `serialize` makes keys."""

from __future__ import annotations

import math

import torch

KEY_BITS = 48  # of a key, below those of its frame


def lsh_axes(
    grid: tuple[int, ...], projections: int, width: float, seed: int, border_shift: float
) -> tuple[list[tuple[int, int, list[int]]], int]:
    """What makes the buckets of "lsh" on a grid; arguments as in `serialize`.

    Returns:
        For each direction how many buckets there are, what is added so that no value is negative, and the direction
        (Z, Y, X) in units of 2⁻¹⁶; and the width of a bucket in these units.

    Raises:
        ValueError: keys would need more than 48 bits.
    """
    generator = torch.Generator("cpu").manual_seed(int(seed))
    directions = torch.randn(projections, 3, generator=generator, dtype=torch.float64, device="cpu")
    directions = (directions / directions.norm(dim=1, keepdim=True) * (1 << 16)).round().long()
    step = max(1, round(width * (1 << 16)))
    offset = (torch.rand(projections, generator=generator, dtype=torch.float64, device="cpu") * step).long()
    offset = (offset + round(border_shift * step)) % step
    cells = directions.new_tensor(grid)
    low = (directions.clamp(max=0) * cells).sum(1)  # the smallest value on the grid
    high = (directions.clamp(min=0) * cells).sum(1)
    buckets = (high - low + offset) // step + 1
    if math.prod(buckets.tolist()) >= 1 << KEY_BITS:
        raise ValueError(
            f"width {width} is too small for {projections} projections of grid {list(grid)}: "
            f"keys need over {KEY_BITS} bits"
        )
    starts = (offset - low).tolist()
    return list(zip(buckets.tolist(), starts, directions.tolist(), strict=True)), step
