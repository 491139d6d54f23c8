"""Metrics of labelled points: intersection over union per class, its mean (mIoU), and overall accuracy.

Counts are kept per frame and added up before anything is divided, as the benchmarks do (Everingham et al., "The PASCAL
Visual Object Classes Challenge", IJCV 2015; SemanticKITTI, Behley et al., ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Result
from pcdet_ext.evaluation.panoptic import PanopticCounts
from pcdet_ext.structures import Array

UNLABELLED = -1


def confusion_matrix(truth: Array, found: Array, classes: int) -> Array:
    """How many points of each class were given each class: int64 [classes, classes + 1].

    Args:
        truth: int64 [N], the labelled class of each point; points with -1 do not count.
        found: int64 [N], the predicted class; points with -1 were given none, and count in the last column.
        classes: how many classes there are.

    Raises:
        ValueError: the labels differ in number, or one is neither a class nor -1.
    """
    if truth.shape != found.shape or truth.ndim != 1:
        raise ValueError(f"truth and found must be [N] both, got {list(truth.shape)} and {list(found.shape)}")
    for name, labels in {"truth": truth, "found": found}.items():
        if len(labels) and not UNLABELLED <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name} goes from {labels.min()} to {labels.max()}, there are {classes} classes")
    counted = truth != UNLABELLED
    columns = np.where(found == UNLABELLED, classes, found)[counted]
    pairs = np.bincount(truth[counted] * (classes + 1) + columns, minlength=classes * (classes + 1))
    return pairs.reshape(classes, classes + 1)


def intersection_over_union(confusion: Array) -> Array:
    """IoU of each class, float64 [C], from a `confusion_matrix`; NaN for a class that occurs on neither side."""
    own = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, : len(confusion)].sum(axis=0) - own
    return np.divide(own, union, out=np.full(len(own), np.nan), where=union > 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationResult(Result):
    """IoU per class, and where instances were found the panoptic quality too.

    classes: names; things: those among them that have instances; confusion: see `confusion_matrix`; panoptic: what
    matching segments gave, None where only classes were predicted; published: whether to count
    as semantic-kitti-api does: a class that occurs on neither side is 0 in means instead of being left out, and points
    that were given no class are left out of the accuracy instead of being wrong.
    The score is the mean IoU in [0, 1], with instances PQ.
    """

    classes: tuple[str, ...]
    things: tuple[str, ...]
    confusion: Array
    panoptic: PanopticCounts | None = None
    published: bool = False

    @staticmethod
    def of(
        classes: Sequence[str],
        things: Sequence[str],
        confusion: Array,
        panoptic: PanopticCounts | None = None,
        published: bool = False,
    ) -> SegmentationResult:
        """The result of counts over all frames.

        Args:
            classes: names, in the order of the counts.
            things: those that have instances.
            confusion: see `confusion_matrix`.
            panoptic: matched segments, where instances were found.
            published: see `SegmentationResult`.
        """
        counts = SegmentationResult(
            score=0.0,
            classes=tuple(classes),
            things=tuple(things),
            confusion=confusion,
            panoptic=panoptic,
            published=published,
        )
        values = {"mIoU": counts.mean(counts.iou()), "accuracy": counts.accuracy()}
        values |= {f"IoU/{name}": value for name, value in zip(classes, counts.iou().tolist(), strict=True)}
        values |= counts.panoptic_values()
        score = values.get("PQ", values["mIoU"])
        return SegmentationResult(
            score=score,
            values={name: value for name, value in values.items() if not np.isnan(value)},
            classes=counts.classes,
            things=counts.things,
            confusion=confusion,
            panoptic=panoptic,
            published=published,
        )

    def iou(self) -> Array:
        """IoU of each class, float64 [C]; NaN for classes that occur on neither side."""
        return intersection_over_union(self.confusion)

    def accuracy(self) -> float:
        """Share of the labelled points whose class is right; with `published` of those that were given a class."""
        counted = self.confusion[:, : len(self.confusion)] if self.published else self.confusion
        return float(np.trace(self.confusion) / max(int(counted.sum()), 1))

    def mean(self, values: Array, names: Sequence[str] | None = None) -> float:
        """Mean over classes, of some of them where they are named; NaN where none occurs."""
        chosen = np.array([names is None or name in names for name in self.classes])
        values = np.nan_to_num(values[chosen]) if self.published else values[chosen & ~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    def panoptic_values(self) -> dict[str, float]:
        """PQ, PQ†, SQ, RQ and PQ of things and of stuff, by name; empty without instances."""
        if self.panoptic is None:
            return {}
        pq, sq, rq = self.panoptic.quality(), self.panoptic.segmentation_quality(), self.panoptic.recognition_quality()
        stuff = [name for name in self.classes if name not in self.things]
        thing = np.array([name in self.things for name in self.classes])
        values = {
            "PQ": self.mean(pq),
            "PQ†": self.mean(np.where(thing, pq, self.iou())),
            "SQ": self.mean(sq),
            "RQ": self.mean(rq),
            "PQ things": self.mean(pq, self.things),
            "PQ stuff": self.mean(pq, stuff),
        }
        return values | {f"PQ/{name}": value for name, value in zip(self.classes, pq.tolist(), strict=True)}

    def table(self) -> str:
        """A row per class in percent, then the means."""
        width = max(map(len, (*self.classes, "accuracy")))
        columns = {"IoU": self.iou()}
        if self.panoptic is not None:
            columns |= {
                "PQ": self.panoptic.quality(),
                "SQ": self.panoptic.segmentation_quality(),
                "RQ": self.panoptic.recognition_quality(),
            }
        counts = self.confusion.sum(axis=1)
        head = "".join(f"  {name:>6}" for name in columns)
        lines = [f"{'class':<{width}}{head}  {'points':>10}"]
        for i, name in enumerate(self.classes):
            cells = "".join(f"  {_percent(values[i]):>6}" for values in columns.values())
            lines.append(f"{name:<{width}}{cells}  {counts[i]:>10}")
        means = "".join(f"  {_percent(self.mean(values)):>6}" for values in columns.values())
        lines.append(f"{'mean':<{width}}{means}  {counts.sum():>10}")
        lines.append(f"{'accuracy':<{width}}  {_percent(self.accuracy()):>6}")
        lines += [
            f"{name}: {_percent(value)}"
            for name, value in self.panoptic_values().items()
            if name in SUMMARY_OF_PANOPTIC
        ]
        if absent := [name for name, value in zip(self.classes, self.iou(), strict=True) if np.isnan(value)]:
            how = "counted as 0" if self.published else "left out of the means"
            lines.append(f"neither labelled nor found, and {how}: {', '.join(absent)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers in plain types, the confusion matrix included."""
        plain = {"score": self.score, "values": dict(self.values), "classes": list(self.classes)}
        return plain | {"confusion": self.confusion.tolist()}


SUMMARY_OF_PANOPTIC = ("PQ†", "PQ things", "PQ stuff")  # means that are no column of the table


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
