"""Waymo Open Dataset 3-D detection metrics: AP and APH by level, type, range, size, speed (Sun et al., CVPR 2020).

The counts and numbers are those of the official TensorFlow operation. Nothing of it is needed to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.ops import iou_3d_paired
from pcdet_ext.structures import Array

TYPES = ("UNKNOWN", "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
EVALUATED_TYPES = (1, 2, 3, 4)
SMALLEST_SIDE, LARGEST_SIDE, SMALLEST_UNION = 0.01, 1e6, 1e-6
SEEN_OVERLAP = 0.01  # from which a prediction belongs to a ground truth, in the breakdown by speed
RANGES = (("[0, 30)", 0.0, 30.0), ("[30, 50)", 30.0, 50.0), ("[50, +inf)", 50.0, np.inf))
SPEEDS = (
    ("STATIONARY", 0.0, 0.2),
    ("SLOW", 0.2, 1.0),
    ("MEDIUM", 1.0, 3.0),
    ("FAST", 3.0, 10.0),
    ("VERY_FAST", 10.0, np.inf),
)
LARGE_SIDE = 7.0
RECALL_TOLERANCE = 1e-6
Breakdown = Literal["OBJECT_TYPE", "RANGE", "VELOCITY", "SIZE", "ONE_SHARD", "ALL_BUT_SIGN"]


def benchmark_cutoffs() -> Array:
    """The 101 scores from which predictions count: 0, 0.01, …, 0.99 and 1, float32."""
    return np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Config:
    """What is measured; the defaults are those of the benchmark.

    Args:
        breakdowns: what the results are divided by.
        levels: difficulties of ground truth up to which misses count.
        matcher: "hungarian" finds the matches of the largest total overlap, "score_first" goes by falling score.
        iou_thresholds: overlap from which a prediction matches, by type, from type 0 on.
        score_cutoffs: float32 scores, or None for those of the benchmark; empty: estimated from the predictions.
        num_cutoffs: how many are estimated.
        recall_step: widest gap in recall that is integrated over without a point between.
        min_precision: precision below which it counts as 0.
        min_heading_accuracy: pairs whose heading agrees less, from 0 (opposite) to 1, are left out of all counts.
    """

    breakdowns: tuple[Breakdown, ...] = ("OBJECT_TYPE", "RANGE")
    levels: tuple[int, ...] = (1, 2)
    matcher: Literal["hungarian", "score_first"] = "hungarian"
    iou_thresholds: tuple[float, ...] = (0.0, 0.7, 0.5, 0.5, 0.5)
    score_cutoffs: Array | None = None
    num_cutoffs: int = 0
    recall_step: float = 0.05
    min_precision: float = 0.0
    min_heading_accuracy: float = -1.0


@dataclass(frozen=True, eq=False)
class Objects:
    """Boxes of many frames, in the frame of the vehicle.

    frame: int64 [N], any number that is the same for boxes of one frame; type: int64 [N], a position in `TYPES`; boxes:
    float32 [N, 7] as (x, y, z, length, width, height, heading). Of predictions: score float32 [N], in_no_label_zone
    bool [N]. Of ground truth: difficulty int64 [N] (1 or 2), speed float32 [N, 2] in metres per second.
    """

    frame: Array
    type: Array
    boxes: Array
    score: Array
    in_no_label_zone: Array
    difficulty: Array
    speed: Array

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, keep: Array) -> Objects:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Objects(**{name: column[keep] for name, column in vars(self).items()})

    @staticmethod
    def predictions(frame: Array, type: Array, boxes: Array, score: Array, zones: Array | None = None) -> Objects:  # noqa: A002
        """Detected boxes.

        Args:
            frame: int64 [N], number of each box's frame.
            type: int64 [N], what it is.
            boxes: [N, 7] (x, y, z, dx, dy, dz, heading), z at the centre.
            score: float32 [N].
            zones: bool [N], whether it lies in a zone without labels; none by default.
        """
        count = len(frame)
        flags = np.zeros(count, bool) if zones is None else zones
        return Objects(frame, type, boxes, score, flags, np.zeros(count, np.int64), np.zeros((count, 2), np.float32))

    @staticmethod
    def ground_truth(
        frame: Array,
        type: Array,  # noqa: A002
        boxes: Array,
        difficulty: Array,
        speed: Array | None = None,
    ) -> Objects:
        """Labelled boxes.

        Args:
            frame: int64 [N], number of each box's frame.
            type: int64 [N], what it is.
            boxes: [N, 7] (x, y, z, dx, dy, dz, heading), z at the centre.
            difficulty: int64 [N], the level.
            speed: float32 [N, 2] in metres per second, zero by default.
        """
        count = len(frame)
        speed = np.zeros((count, 2), np.float32) if speed is None else speed
        return Objects(frame, type, boxes, np.ones(count, np.float32), np.zeros(count, bool), difficulty, speed)


@dataclass(frozen=True, eq=False)
class Curve:
    """Of one shard at one level, at each score cutoff.

    true_positives, false_positives, false_negatives: float32 [K]; heading: float32 [K], sum of the accuracy of headings
    over the true positives; config: what it was measured with.
    """

    true_positives: Array
    false_positives: Array
    false_negatives: Array
    heading: Array
    config: Config

    @property
    def recall(self) -> Array:
        """float32 [K]."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def precision(self) -> Array:
        """float32 [K], 1 where nothing is recalled."""
        return self._cleaned(self.true_positives)

    @property
    def heading_precision(self) -> Array:
        """float32 [K], every true positive weighted with the accuracy of its heading."""
        return self._cleaned(self.heading)

    def _cleaned(self, hits: Array) -> Array:
        precision = _ratio(hits, self.true_positives + self.false_positives)
        precision = np.where(precision < self.config.min_precision, np.float32(0), precision)
        return np.where(self.recall == 0, np.float32(1), precision)

    @property
    def ap(self) -> float:
        """Average precision."""
        return average_precision(self.recall, self.precision, self.config.recall_step)

    @property
    def aph(self) -> float:
        """Average precision weighted by heading."""
        return average_precision(self.recall, self.heading_precision, self.config.recall_step)


@dataclass(frozen=True, eq=False)
class WaymoResult(Result):
    """Curves by the official names, such as "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1".

    The score is the mean APH at level 2 over the types that are measured (signs left out); values: AP and APH of every
    curve.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)

    @staticmethod
    def of(curves: Mapping[str, Curve]) -> WaymoResult:
        """The result that some curves make."""
        kinds = (("AP", "ap"), ("APH", "aph"))
        values = {f"{name}/{kind}": getattr(c, key) for name, c in curves.items() for kind, key in kinds}
        names = [f"OBJECT_TYPE_TYPE_{TYPES[i]}_LEVEL_2/APH" for i in EVALUATED_TYPES if TYPES[i] != "SIGN"]
        found = [values[name] for name in names if name in values]
        return WaymoResult(float(np.mean(found)) if found else 0.0, values, curves=curves)

    def of_types(self, types: Sequence[int]) -> WaymoResult:
        """The curves of some types alone (positions in `TYPES`), and those that are of no single type."""
        others = [f"_TYPE_{TYPES[i]}_" for i in EVALUATED_TYPES if i not in types]
        return WaymoResult.of({n: c for n, c in self.curves.items() if not any(other in n for other in others)})

    def table(self) -> str:
        """One row for each type, and range or other part of it, with AP and APH of every level in percent."""
        levels = sorted({name.rpartition("_")[2] for name in self.curves})
        head = "".join(f"{f'L{level} {kind}':>9}" for level in levels for kind in ("AP", "APH"))
        rows = [f"{'%':<36}{head}"]
        for name in dict.fromkeys(name.rpartition("_LEVEL_")[0] for name in self.curves):
            curves = [self.curves[f"{name}_LEVEL_{level}"] for level in levels]
            rows.append(f"{_title(name):<36}" + "".join(f"{100 * x:>9.2f}" for c in curves for x in (c.ap, c.aph)))
        if any(name.startswith("OBJECT_TYPE") for name in self.curves):
            rows.append(f"mAPH at level 2 (signs left out): {100 * self.score:.2f}")
        return "\n".join(rows)

    def plots(self) -> Sequence[Plot]:
        """Precision over recall, one diagram for each curve of the breakdown by type."""
        return [
            Plot(name.lower(), "recall", "precision", {name: (curve.recall, curve.precision)})
            for name, curve in self.curves.items()
            if name.startswith("OBJECT_TYPE")
        ]

    def to_json(self) -> dict[str, Any]:
        """All numbers and curves in plain types."""
        return super().to_json() | {
            name: {
                "AP": curve.ap,
                "APH": curve.aph,
                "recall": curve.recall.tolist(),
                "precision": curve.precision.tolist(),
                "precision_heading": curve.heading_precision.tolist(),
            }
            for name, curve in self.curves.items()
        }


def _title(name: str) -> str:
    """The name of a shard as tables show it: a type, its part set off to the right."""
    breakdown, separator, rest = name.removeprefix("OBJECT_TYPE_").rpartition("TYPE_")
    kind, _, part = rest.partition("_")
    if not separator:
        return name.replace("_", " ").capitalize()
    metres = " m" if breakdown == "RANGE_" else ""
    return f"  {kind.capitalize()} {part.replace('_', ' ').lower()}{metres}" if part else kind.capitalize()


@dataclass(frozen=True, eq=False)
class _Shard:
    """A part of the objects that is matched by itself: masks of both sides, and which ground truths are counted.

    by_truth: a prediction that no ground truth took counts only where the one that it overlaps most is counted.
    """

    name: str
    predictions: Array
    truths: Array
    counted: Array
    by_truth: bool = False


def evaluate(truth: Objects, found: Objects, config: Config | None = None) -> WaymoResult:
    """The official metrics of predictions.

    Args:
        truth: labelled boxes.
        found: predicted boxes with scores.
        config: what is measured, the benchmark's settings by default.

    Raises:
        ValueError: for boxes or scores that are not finite.
    """
    config = config or Config()
    for objects, what in ((truth, "ground truth"), (found, "predictions")):
        if not (np.isfinite(objects.boxes).all() and np.isfinite(objects.score).all()):
            raise ValueError(f"boxes and scores of the {what} must be finite")
    truth, found = (objects.select(np.argsort(objects.frame, kind="stable")) for objects in (truth, found))
    pairs = overlapping_pairs(truth, found)
    cutoffs = score_cutoffs(found, config)
    curves: dict[str, Curve] = {}
    for breakdown in config.breakdowns:
        for shard in _shards(breakdown, truth, found):
            curves |= _curves(shard, truth, found, pairs, cutoffs, config)
    return WaymoResult.of(curves)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a prediction and a ground truth of one frame and type that overlap.

    found, truth: int64 [P], rows, ascending; iou: float32 [P]; heading: float32 [P], accuracy of the heading.
    """

    found: Array
    truth: Array
    iou: Array
    heading: Array


def overlapping_pairs(truth: Objects, found: Objects) -> Pairs:
    """All pairs that overlap; both sides ascend with the frame. Predictions of type 0 are paired with everything."""
    from pcdet_ext.evaluation import compiled

    starts, ends = (np.searchsorted(truth.frame, found.frame, side) for side in ("left", "right"))
    types = (found.type.astype(np.int64), truth.type.astype(np.int64))
    rows, columns = compiled.touching_pairs(found.boxes, types[0], starts, ends, truth.boxes, types[1])
    a, b = found.boxes[rows].astype(np.float64), truth.boxes[columns].astype(np.float64)
    iou = iou_3d_paired(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    sides = np.concatenate([a[:, 3:6], b[:, 3:6]], 1)
    volumes = a[:, 3:6].prod(1) + b[:, 3:6].prod(1)
    union = volumes / (1 + iou)
    wrong = (sides <= SMALLEST_SIDE).any(1) | (sides >= LARGEST_SIDE).any(1) | (union <= SMALLEST_UNION)
    iou = np.where(wrong | (types[0][rows] != types[1][columns]), 0, iou).clip(0, 1).astype(np.float32)
    gap = np.abs(_wrapped(a[:, 6]) - _wrapped(b[:, 6]))
    gap = np.where(gap > np.pi, 2 * np.pi - gap, gap)
    keep = (iou > 0) | (types[0][rows] == 0)
    return Pairs(rows[keep], columns[keep], iou[keep], (1 - gap / np.pi).astype(np.float32)[keep])


def _wrapped(heading: Array) -> Array:
    return (heading + np.pi) % (2 * np.pi) - np.pi


def score_cutoffs(found: Objects, config: Config) -> Array:
    """The cutoffs float32 [K] of a configuration, estimated from the predictions where it lists none."""
    if config.score_cutoffs is None:
        return benchmark_cutoffs()
    if len(config.score_cutoffs):
        return np.asarray(config.score_cutoffs, np.float32)
    count, scores = config.num_cutoffs, np.sort(found.score)
    if count >= len(scores):
        return np.linspace(0, 1, count).astype(np.float32)
    firsts, position = [], 0
    for runs_left in range(count - 1, 0, -1):
        firsts.append(scores[position])
        position += (len(scores) - position) // runs_left
    return np.append(np.clip(firsts, 0, 1), 1).astype(np.float32)


def _shards(breakdown: Breakdown, truth: Objects, found: Objects) -> list[_Shard]:
    if breakdown == "ONE_SHARD":
        masks = np.ones(len(found), bool), np.ones(len(truth), bool)
        return [_Shard("ONE_SHARD", *masks, masks[1])]
    sign = TYPES.index("SIGN")
    if breakdown == "ALL_BUT_SIGN":
        masks = found.type == sign, truth.type == sign
        return [_Shard("ALL_BUT_SIGN", ~masks[0], ~masks[1], ~masks[1]), _Shard("SIGN", *masks, masks[1])]
    shards = []
    for number in EVALUATED_TYPES:
        name = f"{breakdown}_TYPE_{TYPES[number]}"
        masks = found.type == number, truth.type == number
        if breakdown == "OBJECT_TYPE":
            shards.append(_Shard(name, *masks, masks[1]))
        elif breakdown == "VELOCITY":
            speed = np.linalg.norm(truth.speed.astype(np.float32), axis=1)
            for part, low, high in SPEEDS:
                within = masks[1] & (speed >= np.float32(low)) & (speed < np.float32(high))
                shards.append(_Shard(f"{name}_{part}", *masks, within, by_truth=True))
        else:
            for part, own, other in _bins(breakdown, found, truth):
                shards.append(_Shard(f"{name}_{part}", masks[0] & own, masks[1] & other, masks[1] & other))
    return shards


def _bins(breakdown: Breakdown, found: Objects, truth: Objects) -> list[tuple[str, Array, Array]]:
    """Bins (name, mask of predictions, mask of ground truths) by each box itself."""
    if breakdown == "RANGE":
        near = [np.linalg.norm(objects.boxes[:, :3].astype(np.float64), axis=1) for objects in (found, truth)]
        return [(part, *((d >= low) & (d < high) for d in near)) for part, low, high in RANGES]
    large = [objects.boxes[:, 3:6].max(1, initial=0) >= LARGE_SIDE for objects in (found, truth)]
    return [("small", ~large[0], ~large[1]), ("large", large[0], large[1])]


def _curves(
    shard: _Shard, truth: Objects, found: Objects, pairs: Pairs, cutoffs: Array, config: Config
) -> dict[str, Curve]:
    from pcdet_ext.evaluation import compiled

    inside = shard.predictions[pairs.found] & shard.truths[pairs.truth]
    alone = shard.predictions & ~found.in_no_label_zone
    if shard.by_truth:
        alone &= _belongs(pairs, inside, shard.counted, len(found))
    thresholds = np.array(config.iou_thresholds, np.float32)[found.type[pairs.found]]
    edges = inside & (pairs.iou >= thresholds)
    order = np.argsort(cutoffs, kind="stable")
    active = np.searchsorted(cutoffs[order], found.score.astype(np.float32), side="right")
    weight = np.rint(pairs.iou[edges] * np.float32(1e6)).astype(np.float64)
    counts = compiled.waymo_counts(
        pairs.found[edges],
        pairs.truth[edges],
        weight,
        pairs.heading[edges],
        np.where(shard.predictions, active, 0),
        found.score,
        alone,
        shard.truths & shard.counted,
        np.searchsorted(np.array(config.levels), truth.difficulty),
        len(config.levels),
        len(cutoffs),
        config.matcher == "hungarian",
        config.min_heading_accuracy,
    )
    back = np.empty(len(cutoffs), np.int64)
    back[order] = np.arange(len(cutoffs))
    true, false, heading, missed = (part[..., back].astype(np.float32) for part in counts)
    return {
        f"{shard.name}_LEVEL_{level}": Curve(true, false, missed[: i + 1].sum(0), heading, config)
        for i, level in enumerate(config.levels)
    }


def _belongs(pairs: Pairs, inside: Array, counted: Array, predictions: int) -> Array:
    """bool [N]: predictions whose most overlapped ground truth is counted, or that overlap none."""
    seen = inside & (pairs.iou >= np.float32(SEEN_OVERLAP))
    rows, columns, iou = pairs.found[seen], pairs.truth[seen], pairs.iou[seen]
    order = np.lexsort((columns, iou, rows))  # the last of each prediction: highest overlap, of equal ones the later
    best = np.full(predictions, -1)
    best[rows[order]] = columns[order]
    return np.where(best < 0, True, counted[best] if len(counted) else True)


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float32), where=b > 0)


def average_precision(recall: Array, precision: Array, step: float = 0.05) -> float:
    """Area under the curve of the best precision at each recall or beyond.

    Gaps in recall wider than `step` get points between that carry the precision of the higher recall, so that a steep
    end counts little.

    Args:
        recall: float32 [K].
        precision: float32 [K].
        step: of recall.
    """
    best: dict[float, float] = {0.0: 1.0}
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        best[r] = max(best.get(r, 0.0), p)
    points: list[tuple[float, float]] = []
    highest, last = 0.0, 0.0
    for r in sorted(best, reverse=True):
        while last - r > step + RECALL_TOLERANCE:
            last -= step
            points.append((last, highest))
        highest = max(highest, best[r])
        points.append((r, highest))
        last = r
    if len(points) > 1:
        points[-1] = (points[-1][0], points[-2][1])
    if len(points) == 1:
        return 0.0
    return float(np.float32(sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))))


def openpcdet_objects(
    truth: Objects, found: Objects, num_points: Array, types: Sequence[int], distance: float = 1000.0
) -> tuple[Objects, Objects]:
    """Ground truth and predictions as OpenPCDet hands them to the official metric.

    Args:
        truth: all labelled boxes, difficulty 0 where the data has none.
        found: predictions.
        num_points: int64 [N], points inside each labelled box; those without points are left out.
        types: that are kept of the ground truth.
        distance: metres in the ground plane beyond which (and half a metre) boxes are left out.
    """
    truth_keep = np.isin(truth.type, types) & (num_points >= 1)
    difficulty = np.where(truth.difficulty == 0, np.where(num_points > 5, 1, 2), truth.difficulty)
    truth = Objects(**{**vars(truth), "difficulty": difficulty}).select(truth_keep)
    score: Array = found.score.astype(np.float32)
    if len(score) and score.max() > 1:
        score = 1 / (1 + np.exp(-score))
    found = Objects(**{**vars(found), "score": score, "in_no_label_zone": np.zeros(len(found), bool)})
    sides = []
    for objects in (truth, found):
        boxes = objects.boxes.copy()
        boxes[:, 6] = _wrapped(boxes[:, 6])
        near = np.linalg.norm(boxes[:, :2], axis=1) < distance + 0.5
        sides.append(Objects(**{**vars(objects), "boxes": boxes}).select(near))
    return sides[0], sides[1]
