"""A class for every point: linear layers on the features of its voxels, and on what the point itself has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.heads.base import PointFeatures, Reads
from pcdet_ext.models.heads.lovasz import lovasz_softmax
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.ranges import check_range
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
        point_classes: names of the classes of points, by default the data's classes; ground truth counts them from 0
            and has -1 for points that are not labelled.
        hidden_channels: widths of the layers before the last.
        class_weights: weight of each class in the cross-entropy, finite and not negative, all 1 by default; a batch
            whose labelled points all have weight 0 gives the loss 0.
        lovasz_weight: weight of the Lovász-softmax loss that is added to the cross-entropy; 0 leaves it out.
        own_channels: widths of layers on the columns of the points themselves, whose result joins the features of
            their voxels: it tells points of one voxel or pillar apart. Without any, points of a voxel have one class.
        classes: of the data.
        num_point_features: columns of the points.

    Raises:
        ValueError: for names that are not different, weights of another number, and a weight that is negative or not
            finite.
    """

    reads: ClassVar[Reads] = "points"
    finds: ClassVar[type] = PointLabels

    class_weights: Tensor | None

    def __init__(
        self,
        in_channels: int,
        point_classes: Sequence[str] | None = None,
        hidden_channels: Sequence[int] = (64,),
        class_weights: Sequence[float] | None = None,
        lovasz_weight: float = 0.0,
        own_channels: Sequence[int] = (),
        classes: Sequence[str] = (),
        num_point_features: int = 0,
    ) -> None:
        super().__init__()
        names = tuple(classes if point_classes is None else point_classes)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"point_classes must be different names, at least one, got {list(names)}")
        if own_channels and num_point_features < 1:
            raise ValueError("own_channels needs num_point_features, the number of columns of the points")
        check_range(0, lovasz_weight=lovasz_weight)
        self.class_names, self.lovasz_weight = names, lovasz_weight
        self.own_layers: nn.Sequential | None = None
        if own_channels:
            widths = _layers(num_point_features, own_channels)
            self.own_layers = nn.Sequential(SparseBatchNorm(num_point_features), *widths)
            in_channels += own_channels[-1]
        hidden = _layers(in_channels, hidden_channels)
        self.out_channels = hidden_channels[-1] if hidden_channels else in_channels  # of what the last layer reads
        self.layers = nn.Sequential(*hidden, nn.Linear(self.out_channels, len(names)))
        weights = None if class_weights is None else _class_weights(class_weights, len(names))
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, points: PointFeatures) -> PointOutput:
        """Logits of each point."""
        return PointOutput(self.layers(self.joined(points)).float(), points)

    def joined(self, points: PointFeatures) -> Tensor:
        """What the layers read of each point: the features of its voxels and, where there are layers for it, its own.

        Raises ValueError where these are wanted and the points' columns are missing.
        """
        if self.own_layers is None:
            return points.features
        if points.points is None:
            raise ValueError("own_channels needs the columns of the points, which these features lack")
        own = self.own_layers(points.points.to(points.features.dtype))
        return torch.cat([points.features, own.to(points.features.dtype)], 1)

    def loss(self, output: PointOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Loss "segmentation", cross-entropy over the labelled points that are in a voxel, and "lovasz" with a weight.

        Raises ValueError for a frame without point labels, or with another number of them than points, and for labels
        that are no class.
        """
        labels = self._labels(output.points, targets)
        counted = (labels != UNLABELLED) & output.points.inside
        logits, labels = output.logits[counted], labels[counted]
        losses = {"segmentation": output.logits.sum() * 0}
        weights = self.class_weights
        if len(labels) and (weights is None or bool(weights[labels].any())):  # their mean is 0 / 0 otherwise
            losses = {"segmentation": F.cross_entropy(logits, labels, weights)}
        if self.lovasz_weight:
            losses["lovasz"] = self.lovasz_weight * lovasz_softmax(logits.softmax(1), labels)
        return losses

    def _labels(self, points: PointFeatures, targets: Sequence[Targets]) -> Tensor:
        """Labels int64 [P] of all points of the batch."""
        labels = per_point(points, targets, "point_labels", UNLABELLED)
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


def per_point(points: PointFeatures, targets: Sequence[Targets], name: str, fill: int) -> Tensor:
    """A column of the targets for all points of a batch.

    Args:
        points: of the batch.
        targets: one for each frame.
        name: "point_labels" or "point_instances".
        fill: value of points without a frame.

    Returns:
        int64 [P].

    Raises:
        ValueError: a frame lacks it, or has another number of them than points.
    """
    column, what = torch.full_like(points.batch_index, fill), name.replace("_", " ")
    for frame, target in enumerate(targets):
        mine, own = points.batch_index == frame, getattr(target, name)
        if own is None:
            raise ValueError(f"frame {frame} of the batch has no {what} to learn from")
        if len(own) != int(mine.sum()):
            raise ValueError(f"frame {frame} has {int(mine.sum())} points, {len(own)} {what}")
        column[mine] = tensor_of(own).to(column)
    return column


def _class_weights(given: Sequence[float], count: int) -> Tensor:
    """The weights as float32 [count]; raises ValueError for another number of them and for ones that are no weight."""
    if len(given) != count:
        raise ValueError(f"class_weights must have {count} numbers, got {len(given)}")
    if not all(0 <= weight <= torch.finfo(torch.float32).max for weight in given):
        raise ValueError(f"class_weights must be finite numbers of at least 0, got {list(given)}")
    return torch.tensor(given, dtype=torch.float32)


def _layers(width: int, widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wider in widths:
        layers += [nn.Linear(width, wider, bias=False), SparseBatchNorm(wider), nn.ReLU()]
        width = wider
    return layers
