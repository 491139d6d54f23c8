"""What the queries of TransFusion predict, and what they should predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_ext.config import suggest
from pcdet_ext.ops import iou_3d_paired

CHANNELS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}
REQUIRED = ("center", "height", "dim", "rot")


@dataclass(frozen=True, eq=False)
class QueryOutput:
    """Predictions for P queries per frame, of the last decoder layer.

    heatmap: logits [B, C, rows, columns] of the dense map; labels: int64 [B, P], class of the peak that made the query;
    peak_scores: [B, C, P], heatmap at the query's cell; logits: [B, C, P]; codes: [B, 8 or 10, P] as (centre x, y in
    cells, z, logarithms of the sizes, sin and cos of the heading, velocity); iou: [B, P], 2 IoU - 1, or None; features:
    [B, channels, P], what the predictions are made from; earlier: the same of the layers before, with the heatmap,
    labels and peak scores that they share.
    """

    heatmap: Tensor
    labels: Tensor
    peak_scores: Tensor
    logits: Tensor
    codes: Tensor
    iou: Tensor | None
    features: Tensor
    earlier: tuple[QueryOutput, ...] = ()


@dataclass(frozen=True, eq=False)
class QueryTargets:
    """What the queries should predict.

    heatmap: [B, C, rows, columns]; labels: int64 [B, P], the number of classes for no object; positive: (frame, query)
    int64 [K]; codes: [K, 8 or 10]; boxes: [K, 7]; overlaps: [K], of the matched boxes as the matching measured it;
    objects: int64 [K], the row in its frame of each matched object.
    """

    heatmap: Tensor
    labels: Tensor
    positive: tuple[Tensor, Tensor]
    codes: Tensor
    boxes: Tensor
    overlaps: Tensor
    objects: Tensor


def check_branches(branches: Mapping[str, int]) -> None:
    """Raise ValueError for a branch that is not known, or one that is missing."""
    for name in branches:
        if name not in CHANNELS:
            raise ValueError(f"branches has no {name!r}{suggest(name, CHANNELS)}")
    missing = [name for name in REQUIRED if name not in branches]
    if missing:
        raise ValueError(f"branches needs {', '.join(map(repr, missing))}")


def take(maps: Tensor, index: Tensor) -> Tensor:
    """Columns [B, C, P] of maps [B, C, cells] at index int64 [B, P]."""
    return maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1))


def learnt_overlaps(layers: Sequence[QueryOutput], joined: bool) -> list[Tensor | None]:
    """The overlaps [B, P] that the queries of each layer are taken to predict, None without the branch "iou".

    joined: read the first B · P numbers of the joined predictions [B, layers · P] for every layer.
    """
    own = [layer.iou for layer in layers]
    given = [iou for iou in own if iou is not None]
    if not joined or not given:
        return own
    rows = torch.cat(given, 1).flatten()[: given[0].numel()].view_as(given[0])
    return [rows] * len(layers)


def overlap_loss(expected: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Mean distance of predictions from 2 IoU - 1, over the pairs that overlap at all.

    Args:
        expected: [K], the predictions.
        boxes: [K, 7], what they are about.
        objects: [K, 7], the object of each box.
    """
    iou = iou_3d_paired(boxes, objects)
    overlapping = iou > 0
    return ((expected - (2 * iou - 1)).abs() * overlapping).sum() / overlapping.sum().clamp_min(1)


def label_of(name: str, classes: Sequence[str], argument: str) -> int:
    """Number of a class.

    Args:
        name: of the class.
        classes: all names, in order.
        argument: where the name was given.

    Raises:
        ValueError: there is no such class; the message names the argument.
    """
    if name not in classes:
        raise ValueError(f"{argument} names the unknown class {name!r}{suggest(name, classes)}")
    return classes.index(name)
