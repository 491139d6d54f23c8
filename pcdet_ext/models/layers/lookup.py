"""Which voxel lies in a cell."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.structures import SparseVoxels


def rows_of(voxels: SparseVoxels, cells: Tensor) -> Tensor:
    """Row int64 [P] of the voxel in each cell int64 [P, 4], -1 for empty cells."""
    if not len(voxels):
        return torch.full((len(cells),), -1, device=cells.device)
    depth, height, width = voxels.grid

    def keys(coords: Tensor) -> Tensor:
        b, z, y, x = coords.long().unbind(1)
        return ((b * depth + z) * height + y) * width + x

    found, order = keys(voxels.coords).sort()
    wanted = keys(cells)
    place = torch.searchsorted(found, wanted).clamp(max=len(found) - 1)
    return torch.where(found[place] == wanted, order[place], -1)
