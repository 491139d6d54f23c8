"""Embeddings of a voxel's place in the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.structures import SparseVoxels

TWO_PI = 2 * 3.1415  # the published constant


class GridPosition(nn.Module):
    """A small network of the place (x, y, z) in about [−π, π] over the voxels' own grid (LION, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = SparseBatchNorm(channels, eps=1e-5, momentum=0.1)
        self.mlp = nn.Sequential(nn.Linear(3, channels), norm, nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, voxels: SparseVoxels) -> Tensor:
        """Embeddings [N, C]."""
        size = voxels.features.new_tensor(voxels.grid)
        return self.mlp(((voxels.coords[:, 1:] - size / 2) / size * TWO_PI).flip(1))


class FixedGridPosition(nn.Module):
    """A small network of the place in [-1, 1] over a grid (Z, Y, X) that is known beforehand."""

    cells: Tensor

    def __init__(self, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("cells", torch.tensor(list(grid), dtype=torch.float32), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(3, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, voxels: SparseVoxels) -> Tensor:
        """Embeddings [N, C]."""
        place = (voxels.coords[:, 1:] + 0.5) / self.cells * 2 - 1
        return self.mlp(place.to(next(self.mlp.parameters()).dtype))
