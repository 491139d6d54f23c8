"""Motion forecasts of detections: minADE, minFDE, miss rate and EPA of cars and pedestrians.

The rules are those of UniLION's evaluator, which follows UniAD (Hu et al., CVPR 2023; EPA: Gu et al., "ViP3D", CVPR
2023): detections are matched as in the nuScenes detection benchmark, and the errors of the forecasts are averaged like
its true-positive errors. The future is 6 seconds long, 12 steps of half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot
from pcdet_ext.evaluation.nuscenes import RECALL, TP_DISTANCE, Boxes, Curve, Samples, curve_json, running_mean
from pcdet_ext.evaluation.nuscenes import within_range as near_enough
from pcdet_ext.structures import Array

STEPS = 12
STEP_SECONDS = 0.5
# The class that each detection class is measured as. Barriers are renamed too, but never measured.
MERGED = {
    **dict.fromkeys(("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle"), "car"),
    "pedestrian": "pedestrian", "traffic_cone": "barrier", "barrier": "barrier",
}  # fmt: skip
CLASS_RANGES = {"car": 50.0, "pedestrian": 40.0}
CLASSES = tuple(CLASS_RANGES)
ERRORS = ("min_ade_err", "min_fde_err", "miss_rate_err")
MISSED = 2.0  # metres
FALSE_POSITIVE_COST = 0.5


@dataclass(frozen=True, eq=False)
class Futures:
    """Boxes and where they go, in the frame of the vehicle at the time of their sample's front camera.

    boxes: see `nuscenes.Boxes`; paths: of ground truth float64 [N, 12, 2], of detections float32 [N, modes, 12, 2],
    places half a second apart; lengths: int64 [N], how many places are known, 12 of detections.
    """

    boxes: Boxes
    paths: Array
    lengths: Array

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Array) -> Futures:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Futures(self.boxes.select(keep), self.paths[keep], self.lengths[keep])


@dataclass(frozen=True)
class ClassMotion:
    """Numbers of a class.

    curve: precision, confidence and the running means of the errors over recall, None without ground truth; epa:
    end-to-end prediction accuracy; truths, detections: boxes that count; hits, false: of the EPA.
    """

    curve: Curve | None
    epa: float
    truths: int
    detections: int
    hits: int = 0
    false: int = 0

    def error(self, name: str) -> float:
        """One of `ERRORS`; 1 where nothing was found."""
        return 1.0 if self.curve is None else self.curve.error(name)


@dataclass(frozen=True)
class MotionResult:
    """Numbers of each class."""

    classes: Mapping[str, ClassMotion]

    @property
    def score(self) -> float:
        """What "better" means: the EPA, the mean over the classes."""
        return float(np.mean([found.epa for found in self.classes.values()]))

    @property
    def values(self) -> dict[str, float]:
        """The numbers under their published names."""
        errors = {f"{name}_{e}": found.error(e) for name, found in self.classes.items() for e in ERRORS}
        return {f"{name}_EPA": found.epa for name, found in self.classes.items()} | errors

    def table(self) -> str:
        """One row for each class."""
        lines = [f"{'':<12}{'EPA':>8}{'minADE':>8}{'minFDE':>8}{'MR':>8}{'truths':>8}{'found':>8}{'hits':>8}{'FP':>8}"]
        for name, found in self.classes.items():
            numbers = "".join(f"{value:>8.3f}" for value in (found.epa, *(found.error(e) for e in ERRORS)))
            counts = (found.truths, found.detections, found.hits, found.false)
            lines.append(f"{name:<12}{numbers}" + "".join(f"{count:>8}" for count in counts))
        return "\n".join(lines)

    def plots(self) -> Sequence[Plot]:
        """Running mean of the errors over recall, of each class."""
        known = {name: found.curve for name, found in self.classes.items() if found.curve is not None}
        return [Plot(e, "recall", e, {name: (RECALL, c.errors[e]) for name, c in known.items()}) for e in ERRORS]

    def to_json(self) -> dict[str, Any]:
        """All numbers and curves."""
        counts = {name: {"gt": found.truths, "pd": found.detections} for name, found in self.classes.items()}
        curves = {name: None if f.curve is None else curve_json(f.curve) for name, f in self.classes.items()}
        return {"metrics": self.values, "after_filter": counts, "details": curves}


def evaluate(truth: Futures, found: Futures, samples: Samples) -> MotionResult:
    """The metrics of forecasts.

    Args:
        truth: annotated boxes, names being detection classes, and their true paths.
        found: detections, in the order of the results file: of equal scores the later one counts first.
        samples: what both belong to; bicycle racks do not matter.
    """
    truth, found = (_counted(side, samples) for side in (truth, found))
    return MotionResult({name: _class_motion(name, truth, found, samples) for name in CLASSES})


def _counted(side: Futures, samples: Samples) -> Futures:
    """Boxes of the merged classes within their ranges, truth with points."""
    names = np.array([MERGED.get(name, name) for name in side.boxes.name.tolist()], np.str_)
    side = Futures(replace(side.boxes, name=names), side.paths, side.lengths)
    nowhere = Samples(samples.tokens, samples.ego, side.boxes.select(np.zeros(0, np.int64)))
    return side.select(near_enough(side.boxes, nowhere, CLASS_RANGES))


def _class_motion(name: str, truth: Futures, found: Futures, samples: Samples) -> ClassMotion:
    from pcdet_ext.evaluation.compiled import match_nearest_free
    from pcdet_ext.evaluation.compiled_scenes import forecast_hits

    mine, objects = (np.flatnonzero(side.boxes.name == name) for side in (found, truth))
    found = found.select(mine[np.argsort(found.boxes.score[mine], kind="stable")[::-1]])
    truth = truth.select(objects[np.argsort(truth.boxes.sample[objects], kind="stable")])
    if not len(truth):
        return ClassMotion(None, 0.0, 0, len(found))
    starts = np.searchsorted(truth.boxes.sample, np.arange(len(samples.tokens) + 1))
    centers = np.ascontiguousarray(found.boxes.translation[:, :2])
    places = np.ascontiguousarray(truth.boxes.translation[:, :2])
    matched = match_nearest_free(found.boxes.sample, centers, starts, places, TP_DISTANCE)
    if not (matched >= 0).any():
        zeros, ones = np.zeros(len(RECALL)), np.ones(len(RECALL))
        return ClassMotion(Curve(zeros, zeros, dict.fromkeys(ERRORS, ones)), 0.0, len(truth), len(found))
    hits = forecast_hits(
        found.boxes.sample, centers, found.paths, starts, places, truth.paths, truth.lengths, TP_DISTANCE
    )
    false = int((matched < 0).sum())
    epa = (hits - FALSE_POSITIVE_COST * false) / len(truth)
    return ClassMotion(_curve(truth, found, matched), epa, len(truth), len(found), hits, false)


def _curve(truth: Futures, found: Futures, matched: Array) -> Curve:
    hits = matched >= 0
    true = np.cumsum(hits).astype(np.float64)
    precision = np.interp(RECALL, true / len(truth), true / np.arange(1, len(hits) + 1), right=0)
    confidence = np.interp(RECALL, true / len(truth), found.boxes.score, right=0)
    scores, pairs = found.boxes.score[hits], truth.select(matched[hits])
    errors = {}
    for name, values in path_errors(found.paths[hits], pairs.paths, pairs.lengths).items():
        errors[name] = np.interp(confidence[::-1], scores[::-1], running_mean(values)[::-1])[::-1]
    return Curve(precision, confidence, errors)


def path_errors(modes: Array, paths: Array, lengths: Array) -> dict[str, Array]:
    """Errors of forecasts, each of its own best mode, float64 [N] by name.

    Args:
        modes: [N, M, 12, 2], forecast places.
        paths: [N, 12, 2], true places.
        lengths: int64 [N], how many of these are known; without any, all errors are 0.

    Returns:
        min_ade_err: mean distance in metres; min_fde_err: distance at the last known step; miss_rate_err: 1 where the
        largest distance exceeds 2 m.
    """
    known = np.arange(STEPS) < lengths[:, None]  # [N, 12]
    gaps = np.linalg.norm(modes.astype(np.float64) - paths[:, None], axis=3)
    gaps = np.where(known[:, None], gaps, 0.0)
    mean = gaps.sum(axis=2) / np.maximum(lengths, 1)[:, None]
    last = np.maximum(lengths - 1, 0)[:, None, None]
    final = np.take_along_axis(gaps, last, axis=2)[..., 0]
    missed = gaps.max(axis=2).min(axis=1) > MISSED
    return dict(zip(ERRORS, (mean.min(axis=1), final.min(axis=1), missed.astype(np.float64)), strict=True))
