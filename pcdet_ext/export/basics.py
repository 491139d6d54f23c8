"""Operations of the library written with basic operators alone, as they are recorded for ONNX.

They give what the kernels give, for any number of rows, also none. Arguments are as in `pcdet_ext.ops`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcdet_ext.export.operators import argsort, scatter_rows


def rows(index: Tensor) -> Tensor:
    """Positions int64 [K] at which bool [N] is True."""
    return index.nonzero()[:, 0]


def number(x: Tensor) -> Any:
    """How many rows a tensor has, recorded also where it has one by chance (see `recording`)."""
    with torch._C.DisableTorchFunction():
        return x.shape[0]


def count_up(like: Tensor) -> Tensor:
    """0, 1, 2, … int64 [N] for a tensor [N, ...]."""
    return torch.arange(number(like))


def inverse_of(order: Tensor) -> Tensor:
    """The inverse of a permutation int64 [N]."""
    return scatter_rows(torch.zeros_like(order), order, count_up(order), "none")


def starts(counts: Tensor) -> Tensor:
    """Exclusive running sum of int64 [N]."""
    return counts.cumsum(0) - counts


def new_runs(values: Tensor) -> Tensor:
    """bool [N]: whether each of values int64 [N] differs from the one before it."""
    before = torch.cat([values[:1] - 1, values[:-1]])
    return values != before


def run_lengths(new: Tensor) -> tuple[Tensor, Tensor]:
    """Where runs start, int64 [R], and how long they are, int64 [R], from `new_runs` [N]."""
    first = rows(new)
    end = torch.cat([first[1:], torch.ones_like(first[:1]) * number(new)])
    return first, end - first


class Runs(NamedTuple):
    """Equal values together: their stable ascending order [N], the distinct values [U], where in the order each begins
    [U], how often it is there [U], and the place of each value among them [N]; all int64."""

    order: Tensor
    distinct: Tensor
    first: Tensor
    counts: Tensor
    place: Tensor


def runs_of(values: Tensor) -> Runs:
    """The runs of int64 [N] when sorted."""
    order = argsort(values)
    ordered = values[order]
    new = new_runs(ordered)
    first, counts = run_lengths(new)
    place = scatter_rows(torch.zeros_like(values), order, new.long().cumsum(0) - 1, "none")
    return Runs(order, ordered[first], first, counts, place)


def unique(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending distinct values [U] of int64 [N], the place of each value among them [N], and their counts [U]."""
    runs = runs_of(values)
    return runs.distinct, runs.place, runs.counts


def repeat_each(counts: Tensor) -> Tensor:
    """0 counts[0] times, then 1 counts[1] times, …: int64 [Σ counts] for positive counts int64 [N]."""
    marks = torch.zeros_like(torch.arange(counts.sum()))  # type: ignore[call-overload]  # a recorded number
    first = starts(counts)
    return scatter_rows(marks, first[1:], torch.ones_like(first[1:]), "add").cumsum(0)


def segment_reduce(values: Tensor, index: Tensor, num_segments: int, reduce: str = "sum") -> Tensor:
    """The form of `pcdet_ext.ops.segment_reduce` for export. Arguments as in that function."""
    kept = rows(index >= 0)
    values, index = values[kept], index[kept]
    if reduce in ("sum", "mean"):
        total = scatter_rows(values.new_zeros(num_segments, values.shape[1]), index, values, "add")
        if reduce == "sum":
            return total
        ones = values.new_ones(values.shape[0])
        count = scatter_rows(values.new_zeros(num_segments), index, ones, "add")
        return total / count.clamp(min=1)[:, None]
    lowest = -torch.inf if reduce == "max" else torch.inf
    best = scatter_rows(values.new_full((num_segments, values.shape[1]), lowest), index, values, reduce)
    return torch.where(best == lowest, 0.0, best)


def segment_softmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The form of `pcdet_ext.ops.segment_softmax` for export. Arguments as in that function.

    Every row is in a segment.
    """
    raised = (values - segment_reduce(values, index, num_segments, "max")[index]).exp()
    return raised / segment_reduce(raised, index, num_segments, "sum")[index]


def cells_of_points(points: Tensor, grid: Any) -> Tensor:
    """Number int64 [P] of each point's cell, -1 outside; grid: from `pcdet_ext.ops.voxelize`."""
    low, size = (torch.tensor(list(t), dtype=torch.float32) for t in (grid.low, grid.size))
    place = ((points[:, :3] - low) / size).floor()
    inside = ((place >= 0) & (place < torch.tensor(list(grid.cells)))).all(1)
    cells = (torch.where(inside[:, None], place, 0.0).long() * torch.tensor(list(grid.strides))).sum(1)
    return torch.where(inside, cells, -1)


def cell_coords(cells: Tensor, grid: Any) -> Tensor:
    """Coordinates int32 [M, 4] (0, z, y, x) of cells int64 [M] of one frame."""
    axes = [torch.div(cells, grid.strides[a], rounding_mode="floor") % grid.cells[a] for a in (2, 1, 0)]
    return torch.stack([torch.zeros_like(cells), *axes], 1).int()
