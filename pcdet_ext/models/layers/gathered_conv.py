"""Sparse convolution as one matrix product over gathered neighbours: few, large steps, as GPUs want them.

The rows that an output reads are laid side by side, zeros where there is none, and multiplied with the weights of all
kernel cells at once. `sparse_conv` has the layers, and the form in pairs, which computes nothing for cells that are not
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcdet_ext.ops.neighbours import gather_neighbours
from pcdet_ext.ops.unique_numbers import unique_numbers
from pcdet_ext.structures import SparseVoxels

Triple = tuple[int, int, int]
MOST_BYTES = 1 << 28  # of gathered neighbours at a time


@dataclass(frozen=True)
class GatherTable:
    """Who reads whom in a convolution.

    Args:
        reads: int32 [M, K], the input row that each output reads through each kernel cell, -1 for none.
        readers: int32 [N, K], the same seen from the inputs: the output row that reads each input through each cell.
        coords: int32 [M, 4] of the outputs.
        grid: of the outputs.
        plans: cache that all outputs with these coordinates share.
    """

    reads: Tensor
    readers: Tensor
    coords: Tensor
    grid: Triple
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)


def submanifold_gather(voxels: SparseVoxels, neighbours: Tensor) -> GatherTable:
    """The table of a submanifold convolution from its neighbours int64 [N, K]: who reads whom is point-symmetric."""
    reads = neighbours.int()
    return GatherTable(reads, reads.flip(1), voxels.coords, voxels.grid)


def strided_gather(
    voxels: SparseVoxels, kernel: Triple, stride: Triple, padding: Triple, out_grid: Triple
) -> GatherTable:
    """The table of a convolution whose outputs ascend by (batch, z, y, x).

    Args:
        voxels: the input.
        kernel: cells (Z, Y, X).
        stride: cells (Z, Y, X).
        padding: cells (Z, Y, X).
        out_grid: cells (Z, Y, X) of the output.
    """
    n, cells, device = len(voxels), math.prod(kernel), voxels.coords.device
    keys = voxels.coords[:, 0].long().view(n, 1, 1, 1)
    there = torch.ones_like(keys, dtype=torch.bool)
    for axis in range(3):
        position = voxels.coords[:, axis + 1].long()[:, None] + padding[axis]
        shifted = position - torch.arange(kernel[axis], device=device)
        cell = torch.div(shifted, stride[axis], rounding_mode="floor")
        fits = (cell * stride[axis] == shifted) & (cell >= 0) & (cell < out_grid[axis])
        shape = [n, *(kernel[axis] if a == axis else 1 for a in range(3))]
        keys = keys * out_grid[axis] + cell.view(shape)
        there = there & fits.view(shape)
    numbers = torch.where(there, keys, -1).flatten()
    found, row = unique_numbers(numbers, voxels.batch_size * math.prod(out_grid))
    readers = row.view(n, cells)
    reads = torch.full((len(found) * cells + 1,), -1, dtype=torch.int32, device=device)  # the last takes what is none
    place = torch.where(readers < 0, len(found) * cells, readers * cells + torch.arange(cells, device=device))
    reads[place.flatten()] = torch.arange(n, device=device, dtype=torch.int32).repeat_interleave(cells)
    coords = cell_coords(found, out_grid)
    return GatherTable(reads[:-1].view(-1, cells), readers.int(), coords, out_grid)


def cell_coords(numbers: Tensor, grid: Triple) -> Tensor:
    """Coordinates int32 [M, 4] of numbers of cells, frame after frame."""
    plane, x = numbers // grid[2], numbers % grid[2]
    volume, y = plane // grid[1], plane % grid[1]
    return torch.stack([volume // grid[0], volume % grid[0], y, x], dim=1).int()


def convolve_gathered(features: Tensor, weight: Tensor, table: GatherTable) -> Tensor:
    """A convolution over gathered neighbours. Sums run in a fixed order, so results and gradients repeat.

    Args:
        features: [N, Cin].
        weight: [Cout, kz, ky, kx, Cin], in whose type it is computed.
        table: which rows each output reads.

    Returns:
        [M, Cout].
    """
    apply: Callable[..., Tensor] = _GatheredConvolution.apply
    return apply(features.to(weight.dtype), weight, table)


class _GatheredConvolution(torch.autograd.Function):
    """Σ over kernel cells of the neighbours times the cell's weights; neighbours are gathered again for gradients."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, table: GatherTable) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.table = table
        return _multiply(features, table.reads, weight.flatten(1).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (features, weight), table = ctx.saved_tensors, ctx.table
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            back = weight.flatten(1, 3).transpose(0, 1).flatten(0, 1)  # [K * Cout, Cin]
            grad_features = _multiply(grad, table.readers, back)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            for rows, neighbours in _gathered(features, table.reads):
                grad_weight.flatten(1).addmm_(grad[rows].t(), neighbours)
        return grad_features, grad_weight, None


def _multiply(features: Tensor, table: Tensor, matrix: Tensor) -> Tensor:
    """The neighbours [M, K * C] that a table names times a matrix [K * C, D]."""
    out = features.new_empty(len(table), matrix.shape[1])
    for rows, neighbours in _gathered(features, table):
        torch.mm(neighbours, matrix, out=out[rows])
    return out


def _gathered(features: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a table, and their neighbours [rows, K * C], some at a time."""
    step = max(1, MOST_BYTES // max(1, table.shape[1] * features.shape[1] * features.element_size()))
    for first in range(0, len(table), step):
        rows = slice(first, min(first + step, len(table)))
        yield rows, gather_neighbours(features, table[rows]).flatten(1)
