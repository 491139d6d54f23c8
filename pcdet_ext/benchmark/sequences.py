"""Benchmarks of what turns voxels into sequences, and of mixing along them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pcdet_ext.benchmark.frames import street_voxels
from pcdet_ext.benchmark.peers import Peers, ocnn_decode, ocnn_encode
from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.benchmark.voxels import WAYMO_PILLARS, WAYMO_VOXELS, Extent
from pcdet_ext.grouping.orders import Ordering, ordering_of_keys
from pcdet_ext.grouping.partitions import equal_groups
from pcdet_ext.ops import deserialize, dynamic_voxelize, rotated_sets, scattered_linear_attention, serialize
from pcdet_ext.ops.linear_attention import scattered_linear_attention_reference
from pcdet_ext.ops.rotated_sets import rotated_sets_reference
from pcdet_ext.ops.serialize import (
    CURVES,
    MAX_DEPTH,
    curve_decode_reference,
    curve_depth,
    curve_encode_reference,
    window_keys_reference,
)
from pcdet_ext.ops.voxelize import grid_size

Grid = tuple[int, int, int]
REFERENCE_LIMIT = 200_000  # voxels; above, references take gigabytes or many seconds


def occupied(load: Workload, setting: Extent) -> tuple[Tensor, Grid]:
    """Coords int32 [N, 4] of as many cells as the load wants, else of those of its points, and the grid (Z, Y, X).

    Wanted cells are those of as many synthetic scans as it takes, one frame each.
    """
    x, y, z = grid_size(*setting)
    if load.voxels is not None:
        return street_voxels(load.voxels, *setting).to(load.device), (z, y, x)
    batch_index = torch.zeros(len(load.points), dtype=torch.int64, device=load.device)
    return dynamic_voxelize(load.points, batch_index, *setting)[0], (z, y, x)


def frames_of(coords: Tensor) -> int:
    """How many frames ascending coords have."""
    return int(coords[-1, 0]) + 1 if len(coords) else 1


@benchmark("serialize")
def orders(load: Workload) -> Iterator[Contest]:
    """Keys of every order, on voxels (curves, buckets) and as published on pillars and voxels (windows)."""
    voxels, grid = occupied(load, WAYMO_VOXELS)
    pillars, flat = occupied(load, WAYMO_PILLARS)
    depth = curve_depth(grid)
    reference = partial(curve_encode_reference, voxels, grid, CURVES["zorder"], depth)
    yield _keys("zorder", voxels, grid, reference, ocnn_encode(voxels))
    reference = partial(curve_encode_reference, voxels, grid, CURVES["zorder_x_lowest"], depth)
    yield _keys("zorder", voxels, grid, reference, lowest="x")
    yield _keys("hilbert", voxels, grid, partial(curve_encode_reference, voxels, grid, CURVES["hilbert"], depth))
    yield _keys("lsh", voxels, grid, None)
    for order, along_y in (("window_x", False), ("window_y", True)):
        window, shift = (32, 13, 13), (16, 6, 6)  # LION
        reference = partial(window_keys_reference, voxels, grid, window, shift, along_y, False)
        yield _keys(order, voxels, grid, reference, window=window, shift=shift)
        window, shift = (1, 9, 9), (0, 4, 4)  # FlatFormer
        reference = partial(window_keys_reference, pillars, flat, window, shift, along_y, True)
        yield _keys(order, pillars, flat, reference, path="snake", window=window, shift=shift)


def _keys(
    order: str,
    coords: Tensor,
    grid: Grid,
    reference: Callable[[], Tensor] | None,
    peers: Peers | None = None,
    **options: Any,
) -> Contest:
    kind = options.get("path") or (f"{options['lowest']} lowest" if "lowest" in options else "")
    return Contest(
        f"{order} {kind}".strip(),
        partial(serialize, coords, grid, order, **options),
        reference,
        peers or {},
        work={"voxels": len(coords)},
        bytes=coords.nbytes + 8 * len(coords),
    )


@benchmark("deserialize")
def decoding(load: Workload) -> Iterator[Contest]:
    """Cells of the keys of both curves."""
    voxels, grid = occupied(load, WAYMO_VOXELS)
    depths: dict[Literal["zorder", "hilbert"], int] = {"zorder": MAX_DEPTH, "hilbert": curve_depth(grid)}
    for order, depth in depths.items():
        keys = serialize(voxels, grid, order)
        yield Contest(
            order,
            partial(deserialize, keys, order, depth),
            partial(curve_decode_reference, keys, CURVES[order], depth),
            ocnn_decode(keys, depth) if order == "zorder" else {},
            work={"voxels": len(voxels)},
            bytes=voxels.nbytes + keys.nbytes,
        )


@benchmark("sort")
def sorting(load: Workload) -> Iterator[Contest]:
    """What every order needs besides its keys: the voxels' order and its inverse (torch's stable sort)."""
    voxels, grid = occupied(load, WAYMO_VOXELS)
    keys, frame = serialize(voxels, grid, "hilbert"), voxels[:, 0].long()
    yield Contest(
        "hilbert keys",
        lambda: ordering_of_keys(keys, frame, frames_of(voxels)).order,
        work={"voxels": len(voxels)},
        bytes=4 * keys.nbytes,
    )


@benchmark("equal_groups")
def groups(load: Workload) -> Iterator[Contest]:
    """Groups of equal size of an order that is there, as FlatFormer (69) and LION (4096) cut them."""
    voxels, grid = occupied(load, WAYMO_VOXELS)
    ordering = ordering_of_keys(serialize(voxels, grid, "zorder"), voxels[:, 0].long(), frames_of(voxels))
    for size in (69, 4096):
        yield Contest(
            f"of {size}",
            partial(_group_index, ordering, size),
            work={"voxels": len(voxels)},
            bytes=4 * 8 * len(voxels),  # order and its inverse; index and inverse of the groups
        )


def _group_index(ordering: Ordering, size: int) -> Tensor:
    return equal_groups(ordering, size).index


@benchmark("rotated_sets")
def sets(load: Workload) -> Iterator[Contest]:
    """The sets of DSVT on Waymo: windows of 12 × 12 and shifted ones of 24 × 24 pillars, 36 voxels per set."""
    coords, grid = occupied(load, WAYMO_PILLARS)
    batch = frames_of(coords)
    for name, window, shift in (("12x12", (1, 12, 12), (0, 0, 0)), ("24x24 shifted", (1, 24, 24), (0, 6, 6))):
        count = [max(-(-(g + s) // w), -(-g // w) + 1) for g, w, s in zip(grid, window, shift, strict=True)]
        yield Contest(
            name,
            partial(rotated_sets, coords, grid, batch, window, shift, 36),
            partial(rotated_sets_reference, coords, grid, batch, window, shift, count, 36),
            work={"voxels": len(coords)},
            bytes=coords.nbytes + sum(t.nbytes for t in rotated_sets(coords, grid, batch, window, shift, 36)),
        )


@benchmark("scattered_linear_attention")
def linear_attention(load: Workload) -> Iterator[Contest]:
    """Linear attention in the windows of ScatterFormer: 12 × 12 pillars, 8 heads of 16 channels."""
    coords, grid = occupied(load, WAYMO_PILLARS)
    high, wide = grid[1] // 12 + 1, grid[2] // 12 + 1
    window = torch.sort((coords[:, 0].long() * high + coords[:, 2] // 12) * wide + coords[:, 3] // 12).values
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
        flops=4 * 16 * q.numel(),
        reference_limit=REFERENCE_LIMIT,
    )
    yield Contest(
        "with gradient",
        lambda: _attention_gradient(scattered_linear_attention, q, k, v, offsets, weights),
        lambda: _attention_gradient(scattered_linear_attention_reference, q, k, v, offsets, weights),
        work=work,
        bytes=12 * q.nbytes,
        flops=12 * 16 * q.numel(),
        reference_limit=REFERENCE_LIMIT,
    )


def _attention_gradient(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, weights: Tensor
) -> list[Tensor]:
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    y = attend(*inputs, offsets)
    return [y.detach(), *torch.autograd.grad(y, inputs, weights)]
