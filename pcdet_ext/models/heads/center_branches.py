"""The branches of the center head: their convolutions, and what these predict for cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pcdet_ext.models.heads.base import fill_bias
from pcdet_ext.models.heads.branches import CHANNELS, CODE, PRIOR_LOGIT
from pcdet_ext.models.layers.cells import convolve_at


@dataclass(frozen=True)
class TaskMaps:
    """Predictions of one task (a group of classes) for every cell, each [B, channels, Y, X].

    heatmap: logits, one channel per class; center: offset (x, y) of the box centre from the cell's corner, in cells;
    center_z: metres; dim: logarithms of (dx, dy, dz); rot: (cos, sin) of the heading; vel: (vx, vy) in m/s or None;
    iou: expected overlap of the box with the object, 2 IoU - 1, or None.
    """

    heatmap: Tensor
    center: Tensor
    center_z: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor | None = None
    iou: Tensor | None = None

    def codes(self) -> Tensor:
        """The box code [B, 8 or 10, Y, X] of each cell."""
        return torch.cat([getattr(self, name) for name in CODE if getattr(self, name) is not None], 1)

    def names(self) -> tuple[str, ...]:
        """The branches there are."""
        return tuple(name for name in CHANNELS if getattr(self, name) is not None)

    def at(self, names: Sequence[str], cells: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Values of branches at some cells.

        Args:
            names: of the branches.
            cells: int64 [B, K], numbers of cells, row by row.
            wanted: bool [B, K], for maps that are computed where they are needed; whole maps have every cell.

        Returns:
            float32 [B, K, channels] by branch.
        """
        return {name: gather_cells(getattr(self, name).float(), cells) for name in names}

    def overlap(self, wanted: Tensor) -> Tensor:
        """The branch "iou" [B, 1, Y, X]; `wanted`: see `SparseMaps.overlap`."""
        if self.iou is None:
            raise ValueError("iou_power needs the branch 'iou'")
        return self.iou.float()


@dataclass(frozen=True, eq=False)
class SparseMaps:
    """The heatmap of one task as in `TaskMaps`, whose other branches are computed where somebody asks for values.

    shared: what the branches of `head` read, [B, C, Y, X].
    """

    heatmap: Tensor
    shared: Tensor
    head: SeparateHead

    def names(self) -> tuple[str, ...]:
        """The branches there are."""
        return self.head.names

    def at(self, names: Sequence[str], cells: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Values of branches at some cells, which are computed there alone.

        Args:
            names: of the branches.
            cells: int64 [B, K], numbers of cells, row by row.
            wanted: bool [B, K]; the others are 0.

        Returns:
            float32 [B, K, channels] by branch.
        """
        frame = torch.arange(len(cells), device=cells.device)[:, None]
        flat = cells + frame * (self.shared.shape[2] * self.shared.shape[3])
        found = convolve_at([self.head.branch(name) for name in names], self.shared, flat[wanted])
        values = {}
        for name, rows in zip(names, found, strict=True):
            values[name] = rows.new_zeros(*cells.shape, rows.shape[1], dtype=torch.float32)
            values[name][wanted] = rows.float()
        return values

    def overlap(self, wanted: Tensor) -> Tensor:
        """The branch "iou" [B, 1, Y, X] in cells that are `wanted`, bool [B, Y, X], others being 0."""
        cells = wanted.flatten().nonzero()[:, 0]
        (rows,) = convolve_at([self.head.branch("iou")], self.shared, cells)
        found = rows.new_zeros(wanted.numel(), dtype=torch.float32)
        found[cells] = rows[:, 0].float()
        return found.view(len(wanted), 1, *wanted.shape[1:])


@dataclass(frozen=True)
class Convolution:
    """Makes the blocks of the head: 3x3 convolutions of so many channels, with batch norm and ReLU."""

    channels: int
    bias: bool
    eps: float
    momentum: float

    def norm_relu(self) -> list[nn.Module]:
        return [nn.BatchNorm2d(self.channels, eps=self.eps, momentum=self.momentum), nn.ReLU()]

    def block(self, in_channels: int) -> list[nn.Module]:
        return [nn.Conv2d(in_channels, self.channels, 3, padding=1, bias=self.bias), *self.norm_relu()]

    def shared(self, in_channels: int, upsample: int) -> nn.Sequential:
        if upsample == 1:
            return nn.Sequential(*self.block(in_channels))
        enlarge = nn.ConvTranspose2d(in_channels, self.channels, upsample, upsample, bias=False)
        return nn.Sequential(enlarge, *self.norm_relu(), *self.block(self.channels))


class SeparateHead(nn.Module):
    """The branches of one task, each a few 3x3 convolutions.

    Args:
        in_channels: of the shared map.
        convolution: makes a convolution with its norm, see `Convolution`.
        branches: convolutions of each branch by name; a branch has the channels that `CHANNELS` says.
        num_classes: channels of the heatmap.
        heatmap_convs: convolutions of the heatmap.
    """

    def __init__(
        self,
        in_channels: int,
        convolution: Convolution,
        branches: Mapping[str, int],
        num_classes: int,
        heatmap_convs: int,
    ) -> None:
        super().__init__()
        for name, convs in branches.items():
            branch = self._branch(in_channels, convolution, CHANNELS[name], convs)
            for layer in branch.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
            self.add_module(name, branch)
        self.hm = self._branch(in_channels, convolution, num_classes, heatmap_convs)
        fill_bias(self.hm, PRIOR_LOGIT)
        self.names = tuple(branches)

    @staticmethod
    def _branch(in_channels: int, convolution: Convolution, out_channels: int, convs: int) -> nn.Sequential:
        blocks, width = [], in_channels
        for _ in range(convs - 1):
            blocks.append(nn.Sequential(*convolution.block(width)))
            width = convolution.channels
        return nn.Sequential(*blocks, nn.Conv2d(width, out_channels, 3, padding=1))

    def branch(self, name: str) -> nn.Sequential:
        """The convolutions of a branch."""
        return cast("nn.Sequential", getattr(self, name))

    def forward(self, x: Tensor) -> TaskMaps:
        """Maps of the task from the shared features [B, C, Y, X], in float32."""
        return TaskMaps(self.hm(x).float(), **{name: getattr(self, name)(x).float() for name in self.names})


def gather_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Values [B, K, C] of maps [B, C, Y, X] at flat cells int64 [B, K]."""
    flat = maps.flatten(2)
    return flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)
