"""Segmentation of the bird's-eye view into the layers of a map (UniLION's map head, after BEVFusion's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pcdet_ext.models.bev.grid_transform import BEVGridTransform
from pcdet_ext.models.bev.residual import BaseBEVResBackbone
from pcdet_ext.models.heads.base import Reads
from pcdet_ext.models.heads.losses import sigmoid_focal_loss
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.ranges import check_range
from pcdet_ext.scenes import MAP_LAYERS, MapLayers, Scope, cells_of
from pcdet_ext.structures import Targets, tensor_of


@dataclass(frozen=True)
class MapOutput:
    """Logits [B, L, Y, X] of each layer of the map."""

    logits: Tensor


@HEADS.register
class MapSegmentationHead(nn.Module):
    """Which cells of the ground belong to each layer of a map; a cell may belong to several.

    A small backbone of its own brings the map to three scales and joins them, the result is read on the wanted grid
    and three convolutions give the layers.

    Args:
        in_channels: of the map.
        point_cloud_range: x, y, z minimum, then maximum: where the map that comes lies; metres.
        x: minimum, maximum and cell size of the wanted grid along x, in metres.
        y: the same along y.
        layers: their names, those of the targets' `map_masks`.
        hidden_channels: of the last convolutions.
        encoder_channels: of the backbone.
        encoder_blocks: residual blocks of each of its levels beside the first.
        norm_momentum: of all batch norms.
        prescale_factor: by which the map is enlarged before it is read on the wanted grid.

    Raises:
        ValueError: the grid is no whole number of cells, or the layers are no different names.
    """

    reads: ClassVar[Reads] = "map"
    finds: ClassVar[type] = MapLayers

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        x: Sequence[float] = (-50.0, 50.0, 0.5),
        y: Sequence[float] = (-50.0, 50.0, 0.5),
        layers: Sequence[str] = MAP_LAYERS,
        hidden_channels: int = 1024,
        encoder_channels: int = 256,
        encoder_blocks: Sequence[int] = (5, 5, 5),
        norm_momentum: float = 0.1,
        prescale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        check_range(1, hidden_channels=hidden_channels, encoder_channels=encoder_channels)
        check_range(0, 1, norm_momentum=norm_momentum)
        if len(encoder_blocks) != 3:
            raise ValueError(f"encoder_blocks must be 3 numbers, one for each level, got {list(encoder_blocks)}")
        self.layers = tuple(layers)
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must be different names, at least one, got {list(layers)}")
        self.x, self.y = scope_of(x), scope_of(y)
        self.size = cells_of(self.y), cells_of(self.x)
        widths = (encoder_channels,) * 3
        self.encoder = BaseBEVResBackbone(in_channels, encoder_blocks, (1, 2, 2), widths, (1, 2, 4), widths, True)
        self.shared_conv = nn.Conv2d(self.encoder.out_channels, hidden_channels, 3, padding=1)
        self.transform = BEVGridTransform(sides(point_cloud_range), (self.y, self.x), prescale_factor)
        self.classifier = nn.Sequential(
            *(layer for _ in range(2) for layer in _convolution(hidden_channels)),
            nn.Conv2d(hidden_channels, len(self.layers), 1),
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum

    def forward(self, bev: Tensor) -> MapOutput:
        """Logits from a map [B, in_channels, Y, X]."""
        features = self.transform(self.shared_conv(self.encoder(bev)))
        return MapOutput(self.classifier(features).float())

    def loss(self, output: MapOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The mean focal loss of each layer, under its name.

        Raises ValueError for a frame without a map, or with one of another size or number of layers.
        """
        wanted = torch.stack([self._masks(frame, target) for frame, target in enumerate(targets)])
        # Focal loss without a weight of positives: alpha 0.5 halves both sides.
        loss = 2 * sigmoid_focal_loss(output.logits, wanted.to(output.logits), alpha=0.5)
        return dict(zip(self.layers, loss.mean((0, 2, 3)), strict=True))

    def _masks(self, frame: int, target: Targets) -> Tensor:
        if target.map_masks is None:
            raise ValueError(f"frame {frame} of the batch has no map_masks to learn from")
        shape = (len(self.layers), *self.size)
        if tuple(target.map_masks.shape) != shape:
            raise ValueError(f"map_masks of frame {frame} are {tuple(target.map_masks.shape)}, not {shape}")
        return tensor_of(target.map_masks)

    @torch.no_grad()
    def decode(self, output: MapOutput) -> list[MapLayers]:
        """The probabilities of each frame."""
        return [MapLayers(frame.sigmoid(), self.layers, self.x, self.y) for frame in output.logits]


def scope_of(values: Sequence[float]) -> Scope:
    """Minimum, maximum and cell size as a tuple. Raises ValueError for another number of them."""
    if len(values) != 3:
        raise ValueError(f"an axis of a grid is given by minimum, maximum and cell size, got {list(values)}")
    low, high, size = values
    return float(low), float(high), float(size)


def sides(point_cloud_range: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(minimum, maximum) of the rows (y) and of the columns (x) of a map."""
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    return (low[1], high[1]), (low[0], high[0])


def _convolution(channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
