"""A class for every point: linear layers on the features of its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.heads.base import PointFeatures, Reads
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.structures import PointLabels, Targets, tensor_of

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class PointOutput:
    """Logits [P, classes] of the points of a batch, and the points that they belong to."""

    logits: Tensor
    points: PointFeatures


@HEADS.register
class PointSegmentationHead(nn.Module):
    """Semantic segmentation of points by the features of the voxels that they are in.

    Args:
        in_channels: of the points' features.
        point_classes: names of the classes of points; ground truth counts them from 0 and has -1 for points that are
            not labelled.
        hidden_channels: widths of the layers before the last.
        class_weights: weight of each class in the loss, all 1 by default.

    Raises:
        ValueError: for names that are not different, and weights of another number.
    """

    reads: ClassVar[Reads] = "points"
    finds: ClassVar[type] = PointLabels

    class_weights: Tensor | None

    def __init__(
        self,
        in_channels: int,
        point_classes: Sequence[str],
        hidden_channels: Sequence[int] = (64,),
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not point_classes or len(set(point_classes)) != len(point_classes):
            raise ValueError(f"point_classes must be different names, at least one, got {list(point_classes)}")
        if class_weights is not None and len(class_weights) != len(point_classes):
            raise ValueError(f"class_weights must have {len(point_classes)} numbers, got {len(class_weights)}")
        self.class_names = tuple(point_classes)
        layers: list[nn.Module] = []
        for width in hidden_channels:
            layers += [nn.Linear(in_channels, width, bias=False), SparseBatchNorm(width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_channels, len(point_classes)))
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, points: PointFeatures) -> PointOutput:
        """Logits of each point."""
        return PointOutput(self.layers(points.features).float(), points)

    def loss(self, output: PointOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Loss "segmentation": cross-entropy over the labelled points that are in a voxel.

        Raises ValueError for a frame without point labels, or with another number of them than points, and for labels
        that are no class.
        """
        labels = self._labels(output.points, targets)
        counted = (labels != UNLABELLED) & output.points.inside
        if not bool(counted.any()):
            return {"segmentation": output.logits.sum() * 0}
        error = F.cross_entropy(output.logits[counted], labels[counted], self.class_weights)
        return {"segmentation": error}

    def _labels(self, points: PointFeatures, targets: Sequence[Targets]) -> Tensor:
        """Labels int64 [P] of all points of the batch."""
        labels = torch.full_like(points.batch_index, UNLABELLED)
        for frame, target in enumerate(targets):
            mine = points.batch_index == frame
            if target.point_labels is None:
                raise ValueError(f"frame {frame} of the batch has no point labels to learn from")
            if len(target.point_labels) != int(mine.sum()):
                raise ValueError(f"frame {frame} has {int(mine.sum())} points, {len(target.point_labels)} point labels")
            labels[mine] = tensor_of(target.point_labels).to(labels)
        if len(labels) and not UNLABELLED <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            raise ValueError(
                f"point labels go from {int(labels.min())} to {int(labels.max())}, there are {len(self.class_names)} "
                f"classes and {UNLABELLED} for none"
            )
        return labels

    @torch.no_grad()
    def decode(self, output: PointOutput) -> list[PointLabels]:
        """The best class of each point, frame by frame; points in no voxel have none."""
        scores, labels = output.logits.softmax(1).max(1)
        inside = output.points.inside
        labels = torch.where(inside, labels, UNLABELLED)
        scores = torch.where(inside, scores, 0.0)
        found = []
        for frame in range(output.points.batch_size):
            mine = output.points.batch_index == frame
            found.append(PointLabels(labels[mine], scores[mine], self.class_names))
        return found
