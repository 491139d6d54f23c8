"""Octrees of point clouds: which nodes exist at each depth, their children and their neighbours.

Nodes are the cells of a cube [-1, 1]³ halved again and again, in z-order (z lowest; see `pcdet_ext.ops.serialize`),
cloud after cloud. Down to `full_depth` all exist; below, the eight children of every node that holds points do, empty
ones too (Wang et al., "O-CNN", SIGGRAPH 2017; "OctFormer", SIGGRAPH 2023). Rows of features go with all nodes of a
depth or with the occupied ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.grouping.orders import Ordering
from pcdet_ext.grouping.partitions import octree_windows
from pcdet_ext.ops.octree import clouds_of_keys, octree_grow, octree_leaves, octree_neighbours, octree_parents
from pcdet_ext.ops.segment import segment_reduce
from pcdet_ext.ops.serialize import BATCH_SHIFT, deserialize, serialize
from pcdet_ext.structures import Groups, SparseVoxels

MAX_DEPTH = 16
TableKey = tuple[int, str, int, bool]  # depth, kernel, stride, nempty
# Kernels by their extents along x, y, z: which of the 27 cells around a node they read, in their own order.
KERNELS = {
    "333": tuple(range(27)),
    "222": (13, 14, 16, 17, 22, 23, 25, 26),
    "311": (4, 13, 22),
    "131": (10, 13, 16),
    "113": (12, 13, 14),
    "331": (1, 4, 7, 10, 13, 16, 19, 22, 25),
    "313": (3, 4, 5, 12, 13, 14, 21, 22, 23),
    "133": tuple(range(9, 18)),
}


@dataclass(frozen=True)
class OctreeLevel:
    """The nodes of one depth.

    keys: int64 [n], z-order with the cloud from bit 48; children: int32 [n], running number among the occupied nodes,
    -1 where empty; occupied_rows: int64 [m], nodes that hold points; counts, occupied: int64 [B], nodes and occupied
    nodes of each cloud.
    """

    keys: Tensor
    children: Tensor
    occupied_rows: Tensor
    counts: Tensor
    occupied: Tensor


@dataclass(frozen=True)
class Octree:
    """An octree of a batch of clouds; see `build_octree`.

    levels: depths 0 to `depth`. points: float32 [leaves, 3], mean of the points of each occupied leaf, in leaf cells;
    normals: [leaves, 3], of length 1, or None; features: [leaves, F], means, or None. point_leaf: int64 [P], occupied
    leaf of each point.
    """

    depth: int
    full_depth: int
    batch_size: int
    levels: tuple[OctreeLevel, ...]
    points: Tensor
    point_leaf: Tensor
    normals: Tensor | None = None
    features: Tensor | None = None
    _neighbours: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _tables: dict[TableKey, Tensor] = field(default_factory=dict, repr=False)
    _pairs: dict[TableKey, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False)
    _windows: dict[tuple[int | bool | None, ...], Groups] = field(default_factory=dict, repr=False)

    def coords(self, depth: int, nempty: bool = True) -> Tensor:
        """Cells int32 [n, 4] as (batch, z, y, x) of the occupied nodes, or of all with nempty=False."""
        level = self.levels[depth]
        keys = level.keys[level.occupied_rows] if nempty else level.keys
        return deserialize(keys, "zorder", max(depth, 1))

    def neighbours(self, depth: int) -> Tensor:
        """Nodes int64 [n, 27] around each node (itself: column 13), -1 where there is none.

        Column 9 (dx + 1) + 3 (dy + 1) + dz + 1. Tables are kept; each comes from that of the depth above.
        """
        if depth not in self._neighbours:
            self._neighbours[depth] = self._root_table() if depth == 0 else self._table_from_parents(depth)
        return self._neighbours[depth]

    def table(self, depth: int, kernel: str = "333", stride: int = 1, nempty: bool = True) -> Tensor:
        """What a convolution reads at each of its outputs. It is computed once and kept.

        Args:
            depth: of the features that are read.
            kernel: extents along x, y and z as digits, for example "333".
            stride: 1 for one output per node (per occupied node with `nempty`), 2 for one per occupied parent.
            nempty: whether there are features of occupied nodes only.

        Returns:
            int64 [M, K]: rows of the features, -1 where there is none.

        Raises:
            ValueError: the kernel or the stride is unknown.
        """
        key = (depth, kernel, stride, nempty)
        if key not in self._tables:
            self._tables[key] = self._table(*key)
        return self._tables[key]

    def pairs(
        self, depth: int, kernel: str = "333", stride: int = 1, nempty: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """The entries of `table`: for each of its columns the rows that are read and the outputs that read them. Kept.

        Args:
            depth: see `table`.
            kernel: see `table`.
            stride: see `table`.
            nempty: see `table`.

        Returns:
            For each column rows int64 [n] and outputs int64 [n], the outputs ascending.

        Raises:
            ValueError: as `table`.
        """
        key = (depth, kernel, stride, nempty)
        if key not in self._pairs:
            columns = self.table(*key).unbind(1)
            readers = [torch.nonzero(column >= 0).squeeze(1) for column in columns]
            self._pairs[key] = [(column[out], out) for column, out in zip(columns, readers, strict=True)]
        return self._pairs[key]

    def _table(self, depth: int, kernel: str, stride: int, nempty: bool) -> Tensor:
        """See `table`."""
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        level, table = self.levels[depth], self.neighbours(depth)
        if stride == 2:
            table = table[::8]
        elif nempty:
            table = table[level.occupied_rows]
        table = table[:, list(KERNELS[kernel])]
        return _lookup(level.children.long(), table) if nempty else table

    def pad(self, features: Tensor, depth: int) -> Tensor:
        """Rows of occupied nodes to rows of all nodes, zeros elsewhere."""
        level = self.levels[depth]
        rows = features.new_zeros(len(level.keys), features.shape[1])
        return rows.index_copy(0, level.occupied_rows, features)

    def depad(self, features: Tensor, depth: int) -> Tensor:
        """Rows of all nodes to rows of occupied nodes."""
        return features[self.levels[depth].occupied_rows]

    def search(self, cells: Tensor, depth: int, nempty: bool = True) -> Tensor:
        """Find nodes by their place.

        Args:
            cells: integer [..., 4] (batch, z, y, x).
            depth: of the nodes.
            nempty: whether rows count occupied nodes only.

        Returns:
            int64 [...]: the row of the node at each cell, -1 outside of the octree and where no node is.
        """
        cells, size = cells.long(), 1 << depth
        inside = ((cells[..., 1:] >= 0) & (cells[..., 1:] < size)).all(-1)
        inside = inside & (cells[..., 0] >= 0) & (cells[..., 0] < self.batch_size)
        safe = torch.where(inside[..., None], cells, 0).int()
        keys = serialize(safe.flatten(0, -2), (size,) * 3, "zorder").view(inside.shape)
        level = self.levels[depth]
        place = torch.searchsorted(level.keys, keys)
        found = torch.cat([level.keys, level.keys.new_full((1,), -1)])[place] == keys
        row = torch.where(inside & found, place, -1)
        return _lookup(level.children.long(), row) if nempty else row

    def windows(
        self,
        depth: int,
        size: int,
        dilation: int = 1,
        nempty: bool = True,
        straddle: bool = False,
        padding: int | None = None,
    ) -> Groups:
        """Windows of rows of a depth, which know the cells of the rows; kept.

        Above `full_depth` every node counts as occupied, also those that hold no point, and has a row.

        Args:
            depth: of the nodes.
            size: slots of a window.
            dilation: distance in the sequence between two slots of a window.
            nempty: whether rows are those of occupied nodes alone.
            straddle: cut windows from the joined sequence of all clouds, see `octree_windows`.
            padding: the sequence is filled up to a multiple of it, see `octree_windows`.

        Returns:
            The windows as groups.

        Raises:
            ValueError: for a depth that the octree does not have, and as `octree_windows`.
        """
        if not 0 <= depth <= self.depth:
            raise ValueError(f"windows are cut at the depths 0 to {self.depth}, not at {depth}")
        key = (depth, size, dilation, nempty, straddle, padding)
        if key not in self._windows:
            cells = self.coords(depth, nempty)[:, 1:]
            rows = torch.arange(len(cells), device=cells.device)
            level = self.levels[depth]
            ordering = Ordering(rows, rows, level.occupied if nempty else level.counts)
            windows = octree_windows(ordering, size, dilation, straddle, padding)
            self._windows[key] = replace(windows, cells=cells)
        return self._windows[key]

    def frame(self, depth: int, nempty: bool = True) -> Tensor:
        """Cloud int64 of each row."""
        level = self.levels[depth]
        return torch.repeat_interleave(level.occupied if nempty else level.counts)

    def _root_table(self) -> Tensor:
        table = self.levels[0].keys.new_full((self.batch_size, 27), -1)
        table[:, 13] = torch.arange(self.batch_size, device=table.device)
        return table

    def _table_from_parents(self, depth: int) -> Tensor:
        parents = self.levels[depth - 1]
        return octree_neighbours(self.neighbours(depth - 1), parents.children, parents.occupied_rows)


def _lookup(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows], and -1 where rows are."""
    return torch.cat([table, table.new_full((1,), -1)])[rows]


def build_octree(
    points: Sequence[Tensor],
    depth: int,
    full_depth: int = 2,
    normals: Sequence[Tensor] | None = None,
    features: Sequence[Tensor] | None = None,
    wrap: bool = False,
) -> Octree:
    """The octree of clouds of points.

    Args:
        points: float32 [P, 3] (x, y, z) in [-1, 1] for each cloud.
        depth: of the leaves, which are 2^(1 - depth) wide.
        full_depth: down to this depth all nodes exist.
        normals: floating-point [P, 3] for each cloud; a leaf has the direction of their sum.
        features: floating-point [P, F] for each cloud; a leaf has their mean.
        wrap: whether a coordinate of exactly +1 falls into the first cell of its axis, as published, and not the last.

    Raises:
        ValueError: there is no cloud, points are not float32 [P, 3] or lie outside of [-1, 1], or the depths make no
            tree.
    """
    if not 1 <= depth <= MAX_DEPTH or not 1 <= full_depth <= depth:
        raise ValueError(f"1 ≤ full_depth ≤ depth ≤ {MAX_DEPTH} must hold, got full_depth {full_depth}, depth {depth}")
    if not points or any(p.ndim != 2 or p.shape[1] != 3 or p.dtype != torch.float32 for p in points):
        raise ValueError("points must be float32 [P, 3], one tensor per cloud")
    joined = torch.cat(list(points))
    sizes = torch.tensor([len(p) for p in points], device="cpu")
    leaves = octree_leaves(joined, sizes, depth, wrap)
    octree = _octree(*leaves, (joined + 1.0) * 2.0 ** (depth - 1), depth, full_depth, len(points))

    def at_leaves(values: Sequence[Tensor] | None, kind: Literal["sum", "mean"]) -> Tensor | None:
        if values is None:
            return None
        return segment_reduce(torch.cat(list(values)), octree.point_leaf, len(octree.points), kind)

    normal = at_leaves(normals, "sum")
    return replace(
        octree,
        normals=None if normal is None else torch.nn.functional.normalize(normal),
        features=at_leaves(features, "mean"),
    )


def octree_of_voxels(voxels: SparseVoxels) -> Octree:
    """The octree whose leaves are the voxels of a grid, of the least depth that holds the grid; cached on the voxels.

    Its `points` are the centres of the voxels, and `point_leaf` is the leaf of each voxel. Only depth 1 is full.
    Raises ValueError for a grid of more than 2¹⁶ cells along an axis.
    """
    depth = max(1, (max(voxels.grid) - 1).bit_length())
    if depth > MAX_DEPTH:
        raise ValueError(f"an octree has at most 2^{MAX_DEPTH} cells along an axis, the grid has {voxels.grid}")
    return voxels.plan("octree", lambda v: _octree_of_cells(v, depth))


def _octree_of_cells(voxels: SparseVoxels, depth: int) -> Octree:
    keys = serialize(voxels.coords, (1 << depth,) * 3, "zorder")
    leaves, point_leaf = torch.unique(keys, return_inverse=True)
    return _octree(leaves, point_leaf, voxels.coords[:, 1:].flip(1) + 0.5, depth, 1, voxels.batch_size)


def _octree(leaves: Tensor, point_leaf: Tensor, scaled: Tensor, depth: int, full_depth: int, batch_size: int) -> Octree:
    """The octree of points float32 [P, 3] in leaf cells, from the keys of its leaves and the leaf of each point."""
    mean = segment_reduce(scaled, point_leaf, len(leaves), "mean")
    return Octree(depth, full_depth, batch_size, _levels(leaves, depth, full_depth, batch_size), mean, point_leaf)


def _levels(leaves: Tensor, depth: int, full_depth: int, batch_size: int) -> tuple[OctreeLevel, ...]:
    """Every depth from the keys of the occupied leaves, ascending."""
    occupied = [leaves]
    for _ in range(depth - full_depth):
        occupied.insert(0, octree_parents(occupied[0]))
    levels = []
    for d in range(full_depth + 1):
        cells = torch.arange(8**d, device=leaves.device)
        frames = torch.arange(batch_size, device=leaves.device) << BATCH_SHIFT
        keys = (frames[:, None] | cells).flatten()
        levels.append(_full_level(keys, keys if d < full_depth else occupied[0], batch_size))
    for above, here in itertools.pairwise(occupied):
        counts = 8 * levels[-1].occupied
        levels.append(OctreeLevel(*octree_grow(above, here), counts, clouds_of_keys(here, batch_size)))
    return tuple(levels)


def _full_level(keys: Tensor, occupied: Tensor, batch_size: int) -> OctreeLevel:
    rows = torch.searchsorted(keys, occupied)
    children = torch.full_like(keys, -1, dtype=torch.int32)
    children[rows] = torch.arange(len(occupied), device=keys.device, dtype=torch.int32)
    return OctreeLevel(keys, children, rows, clouds_of_keys(keys, batch_size), clouds_of_keys(occupied, batch_size))


def input_features(octree: Octree, channels: str) -> Tensor:
    """Features float32 [leaves, …] of the occupied leaves: letters of `channels`, always joined as N, D, L, P, F.

    N: normal (3); D: dot product of L and N (1); L: place of the mean point in its leaf, from -0.5 to 0.5 (3); P: mean
    point in [-1, 1] (3); F: features. Raises ValueError for other letters and for what the octree does not have.
    """
    wanted = set(channels.upper())
    if not wanted or wanted - set("NDLPF"):
        raise ValueError(f"channels must be letters of NDLPF, got {channels!r}")
    local = octree.points.frac() - 0.5
    made = {"L": local, "P": octree.points * 2.0 ** (1 - octree.depth) - 1.0}
    if octree.normals is not None:
        made |= {"N": octree.normals, "D": (local * octree.normals).sum(1, keepdim=True)}
    if octree.features is not None:
        made["F"] = octree.features
    if wanted - made.keys():
        raise ValueError(f"channels {channels!r} need normals or features that the octree does not have")
    return torch.cat([made[letter] for letter in "NDLPF" if letter in wanted], 1)
