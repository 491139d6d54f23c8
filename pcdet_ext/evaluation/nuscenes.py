"""nuScenes detection metrics: mAP over centre distances, five true-positive errors, NDS (Caesar et al., CVPR 2020).

The numbers are those of the official devkit's `detection_cvpr_2019` configuration. Nothing of it is needed to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.quaternions import rotation_matrices, yaws
from pcdet_ext.structures import Array

CLASS_RANGES = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0,
    "pedestrian": 40.0, "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip
CLASSES = tuple(CLASS_RANGES)
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres in the ground plane up to which a detection matches
TP_DISTANCE = 2.0  # the one whose matches have their errors measured
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
ERROR_TITLES = ("ATE", "ASE", "AOE", "AVE", "AAE")
UNDEFINED = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}
RACKED = ("bicycle", "motorcycle")  # not evaluated inside bicycle racks
MIN_RECALL, MIN_PRECISION = 0.1, 0.1
RECALL = np.linspace(0, 1, 101)
FIRST = round(100 * MIN_RECALL) + 1  # of the 101 points that count
MAP_WEIGHT = 5.0
NO_ATTRIBUTE = ""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of many samples, in the global frame.

    sample: int64 [N], number of each box's sample; name, attribute: unicode [N], "" for no attribute; translation:
    [N, 3] centre in metres; size: [N, 3] width, length, height in metres; rotation: [N, 4] quaternion (w, x, y, z);
    velocity: [N, 2] metres per second, NaN where unknown; score: [N] of detections, unused for ground truth;
    num_points: int64 [N], LiDAR and radar points inside, -1 for detections. All floating-point numbers are float64.
    """

    sample: Array
    name: Array
    attribute: Array
    translation: Array
    size: Array
    rotation: Array
    velocity: Array
    score: Array
    num_points: Array

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, keep: Array) -> Boxes:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Boxes(**{name: column[keep] for name, column in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples (key frames) that are evaluated.

    tokens: their names; ego: float64 [S, 3], position of the vehicle; racks: bicycle racks in them, of which sample,
    translation, size and rotation count.
    """

    tokens: tuple[str, ...]
    ego: Array
    racks: Boxes


@dataclass(frozen=True)
class Curve:
    """Of a class at one distance, over 101 values of recall from 0 to 1.

    precision, confidence: float64 [101]; errors: float64 [101] by name, of the distance 2 m only.
    """

    precision: Array
    confidence: Array
    errors: Mapping[str, Array] = field(default_factory=dict)

    @property
    def average_precision(self) -> float:
        """Mean precision above 0.1 beyond a recall of 0.1, scaled to [0, 1]."""
        above = np.clip(self.precision[FIRST:] - MIN_PRECISION, 0, None)
        return float(above.mean()) / (1 - MIN_PRECISION)

    def error(self, name: str) -> float:
        """Mean error between a recall of 0.1 and the highest that is reached; 1 where that is below 0.1."""
        reached = np.flatnonzero(self.confidence)
        last = int(reached[-1]) if len(reached) else 0
        return 1.0 if last < FIRST else float(self.errors[name][FIRST : last + 1].mean())


@dataclass(frozen=True, eq=False)
class NuScenesResult(Result):
    """All numbers of the official tool; the score is the NDS.

    curves: by class and distance; the rest is computed from them.
    """

    curves: Mapping[tuple[str, float], Curve] = field(default_factory=dict)

    @staticmethod
    def of(curves: Mapping[tuple[str, float], Curve]) -> NuScenesResult:
        """The numbers of curves for all classes and distances."""
        result = NuScenesResult(np.nan, curves=curves)
        errors = {f"m{title}": result.mean_error(error) for title, error in zip(ERROR_TITLES, ERRORS, strict=True)}
        classes = {f"AP {name}": result.class_ap(name) for name in CLASSES}
        values = {"NDS": result.nds, "mAP": result.mean_ap, **errors, **classes}
        return replace(result, score=result.nds, values=values)

    def label_ap(self, name: str, distance: float) -> float:
        """Average precision of a class at a distance."""
        return self.curves[name, distance].average_precision

    def class_ap(self, name: str) -> float:
        """Mean over the four distances."""
        return float(np.mean([self.label_ap(name, distance) for distance in DISTANCES]))

    def label_error(self, name: str, error: str) -> float:
        """A true-positive error of a class, NaN where it has no meaning (the velocity of cones)."""
        return np.nan if error in UNDEFINED.get(name, ()) else self.curves[name, TP_DISTANCE].error(error)

    @property
    def mean_ap(self) -> float:
        """mAP, over the ten classes."""
        return float(np.mean([self.class_ap(name) for name in CLASSES]))

    def mean_error(self, error: str) -> float:
        """Over the classes for which it is defined."""
        return float(np.nanmean([self.label_error(name, error) for name in CLASSES]))

    @property
    def nds(self) -> float:
        """The nuScenes detection score: (5 mAP + Σ max(0, 1 - mean error)) / 10."""
        scores = [max(0.0, 1.0 - self.mean_error(error)) for error in ERRORS]
        return float((MAP_WEIGHT * self.mean_ap + np.sum(scores)) / (MAP_WEIGHT + len(scores)))

    def table(self) -> str:
        """The table that the official tool prints."""
        lines = [f"mAP: {self.mean_ap:.4f}"]
        lines += [f"m{t}: {self.mean_error(e):.4f}" for t, e in zip(ERROR_TITLES, ERRORS, strict=True)]
        lines += [f"NDS: {self.nds:.4f}", "", f"{'class':<22}{'AP':>7}" + "".join(f"{t:>7}" for t in ERROR_TITLES)]
        for name in CLASSES:
            errors = "".join(f"{self.label_error(name, error):>7.3f}" for error in ERRORS)
            lines.append(f"{name:<22}{self.class_ap(name):>7.3f}{errors}")
        return "\n".join(lines)

    def plots(self) -> Sequence[Plot]:
        """Precision over recall of each class, one diagram for each distance."""
        return [
            Plot(
                f"precision_{d:g}m", "recall", "precision", {c: (RECALL, self.curves[c, d].precision) for c in CLASSES}
            )
            for d in DISTANCES
        ]

    def to_json(self) -> dict[str, Any]:
        """All numbers and curves, under the official names."""
        summary = {
            "label_aps": {c: {str(d): self.label_ap(c, d) for d in DISTANCES} for c in CLASSES},
            "mean_dist_aps": {c: self.class_ap(c) for c in CLASSES},
            "mean_ap": self.mean_ap,
            "label_tp_errors": {c: {e: _none_if_nan(self.label_error(c, e)) for e in ERRORS} for c in CLASSES},
            "tp_errors": {e: self.mean_error(e) for e in ERRORS},
            "tp_scores": {e: max(0.0, 1.0 - self.mean_error(e)) for e in ERRORS},
            "nd_score": self.nds,
        }
        return {**summary, "curves": {f"{c}:{d}": curve_json(curve) for (c, d), curve in self.curves.items()}}


def curve_json(curve: Curve) -> dict[str, list[float]]:
    """A curve in plain types, under the official names."""
    rows = {"recall": RECALL, "precision": curve.precision, "confidence": curve.confidence, **curve.errors}
    return {name: row.tolist() for name, row in rows.items()}


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def evaluate(truth: Boxes, found: Boxes, samples: Samples, strict: bool = True) -> NuScenesResult:
    """The official detection metrics.

    Args:
        truth: annotated boxes, names being detection classes.
        found: detections, in the order of the results file: of equal scores the later one counts first.
        samples: what both belong to.
        strict: whether it is an error, as for the devkit, that nothing is left of either side within the ranges of the
            classes; otherwise every class scores 0 then.

    Raises:
        ValueError: nothing is left of either side, and strict.
    """
    truth, found = (boxes.select(within_range(boxes, samples, CLASS_RANGES)) for boxes in (truth, found))
    for boxes, what in ((truth, "ground truth"), (found, "detections")):
        if strict and not len(boxes):
            raise ValueError(f"no box of the {what} counts: none has points and lies within the range of its class")
    curves: dict[tuple[str, float], Curve] = {}
    for name in CLASSES:
        curves |= _class_curves(name, truth, found, samples)
    return NuScenesResult.of(curves)


def within_range(boxes: Boxes, samples: Samples, ranges: Mapping[str, float]) -> Array:
    """Which boxes count: near enough for their class, with points inside, outside of bicycle racks.

    Args:
        boxes: of the ground truth or detected.
        samples: what they belong to.
        ranges: metres from the vehicle by class; boxes of other classes do not count.

    Returns:
        bool [N].
    """
    limits = np.zeros(len(boxes))
    for name, limit in ranges.items():
        limits[boxes.name == name] = limit
    distance = np.linalg.norm((boxes.translation - samples.ego[boxes.sample])[:, :2], axis=1)
    return (distance < limits) & (boxes.num_points != 0) & ~_in_racks(boxes, samples.racks)


def _in_racks(boxes: Boxes, racks: Boxes) -> Array:
    """bool [N]: the centre of a bicycle or motorcycle lies in a rack of its sample, borders included."""
    inside = np.zeros(len(boxes), bool)
    candidates = np.flatnonzero(np.isin(boxes.name, RACKED))
    for sample, center, (width, length, height), rotation in zip(
        racks.sample, racks.translation, racks.size, rotation_matrices(racks.rotation), strict=True
    ):
        mine = candidates[boxes.sample[candidates] == sample]
        local = (boxes.translation[mine] - center) @ rotation  # the inverse rotation, applied to rows
        inside[mine] |= (np.abs(local) <= np.array([length, width, height]) / 2).all(1)
    return inside


def _class_curves(name: str, truth: Boxes, found: Boxes, samples: Samples) -> dict[tuple[str, float], Curve]:
    from pcdet_ext.evaluation import compiled

    mine, objects = (np.flatnonzero(boxes.name == name) for boxes in (found, truth))
    found = found.select(mine[np.argsort(found.score[mine], kind="stable")[::-1]])
    truth = truth.select(objects[np.argsort(truth.sample[objects], kind="stable")])
    starts = np.searchsorted(truth.sample, np.arange(len(samples.tokens) + 1))
    curves = {}
    for distance in DISTANCES:
        matched = compiled.match_nearest_free(
            found.sample, found.translation[:, :2], starts, truth.translation[:, :2], distance
        )
        curves[name, distance] = _curve(name, truth, found, matched, distance == TP_DISTANCE)
    return curves


def _curve(name: str, truth: Boxes, found: Boxes, matched: Array, with_errors: bool) -> Curve:
    hits = matched >= 0
    if not hits.any():
        zeros = np.zeros(len(RECALL))
        return Curve(zeros, zeros, {error: np.ones(len(RECALL)) for error in ERRORS} if with_errors else {})
    true = np.cumsum(hits).astype(np.float64)
    recall = true / len(truth)
    precision = np.interp(RECALL, recall, true / np.arange(1, len(hits) + 1), right=0)
    confidence = np.interp(RECALL, recall, found.score, right=0)
    errors = {}
    if with_errors:
        pairs = found.select(hits), truth.select(matched[hits])
        for error, measure in MEASURES.items():
            running = running_mean(measure(*pairs, name))
            errors[error] = np.interp(confidence[::-1], pairs[0].score[::-1], running[::-1])[::-1]
    return Curve(precision, confidence, errors)


def running_mean(values: Array) -> Array:
    """Mean of the values so far, float64 [N], NaN left out: 0 before the first, and all 1 where there is none."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    return np.divide(np.nancumsum(values), count, out=np.zeros(len(values)), where=count > 0)


def _translation_error(found: Boxes, truth: Boxes, name: str) -> Array:
    return np.linalg.norm(found.translation[:, :2] - truth.translation[:, :2], axis=1)


def _scale_error(found: Boxes, truth: Boxes, name: str) -> Array:
    inter = np.minimum(found.size, truth.size).prod(1)
    return 1 - inter / (found.size.prod(1) + truth.size.prod(1) - inter)


def _orientation_error(found: Boxes, truth: Boxes, name: str) -> Array:
    period = np.pi if name == "barrier" else 2 * np.pi
    difference = (yaws(truth.rotation) - yaws(found.rotation) + period / 2) % period - period / 2
    return np.abs(np.where(difference > np.pi, difference - 2 * np.pi, difference))


def _velocity_error(found: Boxes, truth: Boxes, name: str) -> Array:
    return np.linalg.norm(found.velocity - truth.velocity, axis=1)


def _attribute_error(found: Boxes, truth: Boxes, name: str) -> Array:
    return np.where(truth.attribute == NO_ATTRIBUTE, np.nan, found.attribute != truth.attribute)


MEASURES: dict[str, Callable[[Boxes, Boxes, str], Array]] = {
    "trans_err": _translation_error,
    "scale_err": _scale_error,
    "orient_err": _orientation_error,
    "vel_err": _velocity_error,
    "attr_err": _attribute_error,
}
