"""A complete detector: points → voxels → (3-D backbone) → bird's-eye-view map → (2-D backbone) → head → boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import ConfigError, Node, Registry, setting, suggest
from pcdet_ext.data.formats import point_features
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev.backbones import BEV_BACKBONES, flatten_to_bev
from pcdet_ext.models.encoders.points import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.structures import Detections, PointBatch

DETECTORS = Registry("detector")


@DETECTORS.register
class VoxelDetector(nn.Module):
    """A detector composed of an encoder, a head and, between them, optional 3-D and 2-D backbones.

    classes: names; point_cloud_range: (x, y, z minimum, then maximum) in metres; num_point_features: columns of the
    points; voxel_size: (x, y, z) in metres. encoder, backbone, bev_backbone, head: mappings of a component's name and
    arguments; each is told what its predecessor decides (channels, grid, stride).
    Attribute `stride`: voxels per cell of the head's input map. Raises ConfigError when a component does not fit.
    """

    def __init__(
        self,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        num_point_features: int,
        voxel_size: Sequence[float],
        encoder: Mapping[str, Any],
        head: Mapping[str, Any],
        backbone: Mapping[str, Any] | None = None,
        bev_backbone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.num_point_features = num_point_features
        _check_geometry(self.classes, point_cloud_range, voxel_size, num_point_features)
        geometry = {"point_cloud_range": tuple(point_cloud_range), "voxel_size": tuple(voxel_size)}
        self.encoder = ENCODERS.build(encoder, in_channels=num_point_features, **geometry)
        channels, grid, stride = self.encoder.out_channels, self.encoder.grid, 1
        self.backbone = None
        if backbone is not None:
            self.backbone = BACKBONES.build(backbone, in_channels=channels, grid=grid, **geometry)
            channels, grid, stride = self.backbone.out_channels, self.backbone.out_grid, self.backbone.stride
        channels *= grid[0]
        self.bev_backbone = None
        if bev_backbone is not None:
            self.bev_backbone = BEV_BACKBONES.build(bev_backbone, in_channels=channels)
            channels, stride = self.bev_backbone.out_channels, stride * self.bev_backbone.stride
        self.stride = stride
        context = {"classes": self.classes, "stride": stride, "grid": self.encoder.grid}
        self.head = HEADS.build(head, in_channels=channels, **context, **geometry)

    def forward(self, batch: PointBatch) -> Any:
        """The head's output for a batch of points."""
        return self.head(self.bev_map(batch))

    def bev_map(self, batch: PointBatch) -> Tensor:
        """The map [B, C, Y, X] that the head sees."""
        if batch.points.shape[1] != self.num_point_features:
            raise ValueError(
                f"points must have the {self.num_point_features} columns the detector was built for, "
                f"got {batch.points.shape[1]}"
            )
        voxels = self.encoder(batch)
        if self.backbone is not None:
            voxels = self.backbone(voxels)
        bev = flatten_to_bev(voxels)
        return bev if self.bev_backbone is None else self.bev_backbone(bev)

    def loss(self, batch: PointBatch) -> dict[str, Tensor]:
        """Losses for a batch with ground truth, among them their sum "total"."""
        if batch.targets is None:
            raise ValueError("the batch has no ground truth (targets) to compute a loss from")
        boxes, labels = ([getattr(t, name) for t in batch.targets] for name in ("boxes", "labels"))
        return self.head.loss(self(batch), boxes, labels)

    @torch.no_grad()
    def predict(self, batch: PointBatch) -> list[Detections]:
        """Detections in each frame of a batch, by a module that is in evaluation mode."""
        found = self.head.decode(self(batch))
        if not batch.frame_ids:
            return found
        return [replace(d, frame_id=frame_id) for d, frame_id in zip(found, batch.frame_ids, strict=True)]


def build_detector(config: Node) -> VoxelDetector:
    """The untrained detector that a whole configuration (sections `data` and `model`) describes.

    Raises ConfigError with file and key where it is wrong.
    """
    for section in ("data", "model"):
        if not isinstance(config.get(section), Mapping):
            raise ConfigError(f"{config.where()}: a detector needs the section {section!r}{suggest(section, config)}")
    data, model = config["data"], config["model"]
    for key in ("classes", "point_cloud_range"):
        if key not in data:
            raise ConfigError(f"{data.where()}: a detector needs {key!r} here")
    return DETECTORS.build(
        model,
        classes=setting(data, "classes", Sequence[str]),
        point_cloud_range=setting(data, "point_cloud_range", Sequence[float]),
        num_point_features=len(point_features(data)),
    )


def _check_geometry(
    classes: Sequence[str], point_cloud_range: Sequence[float], voxel_size: Sequence[float], num_point_features: int
) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be different names, at least one, got {list(classes)}")
    if len(point_cloud_range) != 6 or any(
        low >= high for low, high in zip(point_cloud_range[:3], point_cloud_range[3:], strict=True)
    ):
        raise ValueError(f"point_cloud_range must be x, y, z minimum, then maximum, got {list(point_cloud_range)}")
    if len(voxel_size) != 3 or min(voxel_size) <= 0:
        raise ValueError(f"voxel_size must be three positive lengths, got {list(voxel_size)}")
    if num_point_features < 3:
        raise ValueError(f"num_point_features must be at least 3 (x, y, z), got {num_point_features}")
