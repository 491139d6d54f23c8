"""Voxelisation: which grid cell each point falls into, with caps (hard) or keeping every point (dynamic)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, kernel_kind, launch, on_cuda
from pcdet_ext.ops._operator import differentiable_operator, integer_operator, run, shapes_of
from pcdet_ext.ops.unique_numbers import unique_numbers, unique_numbers_reference

MOST_NUMBERS = 1 << 32  # in padded voxels, 17 GB


@typed
def grid_size(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Cells along (x, y, z) of a range (minimum, then maximum, metres) in voxels (metres): the rounded quotient.

    Raises ValueError for a range or size that is not positive and finite, for fewer than one cell along an axis, and
    for a plane (x, y) or (y, z) of 2³¹ cells or more.
    """
    if len(point_cloud_range) != 6 or len(voxel_size) != 3:
        raise ValueError(
            "point_cloud_range must be six numbers and voxel_size three, "
            f"got {list(point_cloud_range)} and {list(voxel_size)}"
        )
    if not all(math.isfinite(v) and v > 0 for v in voxel_size):
        raise ValueError(f"voxel_size must be positive and finite, got {list(voxel_size)}")
    if not all(math.isfinite(v) for v in point_cloud_range):
        raise ValueError(f"point_cloud_range must be finite, got {list(point_cloud_range)}")
    if any(v >= 3e38 or v <= -3e38 for v in point_cloud_range) or max(voxel_size) >= 3e38 or min(voxel_size) < 1e-30:
        raise ValueError(
            "point_cloud_range and voxel_size must be numbers that float32 holds, "
            f"got {list(point_cloud_range)} and {list(voxel_size)}"
        )
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    x, y, z = (round((b - a) / v) for a, b, v in zip(low, high, voxel_size, strict=True))
    if min(x, y, z) < 1:
        raise ValueError(f"point_cloud_range {list(point_cloud_range)} holds no voxel of voxel_size {list(voxel_size)}")
    if max(x, z) * y >= 1 << 31:
        raise ValueError(f"voxel_size {list(voxel_size)} is too small: ({x}, {y}, {z}) cells along (x, y, z)")
    return x, y, z


@typed
def voxelize(
    points: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard voxelisation of one cloud (VoxelNet, Zhou and Tuzel, CVPR 2018). Differentiable in the points.

    Args:
        points: float32 [N, C], columns x, y, z, … in metres. NaN and infinite points are outside of the range.
        point_cloud_range: minimum (x, y, z), then maximum, in metres; half-open.
        voxel_size: size along (x, y, z) in metres.
        max_points: how many points a voxel keeps, the first in input order.
        max_voxels: how many voxels there can be, in the order in which points appear; points of others are dropped.

    Returns:
        The voxels float32 [M, max_points, C], padded with zeros, in order of first appearance; their coordinates
        int32 [M, 3] as (z, y, x); and their numbers of points int32 [M].

    Raises:
        ValueError: an argument has the wrong shape or type, range and voxel size make no grid, or the padded voxels
            would have 2³² numbers or more.
    """
    _check_points(points)
    if max_points < 1 or max_voxels < 1:
        raise ValueError(f"max_points and max_voxels must be positive, got {max_points} and {max_voxels}")
    _grid(point_cloud_range, voxel_size)  # raises outside of the operator
    return run(_voxelize, points.contiguous(), point_cloud_range, voxel_size, max_points, max_voxels)[:3]


@typed
def dynamic_voxelize(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    order: Literal["zyx", "xyz"] = "zyx",
    pillars: bool = False,
) -> tuple[Tensor, Tensor]:
    """Dynamic voxelisation of a batch (Zhou et al., CoRL 2019), which drops no point but those outside of the range.

    Args:
        points: float32 [P, C], columns x, y, z, … in metres. NaN and infinite points are outside.
        batch_index: int64 [P], the frame of each point, from 0 on, in any order.
        point_cloud_range: minimum (x, y, z), then maximum, in metres; half-open.
        voxel_size: size along (x, y, z) in metres.
        order: how voxels are sorted: "zyx" by (batch, z, y, x), "xyz" by (batch, x, y, z) as published encoders do.
        pillars: cells are columns of any height: z is not compared with the range, and is 0 in the coordinates.

    Returns:
        The coordinates int32 [N, 4] of the voxels, (batch, z, y, x) in either order, and the voxel of each point
        int64 [P], -1 for points outside.

    Raises:
        ValueError: an argument has the wrong shape, type or device, or range and voxel size make no grid.
    """
    _check_points(points)
    if batch_index.dtype != torch.int64 or batch_index.shape != points.shape[:1]:
        shape = list(batch_index.shape)
        raise ValueError(f"batch_index must be int64 [{len(points)}], got {batch_index.dtype} {shape}")
    if batch_index.device != points.device:
        raise ValueError(f"points are on {points.device}, batch_index on {batch_index.device}")
    if order not in ("zyx", "xyz"):
        raise ValueError(f"order must be 'zyx' or 'xyz', got {order!r}")
    _grid(point_cloud_range, voxel_size)  # raises outside of the operator
    points = (points.detach() if points.requires_grad else points).contiguous()
    grid = point_cloud_range, voxel_size, order == "xyz", pillars
    return run(_dynamic_voxelize, points, batch_index.contiguous(), *grid)


@typed
def voxel_coordinates(points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> Tensor:
    """The voxel that each point of one cloud is in.

    Args:
        points: float32 [N, C], columns x, y, z, … in metres. NaN and infinite points are outside of the range.
        point_cloud_range: minimum (x, y, z), then maximum, in metres; half-open.
        voxel_size: size along (x, y, z) in metres.

    Returns:
        Coordinates int32 [N, 3] as (z, y, x), -1 for points outside.

    Raises:
        ValueError: the points have the wrong shape or type, or range and voxel size make no grid.
    """
    _check_points(points)
    grid = _grid(point_cloud_range, voxel_size)
    cells = _cells(points.detach().contiguous(), None, grid)
    return torch.where((cells >= 0)[:, None], _coords(cells.clamp(min=0), grid)[:, 1:], -1)


def _check_points(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype != torch.float32:
        raise ValueError(f"points must be float32 [N, 3+], got {points.dtype} {list(points.shape)}")


def _check_result_size(voxels: int, max_points: int, columns: int) -> None:
    """Raise ValueError where voxels that are padded to `max_points` points are too many numbers for any use."""
    if voxels * max_points * columns >= MOST_NUMBERS:
        size = 4e-9 * voxels * max_points * columns
        raise ValueError(f"max_points {max_points} is too large: {voxels} voxels padded to it would take {size:.0f} GB")


class _VoxelGrid(ctypes.Structure):
    """Mirrors pcdet::VoxelGrid of ops/voxelize/voxelize.h."""

    _fields_ = (
        ("low", ctypes.c_float * 3),
        ("size", ctypes.c_float * 3),
        ("cells", ctypes.c_int32 * 3),
        ("strides", ctypes.c_int32 * 3),
    )

    @property
    def volume(self) -> int:
        """Cells of one frame."""
        return math.prod(self.cells)


def _grid(
    point_cloud_range: Sequence[float], voxel_size: Sequence[float], x_major: bool = False, pillars: bool = False
) -> _VoxelGrid:
    """The grid of a range, for kernels; raises ValueError where range and size make none."""
    return _make_grid(tuple(point_cloud_range), tuple(voxel_size), x_major, pillars)


@lru_cache(maxsize=64)
def _make_grid(
    point_cloud_range: tuple[float, ...], voxel_size: tuple[float, ...], x_major: bool, pillars: bool
) -> _VoxelGrid:
    x, y, z = grid_size(point_cloud_range, voxel_size)
    low, size = list(point_cloud_range[:3]), list(voxel_size)
    if pillars:
        z, low[2], size[2] = 1, 0.0, math.inf
    strides = (y * z, z, 1) if x_major else (1, x, x * y)
    floats, ints = ctypes.c_float * 3, ctypes.c_int32 * 3
    return _VoxelGrid(floats(*low), floats(*size), ints(x, y, z), ints(*strides))


@differentiable_operator("voxelize")
def _voxelize(
    points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grid = _grid(point_cloud_range, voxel_size)
    if kernel_kind(points.device) != "cpu" or not has_kernels(points):
        return _voxelize_cells(points, _cells(points, None, grid), grid, max_points, max_voxels)
    (n, c), i64, i32 = points.shape, torch.int64, torch.int32
    most, opened = min(n, max_voxels), ctypes.c_int64()
    places, cells = points.new_empty(n, dtype=i64), points.new_empty(most, dtype=i64)
    counts = points.new_empty(most, dtype=i32)
    cloud, placed = ((points, torch.float32, n * c), n, c, grid, max_points), (places, i64, n)
    to = (cells, i64, most), (counts, i32, most), opened
    launch("voxelize_assign", points.device, *cloud, most, placed, *to)
    m = opened.value
    _check_result_size(m, max_points, c)
    voxels, coords = points.new_empty(m, max_points, c), points.new_empty(m, 3, dtype=i32)
    filled = (voxels, torch.float32, m * max_points * c), (coords, i32, 3 * m)
    launch("voxelize_fill", points.device, *cloud, placed, (cells, i64, most), m, *filled)
    return voxels, coords, counts[:m].clone(), places


@_voxelize.register_fake
def _(
    points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m = torch.library.get_ctx().new_dynamic_size()
    return (
        points.new_empty(m, max_points, points.shape[1]),
        points.new_empty(m, 3, dtype=torch.int32),
        points.new_empty(m, dtype=torch.int32),
        points.new_empty(len(points), dtype=torch.int64),
    )


def _voxelize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(output[3])
    ctx.mark_non_differentiable(*output[1:])


def _voxelize_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return _read_places(grad, *ctx.saved_tensors), None, None, None, None


@differentiable_operator("read_places")
def _read_places(voxels: Tensor, places: Tensor) -> Tensor:
    """Rows [N, C] that stand in voxels [M, max_points, C] at places int64 [N]; zeros where a place is -1."""
    rows = torch.cat([voxels.flatten(0, 1), voxels.new_zeros(1, voxels.shape[2])])
    return rows[places]


@_read_places.register_fake
def _(voxels: Tensor, places: Tensor) -> Tensor:
    return voxels.new_empty(len(places), voxels.shape[2])


def _read_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape
    ctx.save_for_backward(inputs[1])


def _read_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (places,) = ctx.saved_tensors
    kept = places >= 0  # each place is read once at most
    rows = grad.new_zeros(ctx.shape[0] * ctx.shape[1], ctx.shape[2])
    return rows.index_copy(0, places[kept], grad[kept]).view(ctx.shape), None


_read_places.register_autograd(_read_backward, setup_context=_read_setup)
_voxelize.register_autograd(_voxelize_backward, setup_context=_voxelize_setup)


@integer_operator("dynamic_voxelize")
def _dynamic_voxelize(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    x_major: bool,
    pillars: bool,
) -> tuple[Tensor, Tensor]:
    grid = _grid(point_cloud_range, voxel_size, x_major, pillars)
    if kernel_kind(points.device) != "cpu" or not has_kernels(points):
        if not len(points):
            return points.new_empty(0, 4, dtype=torch.int32), batch_index.new_empty(0)
        lowest, highest = torch.stack(batch_index.aminmax()).tolist()
        _check_frames(lowest, highest, grid)
        cells, voxel = unique_numbers(_cells(points, batch_index, grid), (highest + 1) * grid.volume)
        return _coords(cells, grid), voxel
    (n, c), totals = points.shape, (ctypes.c_int64 * 3)()
    coords, voxel = points.new_empty(n, 4, dtype=torch.int32), points.new_empty(n, dtype=torch.int64)
    cloud = (points, torch.float32, n * c), n, c, (batch_index, torch.int64, n), grid
    found = (coords, torch.int32, 4 * n), (voxel, torch.int64, n), totals
    launch("dynamic_voxelize", points.device, *cloud, *found)
    count, lowest, highest = totals
    _check_frames(lowest, highest, grid)
    return coords[:count].clone(), voxel


@shapes_of("dynamic_voxelize")
def _(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    x_major: bool,
    pillars: bool,
) -> tuple[Tensor, Tensor]:
    n = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty(n, 4, dtype=torch.int32), points.new_empty(len(points), dtype=torch.int64)


def _check_frames(lowest: int, highest: int, grid: _VoxelGrid) -> None:
    if lowest < 0:
        raise ValueError(f"batch_index must not be negative, got {lowest}")
    if highest + 1 >= (1 << 62) // grid.volume or highest >= 1 << 31:
        raise ValueError(f"batch_index {highest} is too high: cells of all frames would need over 62 bits")


def _cells(points: Tensor, batch_index: Tensor | None, grid: _VoxelGrid) -> Tensor:
    """Number int64 [N] of each point's cell in its frame, or -1 outside; with a kernel on CUDA."""
    if not on_cuda(points) or not has_kernels(points):
        return cells_reference(points, batch_index, grid)
    (n, c), i64 = points.shape, torch.int64
    cells = points.new_empty(n, dtype=i64)
    frames = (batch_index, i64, n)
    launch("point_cells", points.device, (points, torch.float32, n * c), n, c, frames, grid, (cells, i64, n))
    return cells


def _coords(cells: Tensor, grid: _VoxelGrid) -> Tensor:
    """Coordinates int32 [M, 4] (batch, z, y, x) of cells int64 [M]; with a kernel on CUDA."""
    if not on_cuda(cells) or not has_kernels(cells):
        return coords_reference(cells, grid)
    n = len(cells)
    coords = cells.new_empty(n, 4, dtype=torch.int32)
    launch("cell_coords", cells.device, (cells, torch.int64, n), n, grid, (coords, torch.int32, 4 * n))
    return coords


def cells_reference(points: Tensor, batch_index: Tensor | None, grid: _VoxelGrid) -> Tensor:
    """The number of the cell that each point is in, in PyTorch on any device; float32 as the kernels compute it.

    Args:
        points: float32 [P, 3 or more].
        batch_index: int64 [P], frame of each point, None for a single one.
        grid: as `_grid` makes it.

    Returns:
        int64 [P], -1 for points outside the grid.
    """
    low, size = (points.new_tensor(list(t), dtype=torch.float32) for t in (grid.low, grid.size))
    place = ((points[:, :3] - low) / size).floor()
    inside = ((place >= 0) & (place < torch.tensor(list(grid.cells), device=points.device))).all(1)
    strides = torch.tensor(list(grid.strides), device=points.device)
    cells = (torch.where(inside[:, None], place, 0.0).long() * strides).sum(1)
    if batch_index is not None:
        cells = cells + batch_index * grid.volume
    return torch.where(inside, cells, -1)


def coords_reference(cells: Tensor, grid: _VoxelGrid) -> Tensor:
    """The inverse of `cells_reference`: int32 [M, 4] as (batch, z, y, x)."""
    axes = [cells // grid.strides[axis] % grid.cells[axis] for axis in (2, 1, 0)]
    return torch.stack([cells // grid.volume, *axes], 1).int()


def _voxelize_cells(
    points: Tensor, cells: Tensor, grid: _VoxelGrid, max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hard voxels of points whose cells are known, by sorting."""
    order = torch.argsort(cells, stable=True)[int((cells < 0).sum()) :]
    unique, voxel, counts = torch.unique_consecutive(cells[order], return_inverse=True, return_counts=True)
    start = counts.cumsum(0) - counts
    appearance = torch.argsort(order[start])  # by the first point of each cell
    rank = torch.empty_like(appearance)
    rank[appearance] = torch.arange(len(rank), device=points.device)
    number, slot = rank[voxel], torch.arange(len(order), device=points.device) - start[voxel]
    m = min(len(unique), max_voxels)
    _check_result_size(m, max_points, points.shape[1])
    kept = (number < m) & (slot < max_points)
    places = torch.full_like(cells, -1)
    places[order[kept]] = (number * max_points + slot)[kept]
    voxels = points.new_zeros(m * max_points, points.shape[1])
    voxels[places[order[kept]]] = points[order[kept]]
    first = appearance[:m]
    held = counts[first].clamp(max=max_points).int()
    coords = _coords(unique[first], grid)[:, 1:].contiguous()
    return voxels.view(m, max_points, points.shape[1]), coords, held, places


def voxelize_reference(
    points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition in PyTorch. Arguments as in `voxelize`.

    Returns:
        What `voxelize` returns, and fourth, the place int64 [P] of each point: voxel · max_points + slot, or -1.
    """
    grid = _grid(point_cloud_range, voxel_size)
    return _voxelize_cells(points, cells_reference(points, None, grid), grid, max_points, max_voxels)


def dynamic_voxelize_reference(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    x_major: bool = False,
    pillars: bool = False,
) -> tuple[Tensor, Tensor]:
    """The definition in PyTorch. Arguments as in `dynamic_voxelize`; x_major: whether voxels are ordered by x first."""
    grid = _grid(point_cloud_range, voxel_size, x_major, pillars)
    cells, voxel = unique_numbers_reference(cells_reference(points, batch_index, grid))
    return coords_reference(cells, grid), voxel
