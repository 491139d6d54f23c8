"""The numbers of the KITTI benchmark: the overlaps that it asks for, precision over recall, and the familiar table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.kitti_labels import (
    DIFFICULTIES,
    MIN_HEIGHT,
)
from pcdet_ext.evaluation.matching import (
    THRESHOLDS,
    Array,
    pick_thresholds,
)

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck")
STRICT, LOOSE = "overlap_0_7", "overlap_0_5"
_KNOWN = tuple(name.lower() for name in CLASSES)
_LARGE = ("car", "van", "truck")


def is_measured(name: str) -> bool:
    """Whether the benchmark has this class; it compares names without case."""
    return name.lower() in _KNOWN


def min_overlap(name: str, metric: str, overlap_set: str, chosen: Mapping[str, float] | None = None) -> float:
    """Overlap that a match must exceed.

    Args:
        name: a class.
        metric: "bbox", "bev" or "3d".
        overlap_set: "overlap_0_7" or "overlap_0_5".
        chosen: the overlap, in all metrics and both sets, of classes that KITTI does not measure.
    """
    if chosen and name in chosen:
        return chosen[name]
    large = name.lower() in _LARGE
    if overlap_set == STRICT:
        return 0.7 if large else 0.5
    if metric == "bbox":
        return 0.5 if name.lower() == "truck" or not large else 0.7
    return 0.5 if large else 0.25


@dataclass(frozen=True)
class Precision:
    """One class and metric. precision: [3, 41] over recall, a row for each difficulty; r11, r40: [3] in percent."""

    precision: Array

    @property
    def r11(self) -> Array:
        """Mean of the recall points 0, 0.1, …, 1."""
        return np.asarray(self.precision[:, ::4].mean(1) * 100)

    @property
    def r40(self) -> Array:
        """Mean of the recall points 1/40, …, 1."""
        return np.asarray(self.precision[:, 1:].mean(1) * 100)


@dataclass(frozen=True)
class ClassCount:
    """How many objects of a class there are, and how many of them count.

    labels: labelled objects; counting: those that count as easy, moderate and hard; reasons: why the others do not
    count even as hard ones, with their number; detections: found objects; low: those too low in the image to count.
    """

    labels: int
    counting: tuple[int, int, int]
    reasons: Mapping[str, int]
    detections: int
    low: int

    def highest_r40(self) -> float:
        """R40 at moderate difficulty, in percent, of a detector that finds all: below 41 objects it is not 100.

        The curve has one entry for each threshold, and there are no more thresholds than objects.
        """
        count = min(self.counting[1], THRESHOLDS)
        entries = len(pick_thresholds([float(i) for i in range(count)], max(count, 1)))
        return max(entries - 1, 0) / (THRESHOLDS - 1) * 100

    def line(self, name: str) -> str:
        """What to print."""
        levels = ", ".join(f"{count} {level}" for count, level in zip(self.counting, DIFFICULTIES, strict=True))
        text = f"{name}: {self.labels} labelled, of which count {levels}"
        if self.reasons:
            text += f"; never count: {', '.join(f'{n} ({reason})' for reason, n in self.reasons.items())}"
        text += f"; {self.detections} detected"
        if (best := self.highest_r40()) < 100:
            text += f"; with so few objects the benchmark's R40 (moderate) reaches {best:.1f} at most"
        if self.low:
            text += f", {self.low} of them never count (2-D box lower than {min(MIN_HEIGHT):g} pixels)"
        return text


@dataclass(frozen=True, eq=False)
class KittiResult(Result):
    """The devkit's numbers; the score is the classes' mean 3-D average precision (moderate, R40, strict overlaps).

    results: overlap set → class → metric → precision, without orientation ("aos") when any detection has alpha -10;
    counts: of each class; chosen: overlap of the classes that KITTI does not measure; others: number of detections
    of each class that was not measured; flat: of those whose size is not positive, which match nothing in bev and 3d.
    """

    frames: int = 0
    results: Mapping[str, Mapping[str, Mapping[str, Precision]]] = field(default_factory=dict)
    counts: Mapping[str, ClassCount] = field(default_factory=dict)
    chosen: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    flat: int = 0

    def ap(self, name: str, metric: str, difficulty: str = "moderate", overlap_set: str = STRICT) -> float:
        """R40 average precision in percent.

        Args:
            name: of the class.
            metric: "bbox", "bev", "3d" or "aos".
            difficulty: "easy", "moderate" or "hard".
            overlap_set: which of the two sets of least overlaps.
        """
        return average_precision(self.results, name, metric, difficulty, overlap_set)

    def to_json(self) -> dict[str, Any]:
        """Plain types: overlap set → class → metric → R11, R40 (three difficulties) and the precision curves."""
        sets = {
            overlap_set: {
                name: {
                    metric: {"R11": p.r11.tolist(), "R40": p.r40.tolist(), "precision": p.precision.tolist()}
                    for metric, p in metrics.items()
                }
                for name, metrics in classes.items()
            }
            for overlap_set, classes in self.results.items()
        }
        counts = {name: asdict(count) for name, count in self.counts.items()}
        more = {"overlap": dict(self.chosen), "not_measured": dict(self.others), "without_size": self.flat}
        return super().to_json() | {"frames": self.frames, "counts": counts} | more | sets

    def table(self) -> str:
        """The familiar table: AP in percent for easy, moderate, hard, over 40 and over 11 recall points.

        Below it stand how many objects of each class count, and which overlaps are not the benchmark's own.
        """
        head = f"{'class':<15} {'metric':<5} {'IoU':>4}   {'R40 easy':>8} {'moderate':>8} {'hard':>7}   "
        lines = [f"KITTI, {self.frames} frames", head + f"{'R11 easy':>8} {'moderate':>8} {'hard':>7}"]
        for overlap_set, classes in self.results.items():
            for name, metrics in classes.items():
                lines += [line for metric, p in metrics.items() if (line := self._row(overlap_set, name, metric, p))]
        lines += [count.line(name) for name, count in self.counts.items()]
        lines += [
            f"{name}: not a class of the benchmark, measured by its rules with an overlap of {overlap:g}"
            for name, overlap in self.chosen.items()
        ]
        if self.others:
            named = ", ".join(f"{count} of {name}" for name, count in self.others.items())
            lines.append(f"detections of classes that are not measured: {named}")
        if self.flat:
            lines.append(f"detections whose size is not positive: {self.flat}; in bev and 3d they match nothing")
        return "\n".join(lines)

    def plots(self) -> list[Plot]:
        """Precision over recall of each class and metric with the strict overlaps, one curve for each difficulty."""
        recall = np.linspace(0, 1, THRESHOLDS)
        plots = []
        for name, metrics in self.results[STRICT].items():
            for metric, found in metrics.items():
                curves = {level: (recall, row) for level, row in zip(DIFFICULTIES, found.precision, strict=True)}
                plots.append(Plot(f"{name}_{metric}", "recall", "precision", curves))
        return plots

    def _row(self, overlap_set: str, name: str, metric: str, precision: Precision) -> str:
        """One line of the table; none where the loose set asks for no less than the strict one."""
        strict, least = (
            min_overlap(name, "bbox" if metric == "aos" else metric, s, self.chosen) for s in (STRICT, overlap_set)
        )
        if overlap_set == LOOSE and least == strict:
            return ""
        r40, r11 = precision.r40, precision.r11
        return (
            f"{name:<15} {metric:<5} {least:>4.2f}   {r40[0]:>8.2f} {r40[1]:>8.2f} {r40[2]:>7.2f}   "
            f"{r11[0]:>8.2f} {r11[1]:>8.2f} {r11[2]:>7.2f}"
        )


def average_precision(results: Mapping[str, Any], name: str, metric: str, difficulty: str, overlap_set: str) -> float:
    """R40 average precision in percent.

    Args:
        results: overlap set → class → metric → precision.
        name: of the class.
        metric: "bbox", "bev", "3d" or "aos".
        difficulty: "easy", "moderate" or "hard".
        overlap_set: which of the two sets of least overlaps.
    """
    return float(results[overlap_set][name][metric].r40[DIFFICULTIES.index(difficulty)])
