"""Layers on the nodes of an octree: convolutions, pooling, up-sampling and interpolation (ocnn; OctFormer, Wang 2023).

Features have a row for each occupied node of a depth (nempty) or for each node. State-dict keys are those of ocnn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pcdet_ext.grouping.octree import KERNELS, Octree
from pcdet_ext.models.layers.sparse_conv import convolve_pairs
from pcdet_ext.ops.octree_conv import octree_depthwise_conv
from pcdet_ext.ops.segment import segment_reduce


class _OctreeLayer(nn.Module):
    """What the convolutions share: weights [K, …], and whether rows are those of occupied nodes."""

    def __init__(self, shape: tuple[int, int, int], kernel: str, stride: int, nempty: bool, bias: int) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        self.kernel, self.stride, self.nempty = kernel, stride, nempty
        self.weights = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None
        bound = math.sqrt(6.0 / (shape[0] * (shape[1] + shape[2])))
        nn.init.uniform_(self.weights, -bound, bound)

    def _biased(self, rows: Tensor) -> Tensor:
        return rows if self.bias is None else rows + self.bias


class OctreeConv(_OctreeLayer):
    """Convolution on the nodes of a depth. weights: [K, in_channels, out_channels].

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: extents along x, y and z as digits, such as "333".
        stride: with 2 the output is one depth up, one row per parent, centred on its first child.
        nempty: whether there are rows of occupied nodes only.
        bias: whether one is added.

    Raises:
        ValueError: the kernel or the stride is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: str = "333",
        stride: int = 1,
        nempty: bool = True,
        bias: bool = False,
    ) -> None:
        shape = (len(KERNELS.get(kernel, ())), in_channels, out_channels)
        super().__init__(shape, kernel, stride, nempty, out_channels if bias else 0)

    def forward(self, features: Tensor, octree: Octree, depth: int) -> Tensor:
        """Convolve the features of a depth.

        Args:
            features: floating-point [N, in_channels], rows of the nodes.
            octree: whose nodes they are.
            depth: of the features.

        Returns:
            [M, out_channels], rows of the same depth, or of depth - 1 with stride 2.
        """
        reads = (depth, self.kernel, self.stride, self.nempty)
        rows = len(octree.table(*reads))
        out = self._biased(convolve_pairs(features, self.weights, octree.pairs(*reads), rows))
        return octree.pad(out, depth - 1) if self.stride == 2 and not self.nempty else out


class OctreeDeconv(_OctreeLayer):
    """The transpose of `OctreeConv` with stride 2: one depth down. weights: [K, out_channels, in_channels].

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: extents along x, y and z as digits, such as "333".
        nempty: whether there are rows of occupied nodes only.
        bias: whether one is added.

    Raises:
        ValueError: the kernel is unknown.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: str = "333", nempty: bool = True, bias: bool = False
    ) -> None:
        shape = (len(KERNELS.get(kernel, ())), out_channels, in_channels)
        super().__init__(shape, kernel, 2, nempty, out_channels if bias else 0)

    def forward(self, features: Tensor, octree: Octree, depth: int) -> Tensor:
        """Spread the features of a depth over the next one.

        Args:
            features: floating-point [N, in_channels], rows of the nodes.
            octree: whose nodes they are.
            depth: of the features.

        Returns:
            [M, out_channels], rows of depth + 1.
        """
        below = octree.levels[depth + 1]
        rows = len(below.occupied_rows) if self.nempty else len(below.keys)
        features = features if self.nempty else octree.depad(features, depth)
        swapped = [(out, into) for into, out in octree.pairs(depth + 1, self.kernel, 2, self.nempty)]
        return self._biased(convolve_pairs(features, self.weights.transpose(1, 2), swapped, rows))


class OctreeDWConv(_OctreeLayer):
    """Depth-wise 3×3×3 convolution on the nodes of a depth. weights: [27, 1, channels].

    Args:
        channels: of the input and the output.
        nempty: whether there are rows of occupied nodes only.
        bias: whether one is added.
    """

    def __init__(self, channels: int, nempty: bool = True, bias: bool = False) -> None:
        super().__init__((27, 1, channels), "333", 1, nempty, channels if bias else 0)

    def forward(self, features: Tensor, octree: Octree, depth: int) -> Tensor:
        """Convolve each channel of the features of a depth.

        Args:
            features: floating-point [N, channels], rows of the nodes.
            octree: whose nodes they are.
            depth: of the features.

        Returns:
            [N, channels].
        """
        table = octree.table(depth, "333", 1, self.nempty)
        return self._biased(octree_depthwise_conv(features, self.weights.squeeze(1), table))


def octree_max_pool(features: Tensor, octree: Octree, depth: int, nempty: bool = True) -> Tensor:
    """The maximum over the children of each node, one depth up.

    Args:
        features: floating-point [N, C], rows of the nodes of `depth`.
        octree: whose nodes they are.
        depth: of the features.
        nempty: whether there are rows of occupied nodes only.

    Returns:
        [M, C], rows of depth - 1; zeros for nodes without children.
    """
    level, above = octree.levels[depth], octree.levels[depth - 1]
    nodes = level.occupied_rows if nempty else torch.arange(len(level.keys), device=features.device)
    pooled = segment_reduce(features, nodes // 8, len(above.occupied_rows), "max")
    return pooled if nempty else octree.pad(pooled, depth - 1)


def octree_global_pool(features: Tensor, octree: Octree, depth: int, nempty: bool = True) -> Tensor:
    """The mean of the features of each cloud.

    Args:
        features: floating-point [N, C], rows of the nodes of `depth`.
        octree: whose nodes they are.
        depth: of the features.
        nempty: whether there are rows of occupied nodes only.

    Returns:
        [B, C]; zeros for a cloud without rows.
    """
    return segment_reduce(features, octree.frame(depth, nempty), octree.batch_size, "mean")


def octree_upsample(features: Tensor, octree: Octree, depth: int, target: int, nempty: bool = True) -> Tensor:
    """Give each node of a deeper depth the features of its ancestor.

    Args:
        features: floating-point [N, C], rows of the nodes of `depth`.
        octree: whose nodes they are.
        depth: of the features.
        target: the deeper depth.
        nempty: whether there are rows of occupied nodes only.

    Returns:
        [M, C], rows of `target`.

    Raises:
        ValueError: `target` is less deep.
    """
    if target < depth:
        raise ValueError(f"target must be at least depth {depth}, got {target}")
    cells = octree.coords(target, nempty)
    ancestors = torch.cat([cells[:, :1], cells[:, 1:] >> (target - depth)], 1)
    return _rows_or_zero(features, octree.search(ancestors, depth, nempty))


def octree_interpolate(
    features: Tensor,
    octree: Octree,
    depth: int,
    points: Tensor,
    batch_index: Tensor,
    nempty: bool = True,
    linear: bool = False,
    wrap: bool = False,
) -> Tensor:
    """Features at points: of the node that a point is in, or interpolated between nodes.

    Args:
        features: floating-point [N, C], rows of the nodes of `depth`.
        octree: whose nodes they are.
        depth: of the features.
        points: float32 [Q, 3] (x, y, z) in [-1, 1].
        batch_index: int64 [Q], the cloud of each point.
        nempty: whether there are rows of occupied nodes only.
        linear: whether the up to eight nodes whose centres are around a point count, weighted by distance along each
            axis, over the sum of their weights.
        wrap: whether cells outside of the cube are those of the opposite side, as published; otherwise they do not
            exist, and +1 belongs to the last cell.

    Returns:
        [Q, C]; zeros where there is no node.
    """
    size = 1 << depth
    place = (points + 1.0) * (size / 2)
    if not linear:
        # Published keys cut coordinates off towards zero before they wrap: the cell below the cube is its first.
        inside = torch.where(place == size, size - 1, place.floor().long())
        cells = place.trunc().long() % size if wrap else inside
        return _rows_or_zero(features, octree.search(_with_batch(batch_index, cells), depth, nempty))
    corner = (place - 0.5).floor()
    share = place - 0.5 - corner
    out, total = features.new_zeros(len(points), features.shape[1]), features.new_zeros(len(points), 1)
    for octant in range(8):
        step = torch.tensor([octant >> 2 & 1, octant >> 1 & 1, octant & 1], device=points.device)
        cells = corner.long() + step
        row = octree.search(_with_batch(batch_index, cells % size if wrap else cells), depth, nempty)
        weight = torch.where(step.bool(), share, 1 - share).prod(1, keepdim=True) * (row >= 0)[:, None]
        out, total = out + weight * _rows_or_zero(features, row), total + weight
    return out / (total + 1e-12)


def _with_batch(batch_index: Tensor, xyz: Tensor) -> Tensor:
    return torch.cat([batch_index.long()[:, None], xyz.flip(1)], 1)


def _rows_or_zero(features: Tensor, rows: Tensor) -> Tensor:
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return padded[torch.where(rows < 0, len(features), rows)]
