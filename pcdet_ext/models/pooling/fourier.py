"""Pooling by Fourier transforms of the map seen from above, which neither shifts nor turns of a cloud change.

The magnitudes of a map's spectrum are those of the shifted map, and turn with it; on a polar grid of frequencies a turn
is a shift along the angle, which the magnitudes of a second transform take away (Fourier-Mellin invariants: Casasent
and Psaltis, Applied Optics 1976; in place recognition: DiSCO, Xu et al., RA-L 2021, and RING++, Xu et al., T-RO 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.pooling.base import Reads, RowFeatures
from pcdet_ext.models.pooling.registry import POOLINGS
from pcdet_ext.ops.segment import segment_reduce

EPS = 1e-6  # added to squares before roots, whose slope at 0 is infinite


@POOLINGS.register
class FourierPooling(nn.Module):
    """Spectra of the channels seen from above, standardised over the batch, then a linear layer.

    Features of voxels above each other are summed. A window that falls to zero at the border of the range keeps the
    border itself out of the spectrum; within it a cloud may be shifted, and turned about the vertical axis, without a
    change but for what comes into sight. Magnitudes enter as their square roots, since the lowest frequencies hold
    most of a map. Cells must be square, as must the range for turns to leave the descriptor alone.

    Args:
        channels: C of the one depth that is pooled.
        out_channels: D.
        rings: radii of the polar grid of frequencies.
        directions: angles of it, over half a turn; the other half is the same.
        orders: of the transform along the angles, from 1; at most half of the directions.
        cutoff: the highest frequency, in cycles per cell; at most 0.5.

    Raises:
        ValueError: several depths, and numbers that do not fit.
    """

    reads: ClassVar[Reads] = "cells"
    positions: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int = 256,
        rings: int = 24,
        directions: int = 96,
        orders: int = 16,
        cutoff: float = 0.25,
    ) -> None:
        super().__init__()
        if len(channels) != 1:
            raise ValueError(f"FourierPooling pools one depth, got the channels of {len(channels)}")
        if out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {out_channels}")
        if rings < 1 or not 1 <= orders <= directions // 2 or not 0 < cutoff <= 0.5:
            raise ValueError(
                "rings must be at least 1, orders between 1 and half of directions, cutoff above 0 and at most 0.5, "
                f"got {rings}, {orders}, {directions} and {cutoff}"
            )
        self.out_channels, self.orders = out_channels, orders
        radius = torch.arange(1, rings + 1) * (cutoff / rings)
        angle = torch.arange(directions) * (math.pi / directions)
        polar = torch.stack([radius[:, None] * angle.cos(), radius[:, None] * angle.sin()], 2)
        self.register_buffer("positions", polar, persistent=False)  # [rings, directions, 2], cycles per cell (x, y)
        size = channels[0] * rings * orders
        self.norm = SparseBatchNorm(size, eps=1e-5, momentum=0.1)
        self.linear = nn.Linear(size, out_channels)

    def forward(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, out_channels]. Raises ValueError for rows that are no voxels."""
        (rows,) = levels
        spectra = self.spectra(seen_from_above(rows))
        found: Tensor = self.linear(self.norm(spectra.flatten(1).to(self.linear.weight.dtype)))
        return found

    def spectra(self, maps: Tensor) -> Tensor:
        """What neither shifts nor turns change, [B, C, rings, orders], of maps [B, C, Y, X]."""
        magnitude = root(torch.fft.fft2(maps * window(maps)).abs())
        around_zero = torch.fft.fftshift(magnitude, dim=(2, 3))
        turned = torch.fft.rfft(self._polar(around_zero), dim=3)[..., 1 : self.orders + 1]
        return root(turned.abs())

    def _polar(self, spectrum: Tensor) -> Tensor:
        """Values [B, C, rings, directions] between those of a spectrum [B, C, Y, X], frequency 0 in the middle."""
        height, width = spectrum.shape[2:]
        size = spectrum.new_tensor([width, height])
        places = self.positions.to(spectrum) * size + torch.div(size, 2, rounding_mode="floor")
        grid = 2 * places / (size - 1).clamp(min=1) - 1
        return F.grid_sample(spectrum, grid[None].expand(len(spectrum), -1, -1, -1), align_corners=True)


def root(magnitudes: Tensor) -> Tensor:
    """Square roots whose gradient stays finite at 0."""
    return (magnitudes.square() + EPS).pow(0.25)


def window(maps: Tensor) -> Tensor:
    """A cosine [Y, X] of the distance from the middle of maps [B, C, Y, X], zero from the nearest border on."""
    height, width = maps.shape[2:]
    y = torch.arange(height, device=maps.device) + (1 - height) / 2
    x = torch.arange(width, device=maps.device) + (1 - width) / 2
    away = torch.hypot(y[:, None], x[None]) / (min(height, width) / 2)
    return torch.cos(away.clamp(max=1) * (math.pi / 2)).to(maps)


def seen_from_above(rows: RowFeatures) -> Tensor:
    """Sums of the features above each other, float32 [B, C, Y, X], zeros where nothing is.

    Raises ValueError for rows without cells, as nodes of an octree or tokens are.
    """
    if rows.coords is None or rows.grid is None:
        raise ValueError("FourierPooling pools voxels, which have cells in a grid")
    _, height, width = rows.grid
    _, _, y, x = rows.coords.long().unbind(1)
    cell = (rows.batch_index * height + y) * width + x
    summed = segment_reduce(rows.features.float(), cell, rows.batch_size * height * width, "sum")
    return summed.view(rows.batch_size, height, width, -1).permute(0, 3, 1, 2)
