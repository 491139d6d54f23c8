"""Merging voxels into coarser ones, with a spatial descriptor and voxel generation (LION, Liu et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.sparse_conv import SubMConv3d, Triple
from pcdet_ext.ops.segment import segment_reduce
from pcdet_ext.ops.unique_numbers import unique_numbers
from pcdet_ext.structures import SparseVoxels

DIAGONALS = ((1, -1), (1, 1), (-1, -1), (-1, 1))  # (y, x) of the voxels that one foreground voxel diffuses to


class VoxelMerging(nn.Module):
    """Merge voxels into larger ones (LION, Liu et al., NeurIPS 2024, sections 3.2 and 3.3).

    They are described (3×3×3 convolution, LayerNorm, GELU), some are generated, and those of a cell are summed
    (LayerNorm). Voxels that share a cell already become one where they are not described.

    Args:
        channels: of the features.
        scale: cells along z, y and x that become one.
        generation: share of the voxels, those of the highest mean feature after the description, that put four new
            voxels without features at their diagonal neighbours in x and y.
        floor_keys: whether coarse cells are numbered by the grid's size over the scale rounded down, as published:
            where a size does not divide, cells may get the number of others. By default such a grid is refused.
        out_channels: of the result, which the description brings about; None for as many as come.
        described: whether there is a description.

    Raises:
        ValueError: the scale or the share is impossible, or the channels change without a description.
    """

    def __init__(
        self,
        channels: int,
        scale: Sequence[int],
        generation: float = 0.0,
        floor_keys: bool = False,
        out_channels: int | None = None,
        described: bool = True,
    ) -> None:
        super().__init__()
        sizes = tuple(scale)
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(f"scale must be three numbers (z, y, x), at least 1, got {list(scale)}")
        self.scale: Triple = sizes
        self.generation, self.floor_keys = generation, floor_keys
        if not 0 <= generation <= 1:
            raise ValueError(f"generation must be in [0, 1], got {generation}")
        width = channels if out_channels is None else out_channels
        if not described and width != channels:
            raise ValueError(f"{channels} channels become {width} in a description only, which is switched off")
        self.describe = None
        if described:
            self.describe = nn.Sequential(SubMConv3d(channels, width, 3), nn.LayerNorm(width), nn.GELU())
        self.norm = nn.LayerNorm(width)

    def forward(self, voxels: SparseVoxels) -> tuple[SparseVoxels, Tensor]:
        """Voxels [N, C] to merged voxels [M, C], and the row int64 [N + new] that each voxel was merged into.

        New voxels stand after the given ones, frame after frame; merged ones ascend by (batch, x, y, z).
        Raises ValueError where the grid does not divide by the scale (but see `floor_keys`).
        """
        features = self._described(voxels)
        coords = voxels.coords.long()
        if self.generation:
            coords = torch.cat([coords, self._generate(features.detach(), coords, voxels)])
        grid = self.out_grid(voxels.grid)
        cells = self._whole_cells(voxels.grid) if self.floor_keys else grid
        merged, parent = merge_cells(coords, self.scale, cells, voxels.batch_size)
        features = self.norm(segment_reduce(features, parent[: len(features)], len(merged)))
        return SparseVoxels(features, merged, grid, voxels.batch_size), parent

    def _described(self, voxels: SparseVoxels) -> Tensor:
        if self.describe is None:
            return voxels.features
        conv, *rest = self.describe
        features: Tensor = conv(voxels).features
        for layer in rest:
            features = layer(features)
        return features

    def out_grid(self, grid: Triple) -> Triple:
        """Cells (Z, Y, X) after merging; ValueError where `grid` does not divide by the scale (see `floor_keys`)."""
        if not self.floor_keys and any(n % s for n, s in zip(grid, self.scale, strict=True)):
            raise ValueError(f"a grid of {tuple(grid)} cells (Z, Y, X) does not divide by the scale {self.scale}")
        z, y, x = (-(-n // s) for n, s in zip(grid, self.scale, strict=True))
        return z, y, x

    def _whole_cells(self, grid: Triple) -> Triple:
        z, y, x = (n // s for n, s in zip(grid, self.scale, strict=True))
        return z, y, x

    def _generate(self, features: Tensor, coords: Tensor, voxels: SparseVoxels) -> Tensor:
        """Coordinates int64 [K, 4] of new voxels: for each diagonal those of all foreground voxels, the best first."""
        frame = coords[:, 0]
        counts = torch.bincount(frame, minlength=voxels.batch_size)
        best = torch.argsort(features.mean(1), descending=True, stable=True)
        best = best[torch.argsort(frame[best], stable=True)]
        chosen = (counts.double() * self.generation).long()
        new = chosen * len(DIAGONALS)
        into = torch.repeat_interleave(new)
        place = torch.arange(len(into), device=into.device) - (new.cumsum(0) - new)[into]
        source = coords[best[(counts.cumsum(0) - counts)[into] + place % chosen[into]]]
        step = coords.new_tensor(DIAGONALS)[place // chosen[into]]
        moved = source[:, 2:] + step
        limit = coords.new_tensor(voxels.grid[1:]) - 1
        return torch.cat([source[:, :2], torch.minimum(moved.clamp(min=0), limit)], 1)


def merge_cells(coords: Tensor, scale: Triple, cells: Triple, frames: int) -> tuple[Tensor, Tensor]:
    """Coarse cells, and the one that each voxel falls into.

    Args:
        coords: int64 [N, 4] (batch, z, y, x).
        scale: fine cells in a coarse one along z, y and x.
        cells: coarse cells along z, y and x; a voxel may lie one beyond the last.
        frames: of the batch.

    Returns:
        int32 [M, 4], ascending by (batch, x, y, z), and int64 [N], the row of each voxel's cell.
    """
    z, y, x = (torch.div(coords[:, i + 1], scale[i], rounding_mode="floor") for i in range(3))
    depth, height, width = cells
    keys = ((coords[:, 0] * width + x) * height + y) * depth + z
    unique, parent = unique_numbers(keys, ((frames * width + 1) * height + 1) * depth + 1)
    column = torch.div(unique, depth, rounding_mode="floor")
    plane = torch.div(column, height, rounding_mode="floor")
    frame = torch.div(plane, width, rounding_mode="floor")
    merged = torch.stack([frame, unique % depth, column % height, plane % width], 1)
    return merged.int(), parent
