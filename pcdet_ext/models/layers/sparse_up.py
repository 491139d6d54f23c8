"""From coarse voxels to finer ones: generative transposed convolution, unions and pruning (Gwak et al., ECCV 2020)."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.lookup import rows_of
from pcdet_ext.structures import SparseVoxels

PruneBy = Literal["parent", "interpolated"]
OCTANTS = tuple(itertools.product((0, 1), repeat=3))  # (z, y, x) of the children of a voxel


class GenerativeTransposedConv3d(nn.Module):
    """Each voxel makes all of its eight children: a transposed convolution of 2³ cells with stride 2, without bias.

    weight: [out, 2, 2, 2, in], the kernel along z, y and x, as `SparseConv3d` has it. The children of a voxel stand
    one after the other, x changing fastest.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, 2, 2, 2, in_channels))
        bound = 1 / math.sqrt(in_channels)  # each output cell reads one input cell
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to [8 N, out_channels] on a grid of twice as many cells along each axis."""
        rows = torch.einsum("ni,oki->nko", voxels.features, self.weight.flatten(1, 3))
        octants = torch.tensor([(0, *octant) for octant in OCTANTS], device=voxels.coords.device)
        scale = torch.tensor([1, 2, 2, 2], device=voxels.coords.device)
        coords = (voxels.coords[:, None] * scale + octants).flatten(0, 1).to(voxels.coords.dtype)
        z, y, x = voxels.grid
        return SparseVoxels(rows.flatten(0, 1), coords, (2 * z, 2 * y, 2 * x), voxels.batch_size)


def union(a: SparseVoxels, b: SparseVoxels) -> SparseVoxels:
    """The cells that either has, with the sum of the features there; a cell that one lacks has zeros in it.

    Args:
        a: features [N, C].
        b: features [M, C] on the same grid.

    Returns:
        Cells in ascending order of (batch, z, y, x).

    Raises:
        ValueError: the grids differ.
    """
    if a.grid != b.grid:
        raise ValueError(f"voxels to be joined must be on one grid, got {a.grid} and {b.grid}")
    z, y, x = a.grid
    coords = torch.cat([a.coords, b.coords])
    strides = torch.tensor([z * y * x, y * x, x, 1], device=coords.device)
    keys, place = torch.unique((coords.long() * strides).sum(1), return_inverse=True)
    first, second = place.split([len(a), len(b)])
    dtype = torch.promote_types(a.features.dtype, b.features.dtype)
    # Each has a cell at most once, so a sum has two terms and is the same in any order.
    sums = torch.zeros(len(keys), a.features.shape[1], dtype=dtype, device=coords.device)
    sums = sums.index_add(0, first, a.features.to(dtype)).index_add(0, second, b.features.to(dtype))
    joined = coords.new_empty(len(keys), 4).index_copy(0, place, coords)
    return SparseVoxels(sums, joined, a.grid, a.batch_size)


def prune(voxels: SparseVoxels, scores: Tensor, most: int) -> SparseVoxels:
    """The cells with the best scores of each frame; of equal scores the earlier row stays.

    Args:
        voxels: features [N, C].
        scores: [N].
        most: cells that stay in a frame.

    Returns:
        What stays, in its order; `voxels` itself where no frame has more.
    """
    counts = torch.bincount(voxels.coords[:, 0].long(), minlength=voxels.batch_size)
    if int(counts.max()) <= most:
        return voxels
    best = scores.argsort(descending=True, stable=True)
    best = best[voxels.coords[best, 0].long().argsort(stable=True)]  # frame after frame, best first
    rank = torch.arange(len(best), device=best.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = best[rank < most].sort().values
    return SparseVoxels(voxels.features[kept], voxels.coords[kept], voxels.grid, voxels.batch_size)


def scores_below(coarse: SparseVoxels, fine: SparseVoxels, by: PruneBy) -> Tensor:
    """What scores of coarse voxels say of voxels on a grid of twice as many cells along each axis.

    Args:
        coarse: features [N, 1], the scores.
        fine: the voxels that are asked for.
        by: "parent": the score of the voxel that a cell lies in, -inf where there is none. "interpolated": between
            the lower corners of up to eight coarse voxels, weighted by distance along each axis; one that is not there
            counts as a score of 0 (MinkowskiEngine's interpolation, with which FCAF3D was published).

    Returns:
        [M], for the rows of `fine`.
    """
    cells = fine.coords.long()
    parent = torch.cat([cells[:, :1], torch.div(cells[:, 1:], 2, rounding_mode="floor")], 1)
    scores = coarse.features[:, 0]
    if by == "parent":
        return _at(scores, rows_of(coarse, parent), -torch.inf)
    grid = torch.tensor(coarse.grid, device=cells.device)
    between = cells[:, 1:] % 2  # a cell is at the corner of its parent along an axis, or half-way to the next one
    total = torch.zeros(len(fine), dtype=scores.dtype, device=scores.device)
    for octant in OCTANTS:
        step = torch.tensor(octant, device=cells.device)
        weight = torch.where(between == 1, 0.5, (step == 0).to(scores.dtype)).prod(1)
        there = parent[:, 1:] + step
        inside = (there < grid).all(1)
        rows = rows_of(coarse, torch.cat([parent[:, :1], torch.where(inside[:, None], there, 0)], 1))
        total = total + weight * _at(scores, torch.where(inside, rows, -1), 0.0)
    return total


def _at(scores: Tensor, rows: Tensor, missing: float) -> Tensor:
    """scores[rows], and `missing` where rows are -1."""
    return torch.cat([scores, scores.new_full((1,), missing)])[rows]
