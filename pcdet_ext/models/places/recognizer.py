"""Models that give each cloud a descriptor of its place, and learn it from the positions of a batch's frames."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.layers.recompute import call
from pcdet_ext.models.module_checks import check_not_exported, parameter_dtype
from pcdet_ext.models.places.losses import LOSSES
from pcdet_ext.models.pooling import POOLINGS, RowFeatures
from pcdet_ext.models.registry import DETECTORS
from pcdet_ext.structures import Descriptor, PointBatch, Targets, tensor_of

USUAL_LOSS = {"name": "TruncatedSmoothAP"}


class PlaceModel(nn.Module, ABC):
    """What models of place recognition share: descriptors of unit length, their loss, large batches in chunks.

    Args:
        num_point_features: columns of the points.
        positive_radius: metres in x and y within which two frames of a batch show the same place; the data section has
            it, as well as
        negative_radius: metres from which on they show different ones.
        loss: configuration of the loss on descriptors, by default `TruncatedSmoothAP`.
        chunk_size: frames that are worked on at once in training, None for the whole batch. Of a larger batch the
            activations of one chunk at a time are in memory: they are computed a second time for the gradients, which
            are those of the whole batch (multistaged backpropagation, Revaud et al., ICCV 2019), with the same random
            numbers. Batch statistics are those of a chunk, and its running averages take every chunk twice.

    Raises:
        ValueError: for radii that are not positive and in this order, and a chunk below two frames.
    """

    finds: ClassVar[type] = Descriptor
    reads: ClassVar[str] = "voxels"

    def __init__(
        self,
        num_point_features: int,
        positive_radius: float,
        negative_radius: float,
        loss: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < positive_radius <= negative_radius < math.inf:
            raise ValueError(
                "positive_radius must be above 0 and at most negative_radius, got "
                f"{positive_radius} and {negative_radius}"
            )
        if chunk_size is not None and chunk_size < 2:
            raise ValueError(f"chunk_size must be at least 2, got {chunk_size}")
        self.classes: tuple[str, ...] = ()
        self.num_point_features = num_point_features
        self.positive_radius, self.negative_radius = positive_radius, negative_radius
        self.chunk_size = chunk_size
        self.criterion = LOSSES.build(USUAL_LOSS if loss is None else loss)

    @property
    @abstractmethod
    def descriptor_size(self) -> int:
        """D of the descriptors."""

    @abstractmethod
    def pooled(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        """Descriptors [B, D] before they get unit length, and bool [B], which frames have points in range."""

    def named_heads(self) -> dict[str, Any]:
        """The model itself: it has no heads."""
        return {"place": self}

    def forward(self, batch: PointBatch) -> Tensor:
        """Descriptors float32 [B, D] of unit length, zeros for frames without points in range.

        Raises ValueError for points with other columns than the model was built for.
        """
        check_not_exported()
        if batch.points.shape[1] != self.num_point_features:
            raise ValueError(
                f"points must have the {self.num_point_features} columns the model was built for, "
                f"got {batch.points.shape[1]}"
            )
        pooled, there = self.pooled(batch)
        return F.normalize(pooled.float(), dim=1, eps=1e-12) * there[:, None]

    def loss(self, batch: PointBatch) -> dict[str, Tensor]:
        """The loss of a batch with positions, as "descriptors", and "total".

        Raises ValueError for frames without a position.
        """
        positions = _positions(batch.targets, batch.points.device)
        apart = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
        others = ~torch.eye(len(apart), dtype=torch.bool, device=apart.device)
        positives, negatives = (apart <= self.positive_radius) & others, apart >= self.negative_radius
        with torch.autocast(batch.points.device.type, enabled=False):
            value = self.criterion(self._in_chunks(batch), positives, negatives & others)
        return {"descriptors": value, "total": value}

    def _in_chunks(self, batch: PointBatch) -> Tensor:
        size = self.chunk_size or batch.batch_size
        if size >= batch.batch_size:
            return self._descriptors(batch)
        parts = [frames_of(batch, i, min(i + size, batch.batch_size)) for i in range(0, batch.batch_size, size)]
        return torch.cat([call(self._descriptors, part, recompute=True) for part in parts])

    def _descriptors(self, batch: PointBatch) -> Tensor:
        descriptors: Tensor = self(batch)
        return descriptors

    @torch.no_grad()
    def predict(self, batch: PointBatch) -> list[Descriptor]:
        """The descriptor of each frame of a batch, by a module that is in evaluation mode."""
        names = batch.frame_ids or ("",) * batch.batch_size
        return [Descriptor(values, name) for values, name in zip(self(batch), names, strict=True)]


@DETECTORS.register
class PlaceRecognizer(PlaceModel):
    """An encoder, any 3-D backbone, and a pooling of its voxels.

    Args:
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        num_point_features: columns of the points.
        positive_radius: metres in x and y within which two frames of a batch show the same place.
        negative_radius: metres from which on they show different ones.
        voxel_size: (x, y, z) in metres.
        encoder: configuration; each component gets what its predecessor decides (channels, grid).
        pooling: configuration of a pooling of one depth.
        backbone: configuration of a 3-D backbone, or None.
        loss: configuration of the loss on descriptors, by default `TruncatedSmoothAP`.
        chunk_size: frames that are worked on at once in training, None for the whole batch; see `PlaceModel`.

    Raises:
        ConfigError: when a component does not fit.
    """

    def __init__(
        self,
        point_cloud_range: Sequence[float],
        num_point_features: int,
        positive_radius: float,
        negative_radius: float,
        voxel_size: Sequence[float],
        encoder: Mapping[str, Any],
        pooling: Mapping[str, Any],
        backbone: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(num_point_features, positive_radius, negative_radius, loss, chunk_size)
        geometry = {"point_cloud_range": tuple(point_cloud_range), "voxel_size": tuple(voxel_size)}
        self.encoder = ENCODERS.build(encoder, in_channels=num_point_features, **geometry)
        channels = self.encoder.out_channels
        self.backbone = None
        if backbone is not None:
            self.backbone = BACKBONES.build(backbone, in_channels=channels, grid=self.encoder.grid, **geometry)
            channels = self.backbone.out_channels
        self.pooling = POOLINGS.build(pooling, channels=[channels])
        if self.pooling.reads == "tokens":
            raise ValueError(f"{pooling.get('name')} pools relay tokens, which voxels do not have")

    @property
    def descriptor_size(self) -> int:
        """D of the descriptors."""
        return int(self.pooling.out_channels)

    def pooled(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        """The pooled voxels of the backbone, or of the encoder without one, and which frames have any."""
        dtype = parameter_dtype(self)
        voxels = self.encoder(batch)
        voxels = voxels if dtype is None else voxels.with_features(voxels.features.to(dtype))
        there = torch.bincount(voxels.coords[:, 0], minlength=batch.batch_size) > 0
        voxels = voxels if self.backbone is None else self.backbone(voxels)
        return self.pooling([RowFeatures.of_voxels(voxels)]), there


def frames_of(batch: PointBatch, start: int, stop: int) -> PointBatch:
    """Some frames of a batch, numbered from 0.

    Args:
        batch: all frames.
        start: the first.
        stop: the one after the last.
    """
    mine = (batch.batch_index >= start) & (batch.batch_index < stop)
    targets = None if batch.targets is None else batch.targets[start:stop]
    points, index = batch.points[mine], batch.batch_index[mine] - start
    return replace(
        batch,
        points=points,
        batch_index=index,
        batch_size=stop - start,
        targets=targets,
        frame_ids=batch.frame_ids[start:stop],
    )


def frames_with(batch: PointBatch, there: Tensor) -> PointBatch:
    """The frames of a batch that `there`, bool [B], picks, all of whose points stay; numbered anew, without targets."""
    number = there.cumsum(0) - 1
    return PointBatch(batch.points, number[batch.batch_index], int(there.sum()))


def _positions(targets: Sequence[Targets] | None, device: torch.device) -> Tensor:
    """Positions [B, 2] in x and y, in metres from the first: float32 has no room for coordinates of a continent."""
    found = []
    for frame, target in enumerate(targets or ()):
        if target.position is None:
            raise ValueError(f"frame {frame} of the batch has no position to learn from")
        found.append(tensor_of(target.position)[:2].double().cpu())
    if not found:
        raise ValueError("the batch has no ground truth (targets) to compute a loss from")
    stacked = torch.stack(found)
    return (stacked - stacked[:1]).float().to(device)
