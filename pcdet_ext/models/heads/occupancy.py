"""Semantic occupancy from a map of the bird's-eye view (UniLION's head, after FlashOcc, Yu et al. 2023).

Published properties that one would not choose are named options, all off:
  lovasz_of_unknown     cells of which nothing is known count in the Lovász loss, as background of every class
  distance_of_corners   the weight by distance takes the corner of each cell, counted from the middle of the grid
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.bev.grid_transform import BEVGridTransform
from pcdet_ext.models.heads.base import Reads
from pcdet_ext.models.heads.lovasz import lovasz_softmax
from pcdet_ext.models.heads.map_segmentation import scope_of, sides
from pcdet_ext.models.heads.occupancy_losses import (
    counted_cells,
    flow_loss,
    geometric_affinity,
    scene_class_affinity,
    weighted_focal,
)
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.ranges import check_range
from pcdet_ext.scenes import OCCUPANCY_CLASSES, OccupancyGrid, Scope, cells_of
from pcdet_ext.structures import Targets, tensor_of

FREE = "free"
# Cells of each class in Occ3D's training set (Tian et al., NeurIPS 2023), as the published heads count them.
FREQUENCIES = dict(
    zip(
        OCCUPANCY_CLASSES,
        (
            *(944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451),
            *(2384460, 5916653, 175883646, 4275424, 51393615, 61411620, 105975596, 116424404, 1892500630),
        ),
        strict=True,
    )
)
MOVING = ("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian")
FOCAL_SCALE, FLOW_SCALE = 100.0, 10.0


@dataclass(frozen=True)
class OccupancyOutput:
    """Logits [B, X, Y, Z, C] of each cell, and its velocity [B, X, Y, Z, 2] or None."""

    logits: Tensor
    flow: Tensor | None = None


@HEADS.register
class OccupancyHead(nn.Module):
    """What fills each cell of a grid around the vehicle; the channels of the map become its height.

    Args:
        in_channels: of the map.
        point_cloud_range: x, y, z minimum, then maximum: where the map that comes lies; metres.
        heights: cells along z.
        x: minimum, maximum and cell size of the grid along x, in metres.
        y: the same along y.
        occupancy_classes: their names; the last one is "free".
        hidden_channels: of the convolution.
        class_balance: rare classes weigh more in the focal loss, by `frequencies`.
        frequencies: cells of each class in the training data, by name; those of Occ3D by default. A class without a
            number counts as the rarest.
        focal_weight: of the focal loss.
        flow: whether velocities are told, too; the targets then need `occupancy_flow`.
        flow_weight: of their loss.
        lovasz_of_unknown: see the module.
        distance_of_corners: see the module.
        prescale_factor: by which the map is enlarged before it is read on the grid.

    Raises:
        ValueError: the grid is no whole number of cells, or the classes do not end with "free".
    """

    reads: ClassVar[Reads] = "map"
    finds: ClassVar[type] = OccupancyGrid

    class_weights: Tensor
    cell_weights: Tensor

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        heights: int = 16,
        x: Sequence[float] = (-40.0, 40.0, 0.4),
        y: Sequence[float] = (-40.0, 40.0, 0.4),
        occupancy_classes: Sequence[str] = OCCUPANCY_CLASSES,
        hidden_channels: int = 256,
        class_balance: bool = True,
        frequencies: Mapping[str, float] | None = None,
        focal_weight: float = 1.0,
        flow: bool = False,
        flow_weight: float = 0.05,
        lovasz_of_unknown: bool = False,
        distance_of_corners: bool = False,
        prescale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.class_names = tuple(occupancy_classes)
        if (
            len(self.class_names) < 2
            or self.class_names[-1] != FREE
            or len(set(self.class_names)) < len(occupancy_classes)
        ):
            raise ValueError(
                f"occupancy_classes must be different names and end with 'free', got {list(occupancy_classes)}"
            )
        check_range(1, heights=heights, hidden_channels=hidden_channels)
        check_range(0, focal_weight=focal_weight, flow_weight=flow_weight)
        self.x, self.y, self.heights = scope_of(x), scope_of(y), heights
        self.size = cells_of(self.x), cells_of(self.y), heights
        self.focal_weight, self.flow_weight = focal_weight, flow_weight
        self.lovasz_of_unknown = lovasz_of_unknown
        self.transform = BEVGridTransform(sides(point_cloud_range), (self.y, self.x), prescale_factor)
        self.conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        wide, count = 2 * hidden_channels, len(self.class_names)
        self.classifier = nn.Sequential(
            nn.Linear(hidden_channels, wide), nn.Softplus(), nn.Linear(wide, heights * count)
        )
        self.flow_layers: nn.Sequential | None = None
        if flow:
            self.flow_layers = nn.Sequential(nn.Linear(hidden_channels, wide), nn.Linear(wide, heights * 2))
        weights = _class_weights(self.class_names, FREQUENCIES if frequencies is None else frequencies)
        self.register_buffer("class_weights", weights if class_balance else torch.ones(count), persistent=False)
        self.register_buffer("cell_weights", _cell_weights(self.x, self.y, distance_of_corners), persistent=False)

    def forward(self, bev: Tensor) -> OccupancyOutput:
        """Logits from a map [B, in_channels, Y, X]."""
        features = F.relu(self.conv(self.transform(bev))).permute(0, 3, 2, 1)  # [B, X, Y, C]
        shape = (*features.shape[:3], self.heights, -1)
        flow = None if self.flow_layers is None else self.flow_layers(features).float().view(shape)
        return OccupancyOutput(self.classifier(features).float().view(shape), flow)

    def loss(self, output: OccupancyOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "semantic", "geometric", "lovasz", "focal" and, with flow, "flow".

        Raises ValueError for a frame without occupancy, with occupancy or flow of another size, or with labels that
        are no class.
        """
        labels = torch.stack([self._labels(frame, target) for frame, target in enumerate(targets)])
        counted = counted_cells(labels)
        free, logits, named = len(self.class_names) - 1, output.logits[counted], labels[counted]
        known = logits.softmax(-1)
        everything = known, named
        if self.lovasz_of_unknown:
            everything = output.logits.softmax(-1).flatten(0, -2), labels.flatten()
        weights = self.cell_weights[..., None].expand(labels.shape)[counted]
        focal = weighted_focal(logits, named, self.class_weights, weights)
        losses = {
            "semantic": scene_class_affinity(known, named, free),
            "geometric": geometric_affinity(known, named, free),
            "lovasz": lovasz_softmax(*everything),
            "focal": FOCAL_SCALE * self.focal_weight * focal,
        }
        if output.flow is not None:
            numbers = [n for n, name in enumerate(self.class_names) if name in MOVING]
            moving = torch.isin(labels, torch.tensor(numbers, device=labels.device))
            wanted = torch.stack([self._flow(frame, target) for frame, target in enumerate(targets)])
            losses["flow"] = FLOW_SCALE * self.flow_weight * flow_loss(output.flow, wanted.to(output.flow), moving)
        return losses

    def _labels(self, frame: int, target: Targets) -> Tensor:
        if target.occupancy is None:
            raise ValueError(f"frame {frame} of the batch has no occupancy to learn from")
        labels = tensor_of(target.occupancy).long()
        if tuple(labels.shape) != self.size:
            raise ValueError(f"the occupancy of frame {frame} is {tuple(labels.shape)}, not {self.size}")
        wrong = counted_cells(labels) & ((labels < 0) | (labels >= len(self.class_names)))
        if bool(wrong.any()):
            raise ValueError(
                f"the occupancy of frame {frame} has the label {int(labels[wrong][0])}, there are "
                f"{len(self.class_names)} classes, and 255 for cells that are not counted"
            )
        return labels

    def _flow(self, frame: int, target: Targets) -> Tensor:
        if target.occupancy_flow is None:
            raise ValueError(f"frame {frame} of the batch has no occupancy_flow to learn from")
        flow = tensor_of(target.occupancy_flow)
        if tuple(flow.shape) != (*self.size, 2):
            raise ValueError(f"the occupancy_flow of frame {frame} is {tuple(flow.shape)}, not {(*self.size, 2)}")
        return flow

    @torch.no_grad()
    def decode(self, output: OccupancyOutput) -> list[OccupancyGrid]:
        """The most likely class of each cell, and its velocity where it is told."""
        labels = output.logits.argmax(-1).to(torch.uint8)
        flows = [None] * len(labels) if output.flow is None else list(output.flow)
        return [
            OccupancyGrid(own, self.class_names, self.x, self.y, flow) for own, flow in zip(labels, flows, strict=True)
        ]


def _class_weights(names: Sequence[str], frequencies: Mapping[str, float]) -> Tensor:
    """1 / ln(frequency + 0.001) of each class, [C]; as FlashOcc."""
    cells = torch.tensor([float(frequencies.get(name, 1.0)) for name in names], dtype=torch.float64)
    return (1 / (cells + 0.001).log()).float()


def _cell_weights(x: Scope, y: Scope, corners: bool) -> Tensor:
    """1 plus the distance of each cell from the sensor over the largest, [X, Y]; or that of corners from the middle."""
    first, second = ((torch.arange(cells_of(axis)) - cells_of(axis) / 2) for axis in (x, y))
    if not corners:
        first, second = ((torch.arange(cells_of(a)) + 0.5) * a[2] + a[0] for a in (x, y))
    distance = torch.hypot(first[:, None], second)
    return 1 + distance / distance.max()
