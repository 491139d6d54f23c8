"""Sparse convolutions, and the best of occupied cells, written with basic operators, for one frame."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pcdet_ext.export.basics import count_up, inverse_of, rows, unique
from pcdet_ext.export.operators import argsort, scatter_rows
from pcdet_ext.models.layers import sparse_conv
from pcdet_ext.models.layers.gathered_conv import cell_coords
from pcdet_ext.models.layers.sparse_conv import NeighbourTable, Pairs, Triple
from pcdet_ext.structures import SparseVoxels

STEPS = 22  # of a binary search, enough for 2²² voxels


def search_sorted(ascending: Tensor, wanted: Tensor) -> Tensor:
    """How many of int64 [N] are below each wanted one; int64 of the shape of `wanted`."""
    low = torch.zeros_like(wanted)
    high = torch.ones_like(wanted) * ascending.shape[0]
    last = high - 1
    for _ in range(STEPS):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        below = (ascending[torch.minimum(middle, last)] < wanted) & (low < high)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low


def neighbour_table(keys: Tensor, shifts: Tensor) -> Tensor:
    """See `pcdet_ext.ops.neighbours.neighbour_table`."""
    order = argsort(keys)
    ascending, wanted = keys[order], keys[:, None] + shifts
    place = torch.minimum(search_sorted(ascending, wanted), torch.ones_like(wanted) * (keys.shape[0] - 1))
    return torch.where(ascending[place] == wanted, order[place], -1)


def submanifold_pairs(voxels: SparseVoxels, kernel: Triple) -> Pairs:
    """See `pcdet_ext.models.layers.sparse_conv.submanifold_pairs`."""
    keys, shifts = sparse_conv._keys_and_shifts(voxels, kernel)
    centre = shifts.shape[0] // 2
    table = neighbour_table(keys, shifts[:centre])
    first = []
    for column in table.unbind(1):
        out = rows(column >= 0)
        first.append((column[out], out))
    same = torch.arange(keys.shape[0])
    return [*first, (same, same), *((out, into) for into, out in reversed(first))]


def strided_table(
    voxels: SparseVoxels, kernel: Triple, stride: Triple, padding: Triple, out_grid: Triple, first_seen: bool = False
) -> NeighbourTable:
    """The form of `pcdet_ext.models.layers.sparse_conv.strided_table` for export. Arguments as in that function."""
    coords = voxels.coords.long()
    strides = sparse_conv._key_strides(out_grid)
    axes = [
        [sparse_conv._reached(coords[:, a + 1], k, stride[a], padding[a], out_grid[a]) for k in range(kernel[a])]
        for a in range(3)
    ]
    inputs, keys = [], []
    for (z, in_z), (y, in_y), (x, in_x) in itertools.product(*axes):
        row = rows(in_z & in_y & in_x)
        inputs.append(row)
        keys.append(z[row] * strides[1] + y[row] * strides[2] + x[row])
    distinct, place, _ = unique(torch.cat(keys))
    if first_seen:
        order = argsort(scatter_rows(place.shape[0] + torch.zeros_like(distinct), place, count_up(place), "min"))
        distinct, place = distinct[order], inverse_of(order)[place]
    pairs, start = [], torch.zeros((), dtype=torch.int64)
    for row in inputs:
        end = start + row.shape[0]
        pairs.append((row, place[start:end]))
        start = end
    return NeighbourTable(pairs, cell_coords(distinct, out_grid), out_grid)


def apply(features: Tensor, weight: Tensor, pairs: Pairs, count: int) -> Tensor:
    """The form of `pcdet_ext.models.layers.sparse_conv._apply` for export. Arguments as in that function."""
    result = features.new_zeros(count, weight.shape[0])
    for cell, (into, out) in zip(weight.flatten(1, 3).unbind(1), pairs, strict=True):
        if into is out:  # the centre of a submanifold convolution
            result = result + features @ cell.t()
        else:
            result = scatter_rows(result, out, features[into] @ cell.t(), "add")
    return result


def depthwise_conv(features: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    """The form of `pcdet_ext.ops.octree_depthwise_conv` for export, one kernel cell after the other.

    Arguments as in that function.
    """
    padded = torch.cat([features.new_zeros(1, features.shape[1]), features])
    total = torch.zeros_like(padded[neighbours[:, 0]])
    for cell, column in zip(weights.unbind(0), neighbours.unbind(1), strict=True):
        total = total + padded[column + 1] * cell
    return total


def best_sites(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The form of `pcdet_ext.models.heads.sites.best_sites` for export. Arguments as in that function."""
    rows_of = [argsort(-column)[:most] for column in scores.unbind(1)]
    values = torch.cat([column[row] for column, row in zip(scores.unbind(1), rows_of, strict=True)])
    columns = torch.cat([torch.zeros_like(row) + number for number, row in enumerate(rows_of)])
    order = argsort(-values)[:most]
    return values[order], torch.cat(rows_of)[order], columns[order]
