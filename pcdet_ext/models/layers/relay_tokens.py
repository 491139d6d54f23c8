"""Relay tokens: one for each window of octree nodes, through which windows, depths and the whole cloud exchange.

HOTFormerLoc (Griffiths et al., CVPR 2025, sections 3.2 and 3.3). A window belongs to the earliest cloud in it; slots of
later clouds and of padding are foreign to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.layers.octree_block import OctreeOptions, OctreePosition, attention_block
from pcdet_ext.structures import Groups

Statistics = Literal["pos", "var", "cov"]
COLUMNS: dict[str, int] = {"pos": 3, "var": 6, "cov": 9}


@dataclass(frozen=True, eq=False)
class RelayWindows:
    """The windows of one depth and whom they belong to.

    windows: groups [G, K] of the N rows; owner: int64 [G], cloud of each window, B for windows of padding alone; own:
    bool [G, K], slots of rows of the owner; batch_size: B.
    """

    windows: Groups
    owner: Tensor
    own: Tensor
    batch_size: int

    @staticmethod
    def of(octree: Octree, depth: int, options: OctreeOptions) -> RelayWindows:
        """The plain windows of a depth.

        Args:
            octree: whose nodes are grouped.
            depth: of the nodes.
            options: of the octree network.
        """
        windows = options.windows(octree, depth, dilation=1)
        assert windows.owner is not None
        assert windows.valid is not None
        owner = windows.owner.amin(1)
        return RelayWindows(windows, owner, windows.valid & (windows.owner == owner[:, None]), octree.batch_size)

    @property
    def cloud(self) -> Tensor:
        """int64 [G]: the cloud in whose list of tokens each window stands; windows of padding are in the last one's."""
        return self.owner.clamp(max=self.batch_size - 1)

    def mean(self, x: Tensor) -> Tensor:
        """Mean [G, C] of the owner's rows of x [N, C] in each window; zeros for a window of padding."""
        count = self.own.sum(1, keepdim=True).clamp(min=1)
        return (self.windows.gather(x) * self.own[..., None]).sum(1) / count

    def of_row(self) -> tuple[Tensor, Tensor]:
        """For each of the N rows its window int64 [N], and whether it is the window's own, bool [N]."""
        return self.windows.group_of_voxel(), self.own.flatten()[self.windows.inverse]

    def with_tokens(self) -> Groups:
        """Groups [G, K + 1] of the rows, then the G tokens, then, if there is padding, one row that stands for it.

        The token is in front, without a place, and is its window's owner's. Padding sees padding and the tokens of
        windows of nothing else, as published; that changes no row.
        """
        rows, groups = len(self.windows.inverse), len(self.owner)
        assert self.windows.valid is not None
        assert self.windows.owner is not None
        assert self.windows.cells is not None
        token = torch.arange(rows, rows + groups, device=self.owner.device)
        index = torch.cat([token[:, None], torch.where(self.windows.valid, self.windows.index, rows + groups)], 1)
        owner = torch.cat([self.owner[:, None], self.windows.owner], 1)
        length = index.shape[1]
        window, place = self.windows.inverse // (length - 1), self.windows.inverse % (length - 1)
        padding = torch.nonzero(index.flatten() == rows + groups)[:1, 0]
        first = torch.arange(groups, device=token.device) * length
        inverse = torch.cat([window * length + place + 1, first, padding])
        cells = self.windows.cells
        placeless = cells.new_full((groups, 3), -1)
        return Groups(index, inverse, None, owner, torch.cat([cells, placeless, cells.new_zeros(len(padding), 3)]))


def tokens_of_clouds(levels: Sequence[RelayWindows]) -> Groups:
    """Groups [B, L] of the tokens of all depths, one behind the other: each cloud's, those of the finest depth first.

    Tokens of windows of padding see each other alone.
    """
    cloud = torch.cat([level.cloud for level in levels])
    owner = torch.cat([level.owner for level in levels])
    counts = torch.bincount(cloud, minlength=levels[0].batch_size)
    order = torch.argsort(cloud, stable=True)
    length = int(counts.max()) if len(cloud) else 0
    slot = torch.arange(length, device=cloud.device).expand(len(counts), -1)
    valid = slot < counts[:, None]
    index = order[torch.where(valid, (counts.cumsum(0) - counts)[:, None] + slot, 0)] if length else slot
    inverse = torch.empty_like(order)
    inverse[index[valid]] = torch.nonzero(valid.flatten()).squeeze(1)
    return Groups(index, inverse, valid, owner[index])


def window_statistics(level: RelayWindows, depth: int, statistics: Statistics) -> Tensor:
    """How the nodes of each window's owner lie in [-1, 1]³.

    Args:
        level: the windows.
        depth: of their nodes.
        statistics: "pos" for the mean of the nodes' lower corners (x, y, z); "var" for their variances, too; "cov" for
            the mean and xx, xy, xz, yy, yz, zz of their covariance. The divisor is n - 1.

    Returns:
        float32 [G, 3], [G, 6] or [G, 9]; zeros for windows of padding, and no spread of fewer than two nodes.
    """
    assert level.windows.cells is not None
    corners = level.windows.cells.flip(1).float() * 2.0 ** (1 - depth) - 1.0
    mean = level.mean(corners)
    if statistics == "pos":
        return mean
    away = (level.windows.gather(corners) - mean[:, None]) * level.own[..., None]
    spread = away.transpose(1, 2) @ away / (level.own.sum(1) - 1).clamp(min=1)[:, None, None]
    if statistics == "var":
        return torch.cat([mean, spread.diagonal(dim1=1, dim2=2)], 1)
    row, column = torch.triu_indices(3, 3, device=mean.device)
    return torch.cat([mean, spread[:, row, column]], 1)


class WindowDistribution(nn.Module):
    """Encoding of where a window is and how its nodes are spread: a small network of `window_statistics`."""

    def __init__(self, channels: int, statistics: Statistics) -> None:
        super().__init__()
        if statistics not in COLUMNS:
            raise ValueError(f"statistics must be one of {', '.join(COLUMNS)}, got {statistics!r}")
        self.statistics = statistics
        self.in_proj, self.out_proj = nn.Linear(COLUMNS[statistics], channels), nn.Linear(channels, channels)

    def forward(self, level: RelayWindows, depth: int) -> Tensor:
        """Encodings [G, channels]."""
        values = window_statistics(level, depth, self.statistics).to(self.in_proj.weight.dtype)
        return self.out_proj(nn.functional.gelu(self.in_proj(values)))


class RelayBlock(nn.Module):
    """x + position(x), then attention and a feed-forward part for the nodes of each window and its token together.

    Args:
        channels: C.
        num_heads: of the attention.
        options: of the network.
        drop_path: share of the clouds that skip a branch in training.
        propagate: add each window's token to its own nodes in the end.
        propagate_scale: start value of a learnt factor of what is added, or None for 1.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        options: OctreeOptions,
        drop_path: float = 0.0,
        propagate: bool = False,
        propagate_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.position = OctreePosition(channels, options)
        self.block = attention_block(channels, num_heads, options, 1, drop_path, options.relative_position)
        self.propagate, self.propagate_scale = propagate, None
        if propagate and propagate_scale is not None:
            self.propagate_scale = nn.Parameter(torch.tensor(float(propagate_scale)))

    def forward(
        self, x: Tensor, tokens: Tensor, octree: Octree, depth: int, level: RelayWindows, plan: Groups
    ) -> tuple[Tensor, Tensor]:
        """Attend inside the windows, whose relay tokens take part, and give the tokens back to the nodes where that is
        wanted.

        Args:
            x: floating-point [N, C], rows of the nodes of `depth`.
            tokens: [G, C], one per window.
            octree: whose nodes they are.
            depth: of the nodes.
            level: the windows.
            plan: `level.with_tokens()`.

        Returns:
            Features and tokens of the same shapes.
        """
        x = x + self.position(x, octree, depth)
        padding = x.new_zeros(len(plan.inverse) - len(x) - len(tokens), x.shape[1])
        mixed = self.block(torch.cat([x, tokens, padding]), plan)
        x, tokens, _ = mixed.split([len(x), len(tokens), len(padding)])
        if not self.propagate:
            return x, tokens
        window, own = level.of_row()
        share = tokens[window] * own[:, None]
        return x + (share if self.propagate_scale is None else self.propagate_scale * share), tokens
