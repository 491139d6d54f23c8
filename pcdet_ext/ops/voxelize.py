"""Voxelisation: which grid cell each point falls into, with caps (hard) or keeping every point (dynamic)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from pcdet_ext.ops import _native
from pcdet_ext.ops._native import I32, I64, POINTER


def grid_size(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Cells along (x, y, z) of a range (minimum, then maximum, metres) in voxels (metres): the rounded quotient.

    Raises ValueError for a range or size that is not positive, or fewer than one cell.
    """
    if len(point_cloud_range) != 6 or len(voxel_size) != 3:
        raise ValueError(
            "point_cloud_range must be six numbers and voxel_size three, "
            f"got {list(point_cloud_range)} and {list(voxel_size)}"
        )
    if not all(float(v) > 0 for v in voxel_size):
        raise ValueError(f"voxel_size must be positive, got {list(voxel_size)}")
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    cells = tuple(round((h - x) / v) for x, h, v in zip(low, high, voxel_size, strict=True))
    if min(cells) < 1:
        raise ValueError(f"point_cloud_range {list(point_cloud_range)} holds no voxel of size {list(voxel_size)}")
    return cells


def voxelize(
    points: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard voxelisation of one cloud (VoxelNet, Zhou and Tuzel, CVPR 2018), voxels in order of first appearance.

    points: float32 [N, C], columns x, y, z, … in metres; point_cloud_range: (x, y, z) minimum, then maximum, half-open;
    max_points: kept of a voxel, the first in input order; max_voxels: later ones are not opened.
    Returns voxels float32 [M, max_points, C] padded with zeros, coords int32 [M, 3] as (z, y, x), and the number of
    points int32 [M]. NaN and infinite points are outside. Differentiable in the points.
    Raises ValueError naming the argument that is wrong.
    """
    _check_points(points)
    if max_points < 1 or max_voxels < 1:
        raise ValueError(f"max_points and max_voxels must be positive, got {max_points} and {max_voxels}")
    grid_size(point_cloud_range, voxel_size)
    low, size = [float(v) for v in point_cloud_range], [float(v) for v in voxel_size]
    return _voxelize(points.contiguous(), low, size, max_points, max_voxels)[:3]


def dynamic_voxelize(
    points: Tensor,
    batch_index: Tensor,
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Dynamic voxelisation of a batch (Zhou et al., CoRL 2019): no point is dropped but those outside.

    points: float32 [P, C], columns x, y, z, …; batch_index: int64 [P], frame of each point, from 0 on.
    Returns coords int32 [N, 4], ascending by (batch, z, y, x), and the voxel of each point int64 [P], -1 outside
    (NaN and infinity are outside). Raises ValueError naming the argument that is wrong.
    """
    _check_points(points)
    if batch_index.dtype != torch.int64 or batch_index.shape != points.shape[:1]:
        shape = list(batch_index.shape)
        raise ValueError(f"batch_index must be int64 [{len(points)}], got {batch_index.dtype} {shape}")
    if batch_index.device != points.device:
        raise ValueError(f"points are on {points.device}, batch_index on {batch_index.device}")
    grid_size(point_cloud_range, voxel_size)
    low, size = [float(v) for v in point_cloud_range], [float(v) for v in voxel_size]
    return _dynamic_voxelize(points.detach().contiguous(), batch_index.contiguous(), low, size)


def _check_points(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype != torch.float32:
        raise ValueError(f"points must be float32 [N, 3+], got {points.dtype} {list(points.shape)}")


class _VoxelGrid(ctypes.Structure):
    """Mirrors pcdet::VoxelGrid of ops/voxelize/voxelize.h."""

    _fields_ = [("low", ctypes.c_float * 3), ("size", ctypes.c_float * 3), ("cells", ctypes.c_int32 * 3)]

    @staticmethod
    def of(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> _VoxelGrid:
        """The grid of a range."""
        low, size = (ctypes.c_float * 3)(*point_cloud_range[:3]), (ctypes.c_float * 3)(*voxel_size)
        return _VoxelGrid(low, size, (ctypes.c_int32 * 3)(*grid_size(point_cloud_range, voxel_size)))


@torch.library.custom_op("pcdet_ext::voxelize", mutates_args=())
def _voxelize(
    points: Tensor, point_cloud_range: list[float], voxel_size: list[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    types = (POINTER, I64, I64, POINTER, I64, I64, POINTER, POINTER, POINTER, POINTER, I32)
    assign = _native.function("cpu", "pcdet_voxelize_assign_cpu", *types) if points.device.type == "cpu" else None
    if assign is None:
        return voxelize_reference(points, point_cloud_range, voxel_size, max_points, max_voxels)
    n, c = points.shape
    grid, threads, p = _VoxelGrid.of(point_cloud_range, voxel_size), _native.threads(), _native.pointer
    most = min(n, max_voxels)
    source = torch.empty(most, max_points, dtype=torch.int32)
    cells, counts = torch.empty(most, dtype=torch.int64), torch.empty(most, dtype=torch.int32)
    opened = torch.zeros(1, dtype=torch.int64)
    g = ctypes.byref(grid)
    assign(p(points), n, c, g, max_points, most, p(source), p(cells), p(counts), p(opened), threads)
    m = int(opened)
    voxels, coords = torch.empty(m, max_points, c), torch.empty(m, 3, dtype=torch.int32)
    types = (POINTER, I64, POINTER, I64, POINTER, POINTER, POINTER, I64, POINTER, POINTER, I32)
    fill = _native.function("cpu", "pcdet_voxelize_fill_cpu", *types)
    fill(p(points), c, g, max_points, p(source), p(cells), p(counts), m, p(voxels), p(coords), threads)
    return voxels, coords, counts[:m].clone(), source[:m].clone()


@_voxelize.register_fake
def _(
    points: Tensor, point_cloud_range: list[float], voxel_size: list[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m = torch.library.get_ctx().new_dynamic_size()
    return (
        points.new_empty(m, max_points, points.shape[1]),
        points.new_empty(m, 3, dtype=torch.int32),
        points.new_empty(m, dtype=torch.int32),
        points.new_empty(m, max_points, dtype=torch.int32),
    )


def _voxelize_setup(ctx: object, inputs: tuple, output: tuple) -> None:
    ctx.rows = len(inputs[0])
    ctx.save_for_backward(output[2], output[3])
    ctx.mark_non_differentiable(*output[1:])


def _voxelize_backward(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    counts, source = ctx.saved_tensors
    filled = torch.arange(source.shape[1], device=source.device) < counts[:, None]
    gathered = grad.new_zeros(ctx.rows, grad.shape[2])
    gathered = gathered.index_copy(0, source[filled].long(), grad[filled])  # a point is in one slot at most
    return gathered, None, None, None, None


_voxelize.register_autograd(_voxelize_backward, setup_context=_voxelize_setup)


@torch.library.custom_op("pcdet_ext::dynamic_voxelize", mutates_args=())
def _dynamic_voxelize(
    points: Tensor, batch_index: Tensor, point_cloud_range: list[float], voxel_size: list[float]
) -> tuple[Tensor, Tensor]:
    frames = int(batch_index.max()) + 1 if len(points) else 0
    if len(points) and int(batch_index.min()) < 0:
        raise ValueError(f"batch_index must not be negative, got {int(batch_index.min())}")
    types = (POINTER, I64, I64, POINTER, I64, POINTER, POINTER, POINTER, POINTER, I32)
    kernel = _native.function("cpu", "pcdet_dynamic_voxelize_cpu", *types) if points.device.type == "cpu" else None
    if kernel is None:
        return dynamic_voxelize_reference(points, batch_index, point_cloud_range, voxel_size)
    n, c = points.shape
    grid, p = _VoxelGrid.of(point_cloud_range, voxel_size), _native.pointer
    coords, voxel = torch.empty(n, 4, dtype=torch.int32), torch.empty(n, dtype=torch.int64)
    count = torch.zeros(1, dtype=torch.int64)
    g = ctypes.byref(grid)
    kernel(p(points), n, c, p(batch_index), frames, g, p(coords), p(voxel), p(count), _native.threads())
    return coords[: int(count)].clone(), voxel


@_dynamic_voxelize.register_fake
def _(
    points: Tensor, batch_index: Tensor, point_cloud_range: list[float], voxel_size: list[float]
) -> tuple[Tensor, Tensor]:
    n = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty(n, 4, dtype=torch.int32), points.new_empty(len(points), dtype=torch.int64)


def _cells(points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> Tensor:
    """Number int64 [N] of each point's cell, x fastest, or -1 outside; float32 as the kernels compute it."""
    low = torch.tensor(point_cloud_range[:3], dtype=torch.float32, device=points.device)
    size = torch.tensor(voxel_size, dtype=torch.float32, device=points.device)
    cells = torch.tensor(grid_size(point_cloud_range, voxel_size), device=points.device)
    place = ((points[:, :3] - low) / size).floor()
    inside = ((place >= 0) & (place < cells)).all(1)
    x, y, z = torch.where(inside[:, None], place, 0.0).long().unbind(1)
    return torch.where(inside, (z * cells[1] + y) * cells[0] + x, -1)


def _coords(cells: Tensor, grid: tuple[int, int, int]) -> Tensor:
    x, y, z = cells % grid[0], cells // grid[0] % grid[1], cells // grid[0] // grid[1]
    return torch.stack([z, y, x], 1).int()


def voxelize_reference(
    points: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device; see `voxelize`. The fourth result is the point in each slot."""
    cells = _cells(points, point_cloud_range, voxel_size)
    order = torch.argsort(cells, stable=True)[int((cells < 0).sum()) :]
    unique, voxel, counts = torch.unique_consecutive(cells[order], return_inverse=True, return_counts=True)
    first = order[counts.cumsum(0) - counts]  # the first point of each cell, cells ascending
    appearance = torch.argsort(first)
    rank = torch.empty_like(appearance)
    rank[appearance] = torch.arange(len(first), device=points.device)
    number = rank[voxel]
    slot = torch.arange(len(order), device=points.device) - (counts.cumsum(0) - counts)[voxel]
    m = min(len(first), max_voxels)
    kept = (number < m) & (slot < max_points)
    voxels = points.new_zeros(m, max_points, points.shape[1])
    voxels[number[kept], slot[kept]] = points[order[kept]]
    source = torch.zeros(m, max_points, dtype=torch.int32, device=points.device)
    source[number[kept], slot[kept]] = order[kept].int()
    held = counts[appearance][:m].clamp(max=max_points).int()
    return voxels, _coords(unique[appearance][:m], grid_size(point_cloud_range, voxel_size)), held, source


def dynamic_voxelize_reference(
    points: Tensor, batch_index: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The definition in PyTorch on any device; see `dynamic_voxelize`."""
    grid = grid_size(point_cloud_range, voxel_size)
    volume = grid[0] * grid[1] * grid[2]
    cells = _cells(points, point_cloud_range, voxel_size)
    inside = cells >= 0
    unique, voxel = torch.unique(batch_index[inside] * volume + cells[inside], return_inverse=True)
    point_voxel = torch.full_like(cells, -1)
    point_voxel[inside] = voxel
    coords = torch.cat([(unique // volume).int()[:, None], _coords(unique % volume, grid)], 1)
    return coords, point_voxel
