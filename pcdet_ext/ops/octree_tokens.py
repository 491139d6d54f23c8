"""Octrees as sequences of tokens: coarse to fine, which children each node has, and back to the exact cells.

The breadth-first sequence that octree generators and coders share (Meagher, "Geometric modeling using octree encoding",
1982): the root of every cloud, then the nodes of depth 1, and so on; inside a depth cloud by cloud in z-order. A token
holds a bit for each child (octant 4 x + 2 y + z). With anisotropic refinement a node splits only the axes that need it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, shapes_of
from pcdet_ext.ops.serialize import BATCH_SHIFT, MAX_DEPTH, deserialize, octree_children, octree_parent, serialize

_AXES = (4, 2, 1)  # bits of x, y, z in an octant
_ENDS_EARLY, _EMPTY_NODE, _ENDS_LATE = 1, 2, 3


@dataclass(frozen=True, eq=False)
class OctreeTokens:
    """The occupied cells of a batch of clouds as a sequence of tokens, one for each node above the leaves.

    Args:
        occupancy: uint8 [T], bit o set where the child in octant o = 4 x + 2 y + z is occupied. The first `batch_size`
            tokens are the roots, of which those of empty clouds are 0; no other token is.
        depth: of the leaves, 1 to 16; the grid has 2^depth cells along each axis.
        batch_size: number of clouds, empty ones included.
        cells: number of occupied cells.
        splits: uint8 [T], the axes that each node splits (bits 4, 2, 1 for x, y, z), or None where every node splits
            all three. An axis that a node does not split is never split below it: its cells are the same all along
            that axis. A node that splits none is full, and its occupancy is 1.
    """

    occupancy: Tensor
    depth: int
    batch_size: int
    cells: int
    splits: Tensor | None = None


@typed
def octree_tokens(coords: Tensor, batch_size: int, depth: int, anisotropic: bool = False) -> OctreeTokens:
    """The tokens of the cells of clouds. Cells that are given twice count once.

    Args:
        coords: int32 [N, 4], cells as (batch, z, y, x), in any order.
        batch_size: number of clouds, 1 to 32768.
        depth: 1 to 16; coordinates are below 2^depth.
        anisotropic: nodes split only the axes that need it, so that what is full along an axis costs nothing there.

    Returns:
        The sequence, on the device of the coordinates.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check_sizes(depth, batch_size)
    try:
        keys = torch.unique(serialize(coords, (1 << depth,) * 3, "zorder"))
    except ValueError as error:
        raise ValueError(f"{error}, of depth {depth}") from None
    if len(keys) and int(keys[-1] >> BATCH_SHIFT) >= batch_size:
        raise ValueError(f"coords have the batch index {int(keys[-1] >> BATCH_SHIFT)}, batch_size is {batch_size}")
    if anisotropic:
        return OctreeTokens(*_encode_anisotropic(keys, depth, batch_size))
    tokens, counts = _encode(keys, depth, batch_size)
    return OctreeTokens(tokens[: int(counts.sum())].clone(), depth, batch_size, len(keys))


@typed
def octree_from_tokens(tokens: OctreeTokens) -> Tensor:
    """The cells int32 [N, 4] as (batch, z, y, x) of a sequence of tokens, distinct and in z-order.

    Raises ValueError for a sequence that is none: too short or too long, a node without children, axes that cannot be
    split, or another number of cells than it tells. The number is known before anything of that size is made.
    """
    occupancy, splits, depth = tokens.occupancy, tokens.splits, tokens.depth
    _check_sizes(depth, tokens.batch_size)
    for name, tensor in (("occupancy", occupancy), ("splits", splits)):
        if tensor is not None and (tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) != len(occupancy)):
            raise ValueError(f"{name} must be uint8 [T], got {tensor.dtype} {list(tensor.shape)}")
    if splits is not None:
        return _decode_anisotropic(tokens, splits)
    cells, fault, place, at = _check(occupancy.contiguous(), depth, tokens.batch_size).tolist()
    if fault:
        _refuse(fault, place, at, len(occupancy))
    _check_cells(cells, tokens)
    keys = _decode(occupancy.contiguous(), depth, tokens.batch_size, cells)
    return deserialize(keys, "zorder", depth)


def _check_sizes(depth: int, batch_size: int) -> None:
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be between 1 and {MAX_DEPTH}, got {depth}")
    if not 1 <= batch_size <= 1 << 15:
        raise ValueError(f"batch_size must be between 1 and {1 << 15}, got {batch_size}")


def _check_cells(cells: int, tokens: OctreeTokens) -> None:
    if cells != tokens.cells:
        raise ValueError(f"damaged tokens: they stand for {cells} cells, but say {tokens.cells}")


def _refuse(fault: int, place: int, depth: int, total: int) -> None:
    what = {
        _ENDS_EARLY: f"the sequence ends after {total} tokens, inside of depth {depth}",
        _EMPTY_NODE: f"token {place} at depth {depth} has no children, which only the root of an empty cloud may",
        _ENDS_LATE: f"{total - place} tokens are left over after the last depth",
    }
    raise ValueError(f"damaged tokens: {what[fault]}")


@integer_operator("octree_tokens")
def _encode(keys: Tensor, depth: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Tokens [batch_size + N · depth], of which the first are filled, and their number at each depth [depth]."""
    if not len(keys) or not has_kernels(keys):
        return encode_reference(keys, depth, batch_size)
    if on_cuda(keys):
        return _encode_on_cuda(keys, depth, batch_size)
    n, room = len(keys), batch_size + len(keys) * depth
    tokens, counts = keys.new_zeros(room, dtype=torch.uint8), keys.new_zeros(depth)
    task = (keys, torch.int64, n), n, Int32(depth), batch_size
    launch("octree_tokens", keys.device, *task, (tokens, torch.uint8, room), (counts, torch.int64, depth))
    return tokens, counts


def _encode_on_cuda(keys: Tensor, depth: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """All depths at once, without waiting for any of their sizes."""
    n, room, kind, level = len(keys), batch_size + len(keys) * depth, torch.int64, Int32(depth)
    starts, tokens = keys.new_empty(n, dtype=torch.int32), keys.new_zeros(room, dtype=torch.int32)
    launch("octree_token_starts", keys.device, (keys, kind, n), n, level, (starts, torch.int32, n))
    ranks = (starts <= torch.arange(depth, device=keys.device)[:, None]).cumsum(1) - 1
    counts = ranks[:, -1] + 1
    counts[:1] = batch_size
    offsets = counts.cumsum(0) - counts
    places = (starts, torch.int32, n), (ranks, kind, depth * n), (offsets, kind, depth)
    launch("octree_tokens", keys.device, (keys, kind, n), n, level, *places, room, (tokens, torch.int32, room))
    return tokens.to(torch.uint8), counts


@shapes_of("octree_tokens")
def _(keys: Tensor, depth: int, batch_size: int) -> tuple[Tensor, Tensor]:
    return keys.new_empty(batch_size + len(keys) * depth, dtype=torch.uint8), keys.new_empty(depth)


def encode_reference(keys: Tensor, depth: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """The definition of `octree_tokens` in PyTorch on any device.

    Args:
        keys: int64 [N], the leaves in z-order, ascending, no two the same.
        depth: of the leaves, from 1.
        batch_size: clouds B; one without a leaf has an empty root.

    Returns:
        Tokens uint8 [T], depth after depth, and how many there are at each depth, int64 [depth].
    """
    levels: list[Tensor] = []
    while len(levels) < depth:
        parents, owner = torch.unique_consecutive(octree_parent(keys), return_inverse=True)
        bits = torch.zeros(len(parents), dtype=torch.int64, device=keys.device)
        levels.insert(0, bits.index_add(0, owner, 1 << (keys & 7)))
        keys = parents
    roots = torch.zeros(batch_size, dtype=torch.int64, device=keys.device)
    levels[0] = roots.index_copy(0, keys >> BATCH_SHIFT, levels[0])
    counts = torch.tensor([len(level) for level in levels], device=keys.device, dtype=torch.int64)
    return torch.cat(levels).to(torch.uint8), counts


@integer_operator("octree_tokens_check")
def _check(tokens: Tensor, depth: int, batch_size: int) -> Tensor:
    """int64 [4]: number of cells, what is wrong (0: nothing), at which token, and at which depth."""
    if on_cuda(tokens) or not has_kernels(tokens):
        return check_reference(tokens, depth, batch_size)
    report, n = tokens.new_zeros(4, dtype=torch.int64), len(tokens)
    task = (tokens, torch.uint8, n), n, Int32(depth), batch_size
    launch("octree_tokens_check", tokens.device, *task, (report, torch.int64, 4))
    return report


@shapes_of("octree_tokens_check")
def _(tokens: Tensor, depth: int, batch_size: int) -> Tensor:
    return tokens.new_empty(4, dtype=torch.int64)


def check_reference(tokens: Tensor, depth: int, batch_size: int) -> Tensor:
    """Whether tokens make octrees, in PyTorch on any device.

    Args:
        tokens: uint8 [T], depth after depth.
        depth: of the leaves.
        batch_size: clouds B, the number of roots.

    Returns:
        int64 [4]: how many leaves there are; what is wrong, 0 for nothing; the token where it was found; its depth.
    """
    place, nodes, n = 0, batch_size, len(tokens)
    report = (0, _ENDS_EARLY, n, 0)
    for d in range(depth):
        level = tokens[place : place + nodes]
        if len(level) < nodes:
            report = (0, _ENDS_EARLY, n, d)
            break
        empty = torch.nonzero(level == 0).flatten().tolist() if d else []
        if empty:
            report = (0, _EMPTY_NODE, place + empty[0], d)
            break
        place, nodes = place + nodes, int(_children(level)[0].numel())
    else:
        report = (0, _ENDS_LATE, place, depth) if place < n else (nodes, 0, n, depth)
    return torch.tensor(report, dtype=torch.int64, device=tokens.device)


@integer_operator("octree_of_tokens")
def _decode(tokens: Tensor, depth: int, batch_size: int, cells: int) -> Tensor:
    if not has_kernels(tokens):
        return decode_reference(tokens, depth, batch_size, cells)
    keys = tokens.new_empty(cells, dtype=torch.int64)
    if on_cuda(tokens):
        n, numbers = len(tokens), _bits(tokens)
        links = keys.new_empty(n - batch_size + cells)
        inputs = (tokens, torch.uint8, n), n, (numbers.cumsum(0) - numbers, torch.int64, n), batch_size, Int32(depth)
        results = (links, torch.int64, len(links)), (keys, torch.int64, cells)
        launch("octree_of_tokens", tokens.device, *inputs, cells, *results)
        return keys
    task = (tokens, torch.uint8, len(tokens)), batch_size, Int32(depth), cells
    launch("octree_of_tokens", tokens.device, *task, (keys, torch.int64, cells))
    return keys


@shapes_of("octree_of_tokens")
def _(tokens: Tensor, depth: int, batch_size: int, cells: int) -> Tensor:
    return tokens.new_empty(cells, dtype=torch.int64)


def decode_reference(tokens: Tensor, depth: int, batch_size: int, cells: int) -> Tensor:
    """The leaves of tokens that are checked, in PyTorch on any device.

    Args:
        tokens: uint8 [T], depth after depth.
        depth: of the leaves.
        batch_size: clouds B, the number of roots.
        cells: how many leaves there are, which a kernel must know before it runs.

    Returns:
        Keys int64 [cells], ascending.
    """
    keys, place = torch.arange(batch_size, device=tokens.device) << BATCH_SHIFT, 0
    for _ in range(depth):
        parent, octant = _children(tokens[place : place + len(keys)])
        place, keys = place + len(keys), octree_children(keys)[parent, octant]
    return keys.clone()


def _bits(tokens: Tensor) -> Tensor:
    """How many bits of each uint8 are set, int64."""
    pairs = tokens.long() - (tokens.long() >> 1 & 0x55)
    fours = (pairs & 0x33) + (pairs >> 2 & 0x33)
    return (fours + (fours >> 4)) & 0x0F


def _children(level: Tensor) -> tuple[Tensor, Tensor]:
    """For every set bit of tokens [n]: the token, and the octant; int64 [children] each."""
    parent, octant = torch.nonzero(level[:, None] >> torch.arange(8, device=level.device) & 1, as_tuple=True)
    return parent, octant


def _encode_anisotropic(keys: Tensor, depth: int, batch_size: int) -> tuple[Tensor, int, int, int, Tensor]:
    """The fields of `OctreeTokens` from ascending keys."""
    levels = _shapes(keys, depth)
    roots = keys.new_full((batch_size,), -1)
    roots[levels[0].keys >> BATCH_SHIFT] = torch.arange(len(levels[0].keys), device=keys.device)
    nodes, active, octants = roots, torch.full_like(roots, 7), torch.arange(8, device=keys.device)
    occupancy, splits = [], []
    for level in levels:
        table = torch.cat([level.children, level.children.new_full((1, 8), -1)])[nodes]  # of -1: the last, without
        constant = torch.cat([level.constant, level.constant.new_full((1,), 7)])[nodes]
        split = active & ~constant
        followed = (table >= 0) & (octants & ~split[:, None] == 0)
        occupancy.append((followed << octants).sum(1).to(torch.uint8))
        splits.append(split.to(torch.uint8))
        parent, octant = torch.nonzero(followed & (split > 0)[:, None], as_tuple=True)
        nodes, active = table[parent, octant], split[parent]
    return torch.cat(occupancy), depth, batch_size, len(keys), torch.cat(splits)


@dataclass(frozen=True)
class _Level:
    """The occupied nodes of a depth.

    keys: [n]; children: [n, 8], their rows or -1; constant: [n], the axes (bits of an octant) along which the cells of
    a node are all the same.
    """

    keys: Tensor
    children: Tensor
    constant: Tensor


def _shapes(keys: Tensor, depth: int) -> list[_Level]:
    """Depths 0 to depth - 1 from the leaves. Nodes with the same cells, relative to their corner, share a number."""
    levels: list[_Level] = []
    shape, constant = torch.ones_like(keys), torch.full_like(keys, 7)
    while len(levels) < depth:
        parents, owner = torch.unique_consecutive(octree_parent(keys), return_inverse=True)
        children = keys.new_full((len(parents), 8), -1)
        children[owner, keys & 7] = torch.arange(len(keys), device=keys.device)
        below = torch.cat([shape, shape.new_zeros(1)])[children]  # 0: no child
        fixed = torch.cat([constant, constant.new_full((1,), 7)])[children]
        constant = torch.zeros_like(parents)
        for axis in _AXES:
            low = [o for o in range(8) if not o & axis]
            high = [o | axis for o in low]
            same = (below[:, low] == below[:, high]) & (fixed[:, low] & axis > 0)
            constant |= torch.where(same.all(1), axis, 0)
        shape = torch.unique(below, dim=0, return_inverse=True)[1] + 1 if len(parents) else torch.zeros_like(parents)
        levels.insert(0, _Level(parents, children, constant))
        keys = parents
    return levels


def _decode_anisotropic(tokens: OctreeTokens, splits: Tensor) -> Tensor:
    occupancy, axes = tokens.occupancy.long(), splits.long()
    device, depth = occupancy.device, tokens.depth
    batch, place = torch.arange(tokens.batch_size, device=device), 0
    corner = torch.zeros(len(batch), 3, dtype=torch.int64, device=device)  # x, y, z in cells of the leaves
    side = torch.full_like(corner, 1 << depth)
    bits, octants = torch.tensor(_AXES, device=device), torch.arange(8, device=device)
    active, boxes = torch.full_like(batch, 7), []
    for d in range(depth):
        occupied, split = occupancy[place : place + len(batch)], axes[place : place + len(batch)]
        if len(occupied) < len(batch):
            _refuse(_ENDS_EARLY, place, d, len(occupancy))
        _check_splits(occupied, split, active, place, d)
        place += len(batch)
        full = (split == 0) & (occupied > 0)
        boxes.append((batch[full], corner[full], side[full]))
        parent, octant = torch.nonzero((occupied[:, None] >> octants & 1) * (split > 0)[:, None], as_tuple=True)
        batch, active = batch[parent], split[parent]
        side = torch.where(active[:, None] & bits > 0, 1 << (depth - d - 1), side[parent])
        corner = corner[parent] + torch.where(octant[:, None] & bits > 0, side, 0)
    if place < len(occupancy):
        _refuse(_ENDS_LATE, place, depth, len(occupancy))
    boxes.append((batch, corner, side))
    batch, corner, side = (torch.cat(parts) for parts in zip(*boxes, strict=True))
    volume = side.prod(1)
    _check_cells((int((volume >> 24).sum()) << 24) + int((volume & 0xFFFFFF).sum()), tokens)  # may exceed 64 bits
    box = torch.repeat_interleave(volume)
    number = torch.arange(len(box), device=device) - (volume.cumsum(0) - volume)[box]
    depth_of, rows_of = side[box, 2], side[box, 1]
    z, y, x = number % depth_of, number // depth_of % rows_of, number // (depth_of * rows_of)
    cells = torch.stack([x, y, z], 1) + corner[box]
    coords = torch.cat([batch[box, None], cells.flip(1)], 1).int()
    keys = serialize(coords, (1 << depth,) * 3, "zorder")
    return coords[keys.argsort()]


def _check_splits(occupied: Tensor, split: Tensor, active: Tensor, place: int, depth: int) -> None:
    """Raise ValueError for tokens of one depth that cannot be, the first of which is number `place`."""
    octants = torch.arange(8, device=split.device)
    misplaced = ((occupied[:, None] >> octants & 1) * (octants & ~split[:, None] > 0)).any(1)
    empty = occupied == 0
    for what, wrong in (
        ("splits axes that a node above it does not split", split & ~active > 0),
        ("has children along axes that it does not split", misplaced),
        ("has no children, which only the root of an empty cloud may", empty & ((split > 0) | (depth > 0))),
    ):
        found = torch.nonzero(wrong).flatten().tolist()
        if found:
            raise ValueError(f"damaged tokens: token {place + found[0]} at depth {depth} {what}")
