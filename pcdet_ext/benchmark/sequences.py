"""Benchmarks of what turns voxels into sequences, and of mixing along them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.benchmark.voxels import WAYMO_PILLARS, WAYMO_VOXELS
from pcdet_ext.ops import dynamic_voxelize, rotated_sets, scattered_linear_attention, serialize
from pcdet_ext.ops.linear_attention import scattered_linear_attention_reference
from pcdet_ext.ops.rotated_sets import rotated_sets_reference
from pcdet_ext.ops.serialize import CURVES, curve_depth, curve_encode_reference, window_keys_reference
from pcdet_ext.ops.voxelize import grid_size

Grid = tuple[int, int, int]


def occupied(load: Workload, setting: tuple) -> tuple[Tensor, Grid]:
    """Coords int32 [N, 4] of a frame's occupied cells, and the grid (Z, Y, X)."""
    batch_index = torch.zeros(len(load.points), dtype=torch.int64, device=load.device)
    x, y, z = grid_size(*setting)
    return dynamic_voxelize(load.points, batch_index, *setting)[0], (z, y, x)


@benchmark("serialize")
def orders(load: Workload) -> Iterator[Contest]:
    """Keys of every order, on voxels (curves, buckets) and as published on pillars and voxels (windows)."""
    voxels, grid = occupied(load, WAYMO_VOXELS)
    pillars, flat = occupied(load, WAYMO_PILLARS)
    depth = curve_depth(grid)
    yield _keys("zorder", voxels, grid, partial(curve_encode_reference, voxels, grid, CURVES["zorder"], depth))
    yield _keys("hilbert", voxels, grid, partial(curve_encode_reference, voxels, grid, CURVES["hilbert"], depth))
    yield _keys("lsh", voxels, grid, None)
    for order, along_y in (("window_x", False), ("window_y", True)):
        rows = {"window": (32, 13, 13), "shift": (16, 6, 6)}  # LION
        reference = partial(window_keys_reference, voxels, grid, *rows.values(), along_y, False)
        yield _keys(order, voxels, grid, reference, **rows)
        snake = {"window": (1, 9, 9), "shift": (0, 4, 4)}  # FlatFormer
        reference = partial(window_keys_reference, pillars, flat, *snake.values(), along_y, True)
        yield _keys(order, pillars, flat, reference, path="snake", **snake)


def _keys(order: str, coords: Tensor, grid: Grid, reference: Callable[[], Tensor] | None, **options: object) -> Contest:
    return Contest(
        " ".join([order, str(options.get("path", ""))]).strip(),
        lambda: serialize(coords, grid, order, **options),
        reference,
        work={"voxels": len(coords)},
        bytes=coords.nbytes + 8 * len(coords),
    )


@benchmark("rotated_sets")
def sets(load: Workload) -> Iterator[Contest]:
    """The sets of DSVT on Waymo: windows of 12 × 12 and shifted ones of 24 × 24 pillars, 36 voxels a set."""
    coords, grid = occupied(load, WAYMO_PILLARS)
    for name, window, shift in (("12x12", (1, 12, 12), (0, 0, 0)), ("24x24 shifted", (1, 24, 24), (0, 6, 6))):
        count = [max(-(-(g + s) // w), -(-g // w) + 1) for g, w, s in zip(grid, window, shift, strict=True)]
        yield Contest(
            name,
            lambda window=window, shift=shift: rotated_sets(coords, grid, 1, window, shift, 36),
            lambda window=window, shift=shift, count=count: rotated_sets_reference(
                coords, grid, 1, window, shift, count, 36
            ),
            work={"voxels": len(coords)},
        )


@benchmark("scattered_linear_attention")
def linear_attention(load: Workload) -> Iterator[Contest]:
    """Linear attention in the windows of ScatterFormer: 12 × 12 pillars, 8 heads of 16 channels."""
    coords, grid = occupied(load, WAYMO_PILLARS)
    across = grid[2] // 12 + 1
    window = torch.sort(coords[:, 2].long() // 12 * across + coords[:, 3] // 12).values
    counts = torch.unique_consecutive(window, return_counts=True)[1]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shape, generator = (len(coords), 8, 16), load.generator()
    rows = [torch.rand(shape, generator=generator).to(load.device) for _ in range(4)]
    q, k, v, weights = rows
    work = {"voxels": len(coords), "windows": len(counts)}
    yield Contest(
        "forward",
        lambda: scattered_linear_attention(q, k, v, offsets),
        lambda: scattered_linear_attention_reference(q, k, v, offsets),
        work=work,
        bytes=4 * q.nbytes,
    )
    yield Contest(
        "with gradient",
        lambda: _attention_gradient(scattered_linear_attention, q, k, v, offsets, weights),
        lambda: _attention_gradient(scattered_linear_attention_reference, q, k, v, offsets, weights),
        work=work,
        bytes=12 * q.nbytes,
    )


def _attention_gradient(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, weights: Tensor
) -> list[Tensor]:
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    y = attend(*inputs, offsets)
    return [y.detach(), *torch.autograd.grad(y, inputs, weights)]
