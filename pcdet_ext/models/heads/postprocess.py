"""From many scored boxes to few: score thresholds and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from pcdet_ext.ops import nms

T = TypeVar("T")


@dataclass(frozen=True)
class NMSConfig:
    """Non-maximum suppression.

    Args:
        iou_threshold: boxes that overlap a better one by more are dropped; with `per_class` one value or several.
        max_before: boxes that are looked at, None for all; with `per_class` one value, or one per class.
        max_after: boxes that are kept, None for all; with `per_class` one value, or one per class.
        per_class: boxes of different classes do not suppress each other.
        kind: the overlap.
        rotate_90: compare footprints rotated by 90 degrees about their centres, as the published Waymo heads of DSVT
            and LION do.

    Raises:
        ValueError: several values without `per_class`, or one that is negative, NaN, or larger than any overlap.
    """

    iou_threshold: float | Sequence[float] = 0.1
    max_before: int | Sequence[int] | None = 4096
    max_after: int | Sequence[int] | None = 500
    per_class: bool = False
    kind: Literal["rotated", "axis_aligned", "circle"] = "rotated"
    rotate_90: bool = False

    def __post_init__(self) -> None:
        for name in ("iou_threshold", "max_before", "max_after"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not self.per_class:
                raise ValueError(f"{name} must be one number unless per_class is set, got {value}")
            values = value if isinstance(value, Sequence) else [value]
            if not all(each is None or each >= 0 for each in values):  # NaN is not >= 0 either
                raise ValueError(f"{name} must be at least 0, got {value}")
        overlaps = self.iou_threshold if isinstance(self.iou_threshold, Sequence) else [self.iou_threshold]
        if self.kind != "circle" and any(each > 1 for each in overlaps):
            raise ValueError(f"iou_threshold must lie in [0, 1], as an overlap does, got {self.iou_threshold}")

    def check(self, num_classes: int) -> None:
        """Raise ValueError where a list does not have one value for each class."""
        for name in ("iou_threshold", "max_before", "max_after"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != num_classes:
                raise ValueError(f"{name} must have {num_classes} values, one for each class, got {value}")


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, config: NMSConfig, num_classes: int) -> Tensor:
    """Suppress boxes that overlap better ones.

    Args:
        boxes: [M, 7 or more].
        scores: [M].
        labels: int64 [M], 0-based.
        config: the settings.
        num_classes: number of classes.

    Returns:
        Rows int64 [K] of the boxes to keep, best first (with `config.per_class` class by class).
    """
    if not config.per_class:
        return _suppress_all(boxes, scores, config, 0)
    kept = [torch.empty(0, dtype=torch.long, device=boxes.device)]
    for label in range(num_classes):
        mine = (labels == label).nonzero()[:, 0]
        kept.append(mine[_suppress_all(boxes[mine], scores[mine], config, label)])
    return torch.cat(kept)


def _suppress_all(boxes: Tensor, scores: Tensor, config: NMSConfig, label: int) -> Tensor:
    """Suppression among all of the boxes, with the settings of one class where there are several."""
    if config.rotate_90:
        boxes = boxes[:, [0, 1, 2, 4, 3, 5, 6]]
    threshold = _of_class(config.iou_threshold, label)
    before, after = _of_class(config.max_before, label), _of_class(config.max_after, label)
    return nms(boxes, scores, threshold, config.kind, before, after)


def _of_class(setting: T | Sequence[T], label: int) -> T:
    return setting[label] if isinstance(setting, Sequence) else setting


def best_class(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each box with its best class, where that score [M, C] is at least `threshold`.

    Returns (indices int64 [K], scores [K], labels int64 [K]). NaN scores are left out.
    """
    best, labels = scores.max(1)
    index = (best >= threshold).nonzero()[:, 0]
    return index, best[index], labels[index]


def every_class(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each box once for every class whose score [M, C] is at least `threshold`; returns as `best_class`."""
    labels, index = scores.T.ge(threshold).nonzero().unbind(1)
    return index, scores[index, labels], labels


def per_class(name: str, values: float | Sequence[float] | None, count: int) -> Tensor | None:
    """A setting that is one number for all classes, or one per class.

    Args:
        name: of the setting, for the message.
        values: the setting.
        count: number of classes.

    Returns:
        float32 [count], or None for None.

    Raises:
        ValueError: with the name of the setting, for another number of values.
    """
    if values is None:
        return None
    if isinstance(values, Sequence) and len(values) != count:
        raise ValueError(f"{name} must have {count} numbers, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32).expand(count).clone()


def rectify_scores(scores: Tensor, iou: Tensor, share: Tensor) -> Tensor:
    """Scores mixed with predicted overlaps: score^(1 - share) · ((iou + 1) / 2)^share (CIA-SSD, Zheng et al. 2021).

    Args:
        scores: [M].
        iou: [M], predicted overlaps in [-1, 1].
        share: [M] or a scalar, in [0, 1].

    Returns:
        [M].
    """
    return scores.pow(1 - share) * ((iou + 1) / 2).clamp(0, 1).pow(share)
