"""Which points of two sets belong together."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def mutual_nearest(source: Tensor, target: Tensor, distance: float = torch.inf) -> tuple[Tensor, Tensor]:
    """Rows of two sets each of which is the nearest of the other, by L2 distance.

    Args:
        source: [N, D].
        target: [M, D].
        distance: pairs that are further apart are left out.

    Returns:
        Rows int64 [K] of the source, ascending, and their partners int64 [K] in the target.
    """
    if not len(source) or not len(target):
        none = torch.zeros(0, dtype=torch.int64, device=source.device)
        return none, none
    length, there = _nearest(source, target)
    back = _nearest(target, source)[1]
    rows = torch.arange(len(source), device=source.device)
    kept = rows[(back[there] == rows) & (length <= distance)]
    return kept, there[kept]


def _nearest(source: Tensor, target: Tensor, chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """Distance to, and row of, the nearest target of each source."""
    found = [torch.cdist(part, target).min(1) for part in source.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
