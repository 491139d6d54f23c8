"""Argoverse 2 3-D detection metrics: AP, ATE, ASE, AOE, CDS (Wilson et al., NeurIPS Datasets and Benchmarks 2021).

The numbers are those of the official package `av2` (0.3.6), with detections of equal score in the order of their file.
Nothing of it is needed to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Result
from pcdet_ext.evaluation.quaternions import rotation_matrices, yaws
from pcdet_ext.structures import Array

CATEGORIES = (
    "ARTICULATED_BUS", "BICYCLE", "BICYCLIST", "BOLLARD", "BOX_TRUCK", "BUS", "CONSTRUCTION_BARREL",
    "CONSTRUCTION_CONE", "DOG", "LARGE_VEHICLE", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN",
    "MOTORCYCLE", "MOTORCYCLIST", "PEDESTRIAN", "REGULAR_VEHICLE", "SCHOOL_BUS", "SIGN", "STOP_SIGN", "STROLLER",
    "TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER", "WHEELCHAIR", "WHEELED_DEVICE", "WHEELED_RIDER",
)  # fmt: skip
METRICS = ("AP", "ATE", "ASE", "AOE", "CDS")
WORST = np.array([2.0, 1.0, np.pi])  # of ATE, ASE, AOE: what a class without matches gets
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2


@dataclass(frozen=True)
class Config:
    """What counts and how; the defaults are the official ones.

    Args:
        categories: classes that are evaluated; boxes of other names are ignored.
        max_range: metres from the vehicle below which boxes count (LION and OpenPCDet: 200).
        thresholds: metres between centres below which a detection matches.
        tp_threshold: the one whose matches have their errors measured.
        max_detections: of a class in a sweep that count, the best ones in range.
        recall_samples: points of the precision-recall curve (100 in av2 0.2.1).
    """

    categories: tuple[str, ...] = CATEGORIES
    max_range: float = 150.0
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    tp_threshold: float = 2.0
    max_detections: int = 100
    recall_samples: int = 101

    def __post_init__(self) -> None:
        if self.tp_threshold not in self.thresholds:
            raise ValueError(f"tp_threshold must be one of the thresholds {self.thresholds}, got {self.tp_threshold}")


@dataclass(frozen=True, eq=False)
class Cuboids:
    """Boxes of many sweeps, in the frame of the vehicle.

    sweep: int64 [N], number of each box's sweep, ascending with its (log, timestamp); category: unicode [N]; center,
    size: float64 [N, 3] in metres, size as length, width, height; rotation: float64 [N, 4] quaternion (w, x, y, z);
    score: float64 [N] of detections; num_points: int64 [N], points inside annotations.
    """

    sweep: Array
    category: Array
    center: Array
    size: Array
    rotation: Array
    score: Array
    num_points: Array

    def __len__(self) -> int:
        return len(self.sweep)

    def select(self, keep: Array) -> Cuboids:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Cuboids(**{name: column[keep] for name, column in vars(self).items()})

    def corners(self) -> Array:
        """Corners float64 [N, 8, 3]."""
        local = CORNERS * self.size[:, None]
        return local @ rotation_matrices(self.rotation).transpose(0, 2, 1) + self.center[:, None]


@dataclass(frozen=True, eq=False)
class Assignment:
    """How boxes fared, in the order in which they were given.

    hits: bool [N, thresholds]; errors: float64 [N, 3], ATE, ASE, AOE; counts: bool [N], whether the box is evaluated.
    """

    hits: Array
    errors: Array
    counts: Array


NOBODY = Assignment(np.zeros((0, 0), bool), np.zeros((0, 3)), np.zeros(0, bool))


@dataclass(frozen=True)
class ClassResult:
    """Numbers of one class: evaluated boxes, matches and AP for each threshold, and the five metrics."""

    annotations: int
    detections: int
    true_positives: tuple[int, ...]
    ap_by_threshold: tuple[float, ...]
    ap: float
    errors: tuple[float, float, float]

    @property
    def cds(self) -> float:
        """Composite detection score: AP times the mean of what is left of each error."""
        return self.ap * float(np.mean(1 - np.array(self.errors) / WORST))

    @property
    def metrics(self) -> dict[str, float]:
        """AP, ATE, ASE, AOE, CDS by name."""
        return dict(zip(METRICS, (self.ap, *self.errors, self.cds), strict=True))


@dataclass(frozen=True, eq=False)
class Argoverse2Result(Result):
    """All numbers of the official tool, unrounded; the score is the mean AP.

    classes: by category, all configured ones; detections, annotations: how each box fared.
    """

    classes: Mapping[str, ClassResult] = field(default_factory=dict)
    detections: Assignment = field(default_factory=lambda: NOBODY)
    annotations: Assignment = field(default_factory=lambda: NOBODY)

    @staticmethod
    def of(classes: Mapping[str, ClassResult], detections: Assignment, annotations: Assignment) -> Argoverse2Result:
        """The result that the numbers of classes make.

        Args:
            classes: numbers by category, of all configured ones.
            detections: how each detection fared.
            annotations: how each labelled box fared.
        """
        result = Argoverse2Result(np.nan, {}, "", classes, detections, annotations)
        average = {f"m{name}" if name == "AP" else name: value for name, value in result.average.items()}
        values = average | {f"AP {name}": found.ap for name, found in classes.items()}
        return replace(result, score=result.average["AP"], values=values)

    @property
    def average(self) -> dict[str, float]:
        """Means over all configured classes, absent ones with their worst values."""
        return {name: float(np.mean([c.metrics[name] for c in self.classes.values()])) for name in METRICS}

    def table(self) -> str:
        """One row for each class, and the averages."""
        rows = {**{name: found.metrics for name, found in self.classes.items()}, "AVERAGE_METRICS": self.average}
        lines = [f"{'':<34}" + "".join(f"{name:>8}" for name in METRICS)]
        lines += [f"{name:<34}" + "".join(f"{row[metric]:>8.3f}" for metric in METRICS) for name, row in rows.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers, under the official names."""
        classes = {
            name: {
                "num_gts": found.annotations,
                "num_dts": found.detections,
                "tp_by_threshold": list(found.true_positives),
                "AP_by_threshold": list(found.ap_by_threshold),
                **found.metrics,
            }
            for name, found in self.classes.items()
        }
        return {"per_category": classes, "AVERAGE_METRICS": self.average}


Region = Callable[[Cuboids], Array]


def evaluate(
    annotations: Cuboids, detections: Cuboids, config: Config | None = None, region: Region | None = None
) -> Argoverse2Result:
    """The official metrics.

    Args:
        annotations: boxes with the number of points inside.
        detections: boxes with scores, in the order of their file.
        config: what counts.
        region: tells which boxes (bool [N]) touch the region of interest; None evaluates boxes everywhere.
    """
    config = config or Config()
    everywhere: Region = lambda boxes: np.ones(len(boxes), bool)  # noqa: E731
    region = region or everywhere
    truth_counts = _in_range(annotations, config) & (annotations.num_points > 0)
    truth_counts[truth_counts] = region(annotations.select(truth_counts))
    found_counts = _best_in_range(detections, config)
    found_counts[found_counts] = region(detections.select(found_counts))
    found = _assign(annotations, detections, truth_counts, found_counts, config)
    truth = _looked_at(annotations, detections, truth_counts, found_counts, config)
    classes = {name: _class_result(name, annotations, detections, truth, found, config) for name in config.categories}
    return Argoverse2Result.of(classes, found, truth)


def _in_range(boxes: Cuboids, config: Config) -> Array:
    return np.linalg.norm(boxes.center, axis=1) < config.max_range


def _best_in_range(detections: Cuboids, config: Config) -> Array:
    """bool [N]: in range, and among the best of their class and sweep."""
    inside = np.flatnonzero(_in_range(detections, config))
    _, category = np.unique(detections.category, return_inverse=True)
    order = inside[np.lexsort((-detections.score[inside], category[inside], detections.sweep[inside]))]
    group = np.stack([detections.sweep[order], category[order]])
    starts = np.flatnonzero(np.r_[True, (group[:, 1:] != group[:, :-1]).any(0)]) if len(order) else np.zeros(0, int)
    lengths = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    counts = np.zeros(len(detections), bool)
    counts[order[rank < config.max_detections]] = True
    return counts


@dataclass(frozen=True, eq=False)
class _Nearest:
    """For the evaluated detections of a class, best score first: rows of detections and of the annotations that they
    look at, the distances, and whether each is the first to look at its annotation."""

    found: Array
    truth: Array
    distance: Array
    first: Array


def _nearest(
    name: str, annotations: Cuboids, detections: Cuboids, truth_counts: Array, found_counts: Array
) -> _Nearest:
    from pcdet_ext.evaluation import compiled

    truth = np.flatnonzero(truth_counts & (annotations.category == name))
    truth = truth[np.argsort(annotations.sweep[truth], kind="stable")]
    found = np.flatnonzero(found_counts & (detections.category == name))
    found = found[np.argsort(-detections.score[found], kind="stable")]
    sweeps = annotations.sweep[truth]
    starts, ends = (np.searchsorted(sweeps, detections.sweep[found], side) for side in ("left", "right"))
    place, distance = compiled.nearest_object(detections.center[found], starts, ends, annotations.center[truth])
    looking = place >= 0
    found, place, distance = found[looking], place[looking], distance[looking]
    first = np.zeros(len(found), bool)
    first[np.unique(place, return_index=True)[1]] = True
    return _Nearest(found, truth[place], distance, first)


def _assign(
    annotations: Cuboids, detections: Cuboids, truth_counts: Array, found_counts: Array, config: Config
) -> Assignment:
    """Step 2 of the metric for the detections: the best-scored one that looks at an annotation may match it."""
    thresholds = np.array(config.thresholds)
    hits = np.zeros((len(detections), len(thresholds)), bool)
    errors = np.zeros((len(detections), 3))
    for name in np.unique(detections.category):
        near = _nearest(name, annotations, detections, truth_counts, found_counts)
        errors[near.found] = WORST
        hits[near.found] = near.first[:, None] & (near.distance[:, None] < thresholds)
        close = near.first & (near.distance < config.tp_threshold)
        pairs = detections.select(near.found[close]), annotations.select(near.truth[close])
        errors[near.found[close]] = np.stack([near.distance[close], _scale_error(*pairs), _heading_error(*pairs)], 1)
    return Assignment(hits, errors, found_counts)


def _looked_at(
    annotations: Cuboids, detections: Cuboids, truth_counts: Array, found_counts: Array, config: Config
) -> Assignment:
    """The official table of annotations: one that any detection looks at is marked at every threshold.

    Its errors are the worst ones where its class was detected in its sweep at all, and 0 elsewhere.
    """
    hits = np.zeros((len(annotations), len(config.thresholds)), bool)
    errors = np.zeros((len(annotations), 3))
    for name in np.unique(annotations.category):
        hits[_nearest(name, annotations, detections, truth_counts, found_counts).truth] = True
        sweeps = detections.sweep[found_counts & (detections.category == name)]
        errors[truth_counts & (annotations.category == name) & np.isin(annotations.sweep, sweeps)] = WORST
    return Assignment(hits, errors, truth_counts)


def _scale_error(found: Cuboids, truth: Cuboids) -> Array:
    return 1 - np.minimum(found.size, truth.size).prod(1) / np.maximum(found.size, truth.size).prod(1)


def _heading_error(found: Cuboids, truth: Cuboids) -> Array:
    difference = np.abs(yaws(found.rotation) - yaws(truth.rotation))
    return np.where(difference >= np.pi, 2 * np.pi - difference, difference)


def _class_result(
    name: str, annotations: Cuboids, detections: Cuboids, truth: Assignment, found: Assignment, config: Config
) -> ClassResult:
    total = int((truth.counts & (annotations.category == name)).sum())
    rows = np.flatnonzero(found.counts & (detections.category == name))
    if not total:
        zeros = (0.0,) * len(config.thresholds)
        return ClassResult(0, len(rows), (0,) * len(zeros), zeros, 0.0, _plain(WORST))
    rows = rows[np.argsort(detections.sweep[rows], kind="stable")]
    rows = rows[np.argsort(-detections.score[rows], kind="stable")]
    hits = found.hits[rows]
    aps = tuple(_average_precision(column, total, config.recall_samples) for column in hits.T)
    close = found.errors[rows][hits[:, config.thresholds.index(config.tp_threshold)]]
    errors = _plain(close.mean(0) if len(close) else WORST)
    return ClassResult(total, len(rows), tuple(map(int, hits.sum(0))), aps, float(np.mean(aps)), errors)


def _plain(errors: Array) -> tuple[float, float, float]:
    translation, scale, heading = map(float, errors)
    return translation, scale, heading


def _average_precision(hits: Array, total: int, samples: int) -> float:
    """Mean of the precision, made falling from its end, over evenly spaced values of recall."""
    if not len(hits):
        return 0.0
    true = np.cumsum(hits)
    precision = true / (np.arange(1, len(hits) + 1) + np.finfo(np.float64).eps)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.interp(np.linspace(0, 1, samples), true / total, falling, right=0).mean())


def categories_present(annotations: Cuboids, categories: Sequence[str] = CATEGORIES) -> tuple[str, ...]:
    """Those categories that occur in the annotations, as OpenPCDet evaluates them."""
    present = set(annotations.category.tolist())
    return tuple(name for name in categories if name in present)
