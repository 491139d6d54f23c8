"""Waymo Open Dataset 3-D detection metrics: AP and APH by level, type, range, size, speed (Sun et al., CVPR 2020).

The counts and numbers are those of the official TensorFlow operation. Nothing of it is needed to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pcdet_ext.evaluation.waymo_objects import EVALUATED_TYPES, TYPES, Breakdown, Config, Objects, benchmark_cutoffs
from pcdet_ext.evaluation.waymo_result import Curve, WaymoResult
from pcdet_ext.ops import iou_3d_paired
from pcdet_ext.structures import Array

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
