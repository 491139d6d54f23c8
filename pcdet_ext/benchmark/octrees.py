"""Benchmarks of octrees: building them with their neighbour tables, their windows, and convolution over the tables."""

from __future__ import annotations

import zlib
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
from pcdet_ext.ops import group_attention, octree_depthwise_conv, octree_from_tokens, octree_tokens, serialize
from pcdet_ext.ops.group_attention import group_attention_reference
from pcdet_ext.ops.octree_conv import octree_depthwise_conv_reference
from pcdet_ext.ops.serialize import curve_depth

FULL_DEPTH, POINTS_DEPTH = 2, 10
CHANNELS = 64
WINDOW, WIDTH, HEADS = 32, 96, 6  # of OctFormer's first stage
REFERENCE_LIMIT = 200_000  # voxels; the reference holds 27 features of each at once
PEER_LIMIT = 500_000  # points or voxels whose octree ocnn builds too; growth to millions is measured without it


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
    compared = sum(map(len, clouds)) <= PEER_LIMIT
    left_out = {"ocnn": f"left out above {PEER_LIMIT} points"}
    return Contest(
        f"{name}, build and neighbours",
        lambda: build_octree(clouds, depth, FULL_DEPTH).neighbours(depth),
        peers=_ocnn_tree(clouds, depth) if compared else {},
        work=size | {"nodes": len(table)},
        bytes=12 * sum(map(len, clouds)) + table.nbytes,
        missing=ocnn_missing("octree") if compared else left_out,
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


@benchmark("octree_tokens")
def token_sequences(load: Workload) -> Iterator[Contest]:
    """A frame's points at depth 10 as tokens and back, and their size beside zlib's of the sorted coordinates."""
    points = load.points[:, :3] / (1.001 * load.points[:, :3].abs().max())
    cells = ((points + 1) * (1 << POINTS_DEPTH - 1)).int().flip(1)
    coords = torch.cat([cells.new_zeros(len(cells), 1), cells], 1)
    coords = octree_from_tokens(octree_tokens(coords, 1, POINTS_DEPTH))  # distinct, in z-order
    bits = {"zlib of coordinates, bits per cell": _zlib_bits(coords[:, 1:].short()) / len(coords)}
    for name, anisotropic in (("occupancy", False), ("anisotropic", True)):
        sequence = octree_tokens(coords, 1, POINTS_DEPTH, anisotropic)
        parts = [sequence.occupancy] if sequence.splits is None else [sequence.occupancy, sequence.splits]
        sizes = {"bits per cell": 8 * sum(map(len, parts)) / len(coords)} if not anisotropic else {}
        sizes |= {"zlib of tokens, bits per cell": sum(map(_zlib_bits, parts)) / len(coords)} | bits
        work = {"cells": len(coords), "tokens": len(sequence.occupancy)}
        encode = partial(_occupancy, coords, anisotropic)
        yield Contest(f"{name}, encode", encode, work=work, sizes=sizes)
        yield Contest(f"{name}, decode", partial(octree_from_tokens, sequence), work=work)


def _occupancy(coords: Tensor, anisotropic: bool) -> Tensor:
    return octree_tokens(coords, 1, POINTS_DEPTH, anisotropic).occupancy


def _zlib_bits(values: Tensor) -> int:
    return 8 * len(zlib.compress(values.cpu().contiguous().numpy().tobytes(), 9))


@benchmark("octree_attention")
def attention(load: Workload) -> Iterator[Contest]:
    """Attention of 96 channels and 6 heads in windows of 32 voxels, with biases of relative positions (OctFormer)."""
    coords, grid = occupied(load, WAYMO_VOXELS)
    ordering = ordering_of_keys(serialize(coords, grid, "zorder"), coords[:, 0].long(), int(coords[:, 0].max()) + 1)
    coords, rows = coords[ordering.order], torch.arange(len(coords), device=coords.device)  # rows of octrees are sorted
    ordering = Ordering(rows, rows, ordering.counts)
    generator, cells = load.generator(), coords[:, 1:].contiguous()
    qkv = torch.randn(len(coords), 3 * WIDTH, generator=generator).to(load.device)
    for dilation in (1, 4):
        bound = int(0.8 * WINDOW * dilation**0.5)
        table = torch.randn(3 * (2 * bound + 1), HEADS, generator=generator).to(load.device)
        plan = octree_windows(ordering, WINDOW, dilation, straddle=True)
        inputs = (qkv, plan.index, plan.inverse, HEADS, plan.valid, plan.owner, cells, table)
        yield Contest(
            f"windows of 32 voxels, dilation {dilation}, forward",
            partial(group_attention, *inputs),
            partial(group_attention_reference, *inputs),
            {"gather and matmul": _gather_and_matmul(qkv, coords, table, dilation)},
            work={"voxels": len(coords)},
            bytes=qkv.nbytes * 4 // 3,
            flops=4 * WIDTH * WINDOW * len(coords),
            reference_limit=REFERENCE_LIMIT,
        )


def _gather_and_matmul(qkv: Tensor, coords: Tensor, table: Tensor, dilation: int) -> Callable[[], Tensor]:
    """The same in PyTorch as it is usually written, with masks and relative positions made once and kept.

    Rows are padded and cut into windows, the biases gathered for every pair of slots, and the weights computed by two
    products of matrices with a softmax between them.
    """
    n, block, bound = len(qkv), WINDOW * dilation, (len(table) // 3 - 1) // 2
    padding = -n % block

    def windows(rows: Tensor) -> Tensor:
        rows = rows.view(-1, WINDOW, dilation, rows.shape[1]).transpose(1, 2)
        return rows.reshape(-1, WINDOW, rows.shape[-1])

    frame = torch.cat([coords[:, :1], coords.new_full((padding, 1), -1)])
    cells = torch.cat([coords[:, 1:].flip(1), coords.new_zeros(padding, 3)])
    owner, places = windows(frame).squeeze(-1), windows(cells)
    mask = torch.where(owner[:, :, None] == owner[:, None], 0.0, -1000.0)[:, None]
    away = (places[:, :, None] - places[:, None]).clamp(-bound, bound) + bound
    entries = (away + torch.arange(3, device=away.device) * (2 * bound + 1)).long()

    def attend() -> Tensor:
        slots = windows(torch.cat([qkv, qkv.new_zeros(padding, qkv.shape[1])]))
        q, k, v = slots.view(len(slots), WINDOW, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        logits = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)
        bias = table[entries].sum(3).permute(0, 3, 1, 2)
        out = ((logits + bias + mask).softmax(-1) @ v).transpose(1, 2).reshape(-1, dilation, WINDOW, WIDTH)
        return out.transpose(1, 2).reshape(-1, WIDTH)[:n]

    return attend


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
