"""Benchmarks of octrees: building them with their neighbour tables, their windows, and convolution over the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.benchmark.peers import Peers, ocnn_missing, ocnn_module
from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.benchmark.sequences import occupied
from pcdet_ext.benchmark.voxels import WAYMO_VOXELS, with_gradient
from pcdet_ext.grouping.octree import build_octree
from pcdet_ext.grouping.orders import Ordering, ordering_of_keys
from pcdet_ext.grouping.partitions import octree_windows
from pcdet_ext.ops import octree_depthwise_conv, serialize
from pcdet_ext.ops.octree_conv import octree_depthwise_conv_reference
from pcdet_ext.ops.serialize import curve_depth

FULL_DEPTH, POINTS_DEPTH = 2, 10
CHANNELS = 64
REFERENCE_LIMIT = 200_000  # voxels; the reference holds 27 features of each at once


@benchmark("octree")
def trees(load: Workload) -> Iterator[Contest]:
    """The octree over a frame's points or a batch's voxels with the neighbours at all depths, and its windows."""
    points = [load.points[:, :3] / (1.001 * load.points[:, :3].abs().max())]  # inside, where ocnn does not wrap
    yield _building(f"points at depth {POINTS_DEPTH}", points, POINTS_DEPTH, {"points": len(points[0])})
    coords, grid = occupied(load, WAYMO_VOXELS)
    clouds = _clouds(coords, curve_depth(grid))
    yield _building("voxels", clouds, curve_depth(grid), {"voxels": len(coords)})
    keys, frame = serialize(coords, grid, "zorder"), coords[:, 0].long()
    ordering = ordering_of_keys(keys, frame, len(clouds))
    for dilation in (1, 4):
        yield Contest(
            f"windows of 32 voxels (OctFormer), dilation {dilation}",
            partial(_window_index, ordering, dilation),
            work={"voxels": len(coords)},
            bytes=(8 + 8 + 8 + 1 + 8) * len(coords),  # order; index, inverse, valid, owner
        )


def _building(name: str, clouds: list[Tensor], depth: int, size: dict[str, int]) -> Contest:
    """Build the octree of clouds of points and the tables of neighbours of all its depths."""
    table = build_octree(clouds, depth, FULL_DEPTH).neighbours(depth)
    return Contest(
        f"{name}, build and neighbours",
        lambda: build_octree(clouds, depth, FULL_DEPTH).neighbours(depth),
        peers=_ocnn_tree(clouds, depth),
        work=size | {"nodes": len(table)},
        bytes=12 * sum(map(len, clouds)) + table.nbytes,
        missing=ocnn_missing("octree"),
    )


def _window_index(ordering: Ordering, dilation: int) -> Tensor:
    return octree_windows(ordering, 32, dilation).index


@benchmark("octree_depthwise_conv")
def convolution(load: Workload) -> Iterator[Contest]:
    """Depth-wise convolution of 64 channels over the 27 neighbours of the leaves, tables kept."""
    coords, grid = occupied(load, WAYMO_VOXELS)
    depth = curve_depth(grid)
    clouds = _clouds(coords, depth)
    table = build_octree(clouds, depth, FULL_DEPTH).table(depth)
    features, weights, above = (
        torch.randn(rows, CHANNELS, generator=load.generator()).to(load.device) for rows in (len(table), 27, len(table))
    )
    work = {"voxels": len(table), "neighbours": int((table >= 0).sum())}
    moved, flops = 2 * features.nbytes + table.nbytes, 2 * CHANNELS * work["neighbours"]
    theirs = _ocnn_convolution(clouds, depth)

    def gradients(convolve: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return with_gradient(lambda rows: convolve(rows, weights, table), features, above)

    yield Contest(
        "forward",
        lambda: octree_depthwise_conv(features, weights, table),
        lambda: octree_depthwise_conv_reference(features, weights, table),
        {} if theirs is None else {"ocnn": lambda: theirs(features, weights, table)},
        work=work,
        bytes=moved,
        flops=flops,
        reference_limit=REFERENCE_LIMIT,
        missing=ocnn_missing("nn.octree_dwconv"),
    )
    yield Contest(
        "with gradient of the features",
        lambda: gradients(octree_depthwise_conv),
        lambda: gradients(octree_depthwise_conv_reference),
        {} if theirs is None else {"ocnn": lambda: gradients(theirs)},
        work=work,
        bytes=2 * moved,
        flops=2 * flops,
        reference_limit=REFERENCE_LIMIT,
    )


def _clouds(coords: Tensor, depth: int) -> list[Tensor]:
    """Centres float32 [n, 3] of the voxels of each frame in [-1, 1], a voxel being a leaf at `depth`."""
    centres = (coords[:, 1:].flip(1) + 0.5) / (1 << depth - 1) - 1.0
    return list(centres.split(torch.bincount(coords[:, 0]).tolist()))


def _ocnn_octree(clouds: list[Tensor], depth: int) -> Any:
    """ocnn's octree of the same clouds, with its tables."""
    library = ocnn_module("octree")
    frames = torch.cat([torch.full((len(c), 1), i, device=c.device) for i, c in enumerate(clouds)])
    points = library.Points(torch.cat(clouds), batch_id=frames, batch_size=len(clouds))
    octree = library.Octree(depth, FULL_DEPTH, len(clouds), points.device)
    octree.build_octree(points)
    octree.construct_all_neigh()
    return octree


def _ocnn_tree(clouds: list[Tensor], depth: int) -> Peers:
    return {"ocnn": lambda: _ocnn_octree(clouds, depth).neighs[depth]} if ocnn_module("octree") else {}


def _ocnn_convolution(clouds: list[Tensor], depth: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """ocnn's convolution with the arguments of ours; its table comes from its own octree."""
    library = ocnn_module("nn.octree_dwconv")
    if library is None:
        return None
    octree = _ocnn_octree(clouds, depth)

    def convolve(features: Tensor, weights: Tensor, _table: Tensor) -> Tensor:
        options = (depth, features.shape[1], [3, 3, 3], 1, True)
        return library.octree_dwconv(features, weights[:, None], octree, *options)

    return convolve
