"""ONCE's 3-D detection metric: average precision by distance, aware of orientation (Mao et al., NeurIPS 2021).

A detection matches a labelled box of its class where their intersection over union is above the class's threshold and
their headings differ by no more than 90 degrees. Precision is sampled at the recalls 0.02, 0.04, …, 1, each the highest
at this recall or above, and averaged: AP = (100 / 50) · Σ max precision. Cars, buses and trucks are measured together
as vehicles. Boxes outside a range of distances from the sensor are ignored in it: they may match, but do not count.

Recalls are reached at scores of true detections, as in KITTI's tool: labelled boxes take detections twice, first by
their scores, which gives the thresholds, and then, at each threshold, by their overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.matching import IGNORED, OTHER, VALID
from pcdet_ext.ops import iou_3d_paired
from pcdet_ext.structures import Array, Detections, Targets

CLASSES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
VEHICLE, VEHICLES = "Vehicle", ("Car", "Bus", "Truck")
OVERLAPS = {"Vehicle": 0.7, "Car": 0.7, "Bus": 0.7, "Truck": 0.7, "Pedestrian": 0.3, "Cyclist": 0.5}
RANGES = {"overall": (0.0, math.inf), "0-30m": (0.0, 30.0), "30-50m": (30.0, 50.0), "50m-inf": (50.0, math.inf)}
RECALLS = 50
LARGEST_TURN = np.pi / 2  # radians between the headings of a match
CLOSE = 1e-6  # of sums of two recalls that count as one that is aimed at


@dataclass(frozen=True)
class Config:
    """What counts and how; the defaults are the published ones.

    Args:
        classes: what is measured; boxes of other names are left out.
        superclass: whether cars, buses and trucks are measured together, as vehicles.
        heading: whether headings must agree for a match.
        published: in a range of distances, boxes of other classes outside it are ignored instead of left out, so that
            they may be matched, as in ONCE's own tool.

    Raises:
        ValueError: for a class that ONCE does not have, and for some of the vehicles where they count together.
    """

    classes: tuple[str, ...] = CLASSES
    superclass: bool = True
    heading: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes must hold at least one name")
        for name in self.classes:
            if name not in CLASSES:
                raise ValueError(f"ONCE has no class {name!r}{suggest(name, CLASSES)}")
        absent = [name for name in VEHICLES if name not in self.classes]
        if self.superclass and 0 < len(absent) < len(VEHICLES):
            raise ValueError(
                f"{', '.join(VEHICLES)} are measured together, and {absent[0]} is not one of the classes; "
                "superclass=false measures each alone"
            )

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The classes that are measured together, by the name that they have as one."""
        if not self.superclass:
            return {name: (name,) for name in self.classes}
        vehicles = {VEHICLE: VEHICLES} if VEHICLES[0] in self.classes else {}
        return vehicles | {name: (name,) for name in self.classes if name not in VEHICLES}


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision float64 [51] at the recalls 0, 0.02, …, 1, each the highest from there on; truths, detections: how many
    labelled boxes and detections count."""

    precision: Array
    truths: int
    detections: int

    @property
    def ap(self) -> float:
        """Average precision in percent; 0 without labelled boxes, as published."""
        return float(self.precision[1:].sum() / RECALLS * 100)


@dataclass(frozen=True, eq=False)
class OnceResult(Result):
    """AP by class and range of distances; the score is the mean AP of the classes over all distances.

    curves: by class and range.
    """

    curves: Mapping[tuple[str, str], Curve] = field(default_factory=dict)

    @staticmethod
    def of(curves: Mapping[tuple[str, str], Curve]) -> OnceResult:
        """The numbers of curves for all classes and ranges."""
        values = {f"AP {name}/{distance}": curve.ap for (name, distance), curve in curves.items()}
        for distance in RANGES:
            own = [curve.ap for (_, other), curve in curves.items() if other == distance]
            values[f"mAP/{distance}"] = float(np.mean(own))
        return OnceResult(values["mAP/overall"], values, "", curves)

    @property
    def classes(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(dict.fromkeys(name for name, _ in self.curves))

    def table(self) -> str:
        """AP in percent: a row for each class and one for the mean, a column for each range."""
        rows = {name: [self.curves[name, d].ap for d in RANGES] for name in self.classes}
        rows["mAP"] = [self.values[f"mAP/{distance}"] for distance in RANGES]
        lines = [f"{'AP in percent':<15}" + "".join(f"{distance:>10}" for distance in RANGES)]
        lines += [f"{name:<15}" + "".join(f"{ap:>10.2f}" for ap in aps) for name, aps in rows.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers and curves in plain types."""
        classes: dict[str, Any] = {name: {} for name in self.classes}
        for (name, distance), curve in self.curves.items():
            classes[name][distance] = {
                "AP": curve.ap,
                "labelled": curve.truths,
                "detected": curve.detections,
                "precision": curve.precision.tolist(),
            }
        return super().to_json() | {"classes": classes}

    def plots(self) -> list[Plot]:
        """Precision over recall, a diagram for each class with a curve for each range."""
        recall = np.arange(RECALLS + 1) / RECALLS
        return [
            Plot(name, "recall", "precision", {d: (recall, self.curves[name, d].precision) for d in RANGES})
            for name in self.classes
        ]


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Boxes of all frames one after the other: where each frame begins [F + 1], names, and distance from the sensor."""

    starts: Array
    boxes: Array
    names: Array
    distance: Array

    @staticmethod
    def of(frames: Sequence[Targets | Detections]) -> _Boxes:
        parts = [np.zeros((0, 7)) if f.boxes is None else np.asarray(f.boxes, np.float64)[:, :7] for f in frames]
        boxes = np.concatenate([np.zeros((0, 7)), *parts])
        names = np.array([name for frame in frames for name in frame.names], np.str_)
        starts = np.cumsum([0, *map(len, parts)])
        return _Boxes(starts, boxes, names, np.linalg.norm(boxes[:, :3], axis=1))

    def states(self, members: Sequence[str], low: float, high: float, published: bool) -> Array:
        """int8 [N]: which boxes count for some classes in a range of distances; see `matching`."""
        own, inside = np.isin(self.names, members), (self.distance >= low) & (self.distance < high)
        states = np.where(own, np.where(inside, VALID, IGNORED), OTHER)
        return np.where(~inside & published, IGNORED, states).astype(np.int8)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of labelled boxes and detections of one frame that overlap: their numbers and overlaps, in that order."""

    truth: Array
    found: Array
    overlap: Array

    def above(self, least: float, truths: int) -> tuple[Array, Array, Array]:
        """For each labelled box where its pairs begin, the detections of all pairs, and their overlaps."""
        kept = self.overlap > least
        starts = np.searchsorted(self.truth[kept], np.arange(truths + 1))
        return starts, self.found[kept], self.overlap[kept]


def evaluate(
    ground_truth: Sequence[Targets], results: Sequence[Detections], config: Config | None = None
) -> OnceResult:
    """The metric of detections against labels, frame by frame in the same order; arrays throughout.

    Args:
        ground_truth: labelled boxes of each frame, in the frame of its sensor.
        results: detections of each frame.
        config: what counts.

    Raises:
        ValueError: for lists of different length.
    """
    config = config or Config()
    if len(ground_truth) != len(results):
        raise ValueError(f"{len(ground_truth)} frames of ground truth, but {len(results)} of results")
    truth, found = _Boxes.of(ground_truth), _Boxes.of(results)
    scores = np.concatenate([np.zeros(0), *(np.asarray(frame.scores, np.float64) for frame in results)])
    pairs = _pairs(truth, found, config.heading)
    curves = {}
    for name, members in config.groups.items():
        near = pairs.above(OVERLAPS[name], len(truth.boxes))
        for distance, limits in RANGES.items():
            states = [boxes.states(members, *limits, config.published) for boxes in (truth, found)]
            curves[name, distance] = _curve(near, states[0], states[1], scores)
    return OnceResult.of(curves)


def _pairs(truth: _Boxes, found: _Boxes, heading: bool) -> _Pairs:
    """The pairs of all frames; with `heading` those alone whose headings agree."""
    parts = []
    for frame in range(len(truth.starts) - 1):
        t = np.arange(truth.starts[frame], truth.starts[frame + 1])
        d = np.arange(found.starts[frame], found.starts[frame + 1])
        rows, columns = np.repeat(t, len(d)), np.tile(d, len(t))
        a, b = truth.boxes[rows], found.boxes[columns]
        overlap = iou_3d_paired(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        kept = overlap > 0
        if heading:
            turn = np.abs(a[:, 6] - b[:, 6]) % (2 * np.pi)
            kept &= np.minimum(turn, 2 * np.pi - turn) <= LARGEST_TURN
        parts.append((rows[kept], columns[kept], overlap[kept]))
    none = np.zeros(0, np.int64)
    return _Pairs(*(np.concatenate(columns) for columns in zip((none, none, np.zeros(0)), *parts, strict=True)))


def _curve(near: tuple[Array, Array, Array], truth_state: Array, found_state: Array, scores: Array) -> Curve:
    from pcdet_ext.evaluation import compiled_once as compiled

    starts, found, overlap = near
    truths = int((truth_state == VALID).sum())
    true = compiled.true_scores(starts, found, truth_state, found_state, scores)
    precision = np.zeros(RECALLS + 1)
    for i, threshold in enumerate(pick_thresholds(true, truths)):
        hits, false = compiled.counts(starts, found, overlap, truth_state, found_state, scores, threshold)
        precision[i] = hits / max(hits + false, 1)  # other boxes may have taken all detections of this score
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return Curve(falling, truths, int((found_state == VALID).sum()))


def pick_thresholds(scores: Array, truths: int) -> list[float]:
    """The scores at which the recalls 0, 0.02, …, 1 are reached, as far as they are: at most 51.

    Args:
        scores: float64 [K], of true detections.
        truths: labelled boxes that count, at least K.
    """
    ordered = np.sort(scores)[::-1].tolist()
    picked: list[float] = []
    for i, score in enumerate(ordered):
        last = i + 1 == len(ordered)
        here, following = (i + 1) / truths, (i + 1 if last else i + 2) / truths
        if not last and here + following < 2 * len(picked) / RECALLS:
            continue
        picked.append(score)
        while here + following + CLOSE > 2 * len(picked) / RECALLS:
            picked.append(score)
    return picked[: RECALLS + 1]
