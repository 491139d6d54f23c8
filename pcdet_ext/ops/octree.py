"""Octrees from points: occupied leaves, the nodes of a depth from those above, and tables of neighbours.

The steps that `pcdet_ext.grouping.octree.build_octree` puts together; what nodes and tables are is told there. Keys are
those of z-order (see `pcdet_ext.ops.serialize`).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, shapes_of
from pcdet_ext.ops.serialize import BATCH_SHIFT, MAX_DEPTH, octree_children, octree_parent, serialize


@typed
def octree_leaves(points: Tensor, sizes: Tensor, depth: int, wrap: bool = False) -> tuple[Tensor, Tensor]:
    """The occupied leaves of an octree, and the leaf of each point.

    Args:
        points: float32 [P, 3] (x, y, z) in [-1, 1], cloud after cloud.
        sizes: int64 [B] on the CPU, points of each cloud.
        depth: of the leaves, 1 to 16; a leaf is 2^(1 - depth) wide.
        wrap: a coordinate of exactly +1 falls into the first cell of its axis, as published (Wang et al., 2017),
            instead of the last one.

    Returns:
        z-order keys int64 [L] of the leaves, ascending, and the leaf int64 [P] of each point.

    Raises:
        ValueError: naming the argument that is wrong; for points outside, or not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != torch.float32:
        raise ValueError(f"points must be float32 [P, 3], got {points.dtype} {list(points.shape)}")
    if sizes.ndim != 1 or sizes.dtype != torch.int64 or sizes.device.type != "cpu":
        raise ValueError(f"sizes must be int64 [B] on the CPU, got {sizes.dtype} {list(sizes.shape)} on {sizes.device}")
    if bool((sizes < 0).any()) or int(sizes.sum()) != len(points):
        raise ValueError(f"sizes must not be negative and add up to the {len(points)} points, got {sizes.tolist()}")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be between 1 and {MAX_DEPTH}, got {depth}")
    if not 1 <= len(sizes) <= 1 << 15 or len(points) >= 1 << 31:
        raise ValueError(f"there must be 1 to 32768 clouds and fewer than 2³¹ points, got {len(sizes)}, {len(points)}")
    leaves, point_leaf, counts = _leaves(points.contiguous(), sizes, depth, wrap)
    count, outside = counts.tolist()
    if outside:
        raise ValueError(f"points must lie in [-1, 1], but {outside} of {len(points)} do not")
    return leaves[:count].clone(), point_leaf


@typed
def octree_parents(keys: Tensor) -> Tensor:
    """The parents of nodes, each once: keys int64 [M], ascending, for keys int64 [N], ascending; frames are kept.

    Raises ValueError for keys of another type or shape.
    """
    _check_keys("keys", keys)
    if not has_kernels(keys) or on_cuda(keys):
        return torch.unique_consecutive(octree_parent(keys))
    parents, count = _parents(keys.contiguous())
    return parents[: int(count)].clone()


@typed
def octree_grow(above: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes of a depth: all children of the occupied nodes of the depth above.

    Args:
        above: keys int64 [M] of those, ascending.
        here: keys int64 [N] of the occupied nodes of the depth, ascending, each with its parent among `above`.

    Returns:
        Keys int64 [8 M], ascending; int32 [8 M], the number of each node among the occupied ones, -1 where it is
        empty; int64 [N], the row of each occupied node among all.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    for name, keys in (("above", above), ("here", here)):
        _check_keys(name, keys)
    if above.device != here.device:
        raise ValueError(f"above and here must be on one device, got {above.device} and {here.device}")
    keys, children, rows = _grow(above.contiguous(), here.contiguous())
    return keys, children, rows


def _check_keys(name: str, keys: Tensor) -> None:
    if keys.dtype != torch.int64 or keys.ndim != 1:
        raise ValueError(f"{name} must be int64 with one dimension, got {keys.dtype} {list(keys.shape)}")


@typed
def octree_neighbours(above: Tensor, children: Tensor, parents: Tensor) -> Tensor:
    """Table of neighbours of the nodes of a depth from that of the depth above.

    A neighbour of a node is a child of its parent or of one of the parent's neighbours.

    Args:
        above: int64 [n, 27], the node around each node of the depth above at every offset (column
            9 (dx + 1) + 3 (dy + 1) + dz + 1), -1 where there is none.
        children: int32 [n], the number of each of these nodes among the occupied ones, or -1.
        parents: int64 [M], rows of the occupied nodes, ascending.

    Returns:
        int64 [8 M, 27], the same for the children of the parents.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    n = len(above)
    for name, tensor, dtype, shape in (
        ("above", above, torch.int64, (n, 27)),
        ("children", children, torch.int32, (n,)),
        ("parents", parents, torch.int64, (len(parents),)),
    ):
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
    if len({t.device for t in (above, children, parents)}) != 1:
        raise ValueError("above, children and parents must be on one device")
    return _neighbours(above.contiguous(), children.contiguous(), parents.contiguous())


@integer_operator("octree_leaves")
def _leaves(points: Tensor, sizes: Tensor, depth: int, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves [P], of which the first are filled; leaf of each point [P]; counts of leaves and of points outside [2]."""
    if not has_kernels(points):
        return leaves_reference(points, sizes, depth, wrap)
    if on_cuda(points):
        return _leaves_on_cuda(points, sizes, depth, wrap)
    n, clouds, kind = len(points), len(sizes), torch.int64
    leaves, point_leaf, counts = (torch.empty(size, dtype=kind, device="cpu") for size in (n, n, 2))
    starts = (sizes.cumsum(0) - sizes).contiguous()
    task = (points, torch.float32, 3 * n), n, (starts, kind, clouds), clouds, Int32(depth), Int32(wrap)
    launch("octree_leaves", points.device, *task, (leaves, kind, n), (point_leaf, kind, n), (counts, kind, 2))
    return leaves, point_leaf, counts


@shapes_of("octree_leaves")
def _(points: Tensor, sizes: Tensor, depth: int, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    leaves, point_leaf, counts = (points.new_empty(n, dtype=torch.int64) for n in (len(points), len(points), 2))
    return leaves, point_leaf, counts


def leaves_reference(points: Tensor, sizes: Tensor, depth: int, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device. Arguments as in `octree_leaves`.

    Returns:
        Leaves int64 [P], of which the first are filled; the leaf of each point int64 [P]; int64 [2], how many leaves
        are filled, and how many points lie outside (where any does, nothing else is computed).
    """
    leaves, counts = points.new_zeros(len(points), dtype=torch.int64), points.new_zeros(2, dtype=torch.int64)
    outside = ~(points.abs() <= 1).all(1)
    counts[1] = outside.sum()
    if int(counts[1]):
        return leaves, torch.zeros_like(leaves), counts
    size = 1 << depth
    cells = ((points + 1.0) * (size / 2)).int()
    cells = cells % size if wrap else cells.clamp(max=size - 1)
    frame = torch.repeat_interleave(sizes.to(points.device), output_size=len(points))
    coords = torch.cat([frame[:, None].int(), cells.flip(1)], 1)
    return _ranked(serialize(coords, (size,) * 3, "zorder"), counts)


def _leaves_on_cuda(points: Tensor, sizes: Tensor, depth: int, wrap: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, clouds, kind = len(points), len(sizes), torch.int64
    keys, counts = points.new_empty(n, dtype=kind), points.new_zeros(2, dtype=kind)
    starts = (sizes.cumsum(0) - sizes).to(device=points.device)
    task = (points, torch.float32, 3 * n), n, (starts, kind, clouds), clouds, Int32(depth), Int32(wrap)
    launch("octree_keys", points.device, *task, (keys, kind, n), (counts[1:], kind, 1))
    return _ranked(keys, counts)


def _ranked(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `_leaves` from the keys of all points, and counts whose second number is right."""
    found, point_leaf = torch.unique(keys, return_inverse=True)
    leaves = torch.zeros_like(keys)
    leaves[: len(found)] = found
    counts[0] = len(found)
    return leaves, point_leaf, counts


@integer_operator("octree_parents")
def _parents(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Parents [N], of which the first are filled, and how many [1]."""
    n, kind = len(keys), torch.int64
    parents, count = torch.empty_like(keys), keys.new_empty(1)
    launch("octree_parents", keys.device, (keys, kind, n), n, (parents, kind, n), (count, kind, 1))
    return parents, count


@shapes_of("octree_parents")
def _(keys: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(keys), keys.new_empty(1)


@integer_operator("octree_grow")
def _grow(above: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not has_kernels(above):
        return grow_reference(above, here)
    m, n, kind = len(above), len(here), torch.int64
    keys, children, rows = above.new_empty(8 * m), above.new_empty(8 * m, dtype=torch.int32), torch.zeros_like(here)
    inputs = (above, kind, m), m, (here, kind, n), n
    results = (keys, kind, 8 * m), (children, torch.int32, 8 * m), (rows, kind, n)
    launch("octree_grow", above.device, *inputs, *results)
    return keys, children, rows


@shapes_of("octree_grow")
def _(above: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = above.new_empty(8 * len(above))
    return keys, torch.empty_like(keys, dtype=torch.int32), torch.empty_like(here)


def grow_reference(above: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device; see `octree_grow`."""
    keys = octree_children(above).flatten()
    rows = torch.searchsorted(keys, here)
    children = keys.new_full((len(keys),), -1, dtype=torch.int32)
    children[rows] = torch.arange(len(here), device=keys.device, dtype=torch.int32)
    return keys, children, rows


@integer_operator("octree_neighbours")
def _neighbours(above: Tensor, children: Tensor, parents: Tensor) -> Tensor:
    step = _neighbours_by_kernel if has_kernels(above) else neighbours_reference
    return step(above, children, parents)


@shapes_of("octree_neighbours")
def _(above: Tensor, children: Tensor, parents: Tensor) -> Tensor:
    return above.new_empty(8 * len(parents), 27)


def _neighbours_by_kernel(above: Tensor, children: Tensor, parents: Tensor) -> Tensor:
    n, m, kind = len(above), len(parents), torch.int64
    table, wrong = above.new_empty(8 * m, 27), above.new_zeros(1)
    inputs = (above, kind, 27 * n), (children, torch.int32, n), n, (parents, kind, m), m
    launch("octree_neighbours", above.device, *inputs, (table, kind, 216 * m), (wrong, kind, 1))
    if int(wrong):
        raise ValueError(f"parents and their neighbours must be nodes below {n} (neighbours also -1)")
    return table


def neighbours_reference(above: Tensor, children: Tensor, parents: Tensor) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `octree_neighbours`."""
    n = len(above)
    rows = above[parents.clamp(0, max(n - 1, 0))]  # [M, 27]
    if bool(((parents < 0) | (parents >= n)).any()) or bool(((rows < -1) | (rows >= n)).any()):
        raise ValueError(f"parents and their neighbours must be nodes below {n} (neighbours also -1)")
    column, octant = (t.to(above.device) for t in _NEIGHBOUR_OF_CHILD)
    number = torch.cat([children.long(), children.new_full((1,), -1).long()])[rows][:, column]  # [M, 8, 27]
    return torch.where(number < 0, -1, 8 * number + octant).view(-1, 27)


def _neighbour_of_child() -> tuple[Tensor, Tensor]:
    """For each octant and offset: which neighbour of the parent holds the cell, and as which octant; [8, 27] each."""
    column, octant = (torch.empty(8, 27, dtype=torch.int64, device="cpu") for _ in range(2))
    for child, offset in itertools.product(range(8), range(27)):
        at = [(child >> 2 & 1) + offset // 9 - 1, (child >> 1 & 1) + offset // 3 % 3 - 1, (child & 1) + offset % 3 - 1]
        x, y, z = (cell // 2 + 1 for cell in at)
        column[child, offset] = 9 * x + 3 * y + z
        octant[child, offset] = 4 * (at[0] % 2) + 2 * (at[1] % 2) + at[2] % 2
    return column, octant


_NEIGHBOUR_OF_CHILD = _neighbour_of_child()


def clouds_of_keys(keys: Tensor, batch_size: int) -> Tensor:
    """How many of the ascending keys int64 [n] belong to each cloud, int64 [batch_size]."""
    if batch_size == 1:
        return keys.new_full((1,), len(keys))
    borders = torch.arange(batch_size + 1, device=keys.device) << BATCH_SHIFT
    return torch.searchsorted(keys, borders).diff()
