"""What frames in KITTI's layout look like in numbers: for telling how close simulated frames are to real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.kitti.files import Frame, find_frames, read_points
from pcdet_ext.data.kitti.labels import boxed, labels_to_boxes, read_labels
from pcdet_ext.structures import Array

HALF_VIEW = np.deg2rad(40)  # the camera sees about this far to both sides, and labels tell of nothing else
RINGS = 64
START = 0.002  # radians before its turn begins at which the first point of a ring may lie
CELL = 2.0  # metres, of the cells in which the ground is looked for
GROUND = 0.25  # metres over the lowest point of a cell that may be ground
FEWEST = 12  # points of a cell that tell how rough it is
OVER_GROUND = 0.4  # metres from which a point is no ground
NOT_DRIVEN_INTO = 0.15  # metres: lower points in a car's box may be of the road
DISTANCES = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 70.0)


@dataclass(frozen=True)
class Quantity:
    """Something that is measured many times in a frame. edges: of the bins of its histogram."""

    name: str
    unit: str
    edges: Array


def _even(low: float, high: float, bins: int) -> Array:
    return np.linspace(low, high, bins + 1)


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("intensity on cars", "", _even(0, 1, 25)),
        Quantity("intensity on the ground", "", _even(0, 1, 25)),
        Quantity("intensity elsewhere", "", _even(0, 1, 25)),
        Quantity("height of points on cars", "share of the height", _even(0, 1, 10)),
        Quantity("range of points", "m", _even(0, 80, 20)),
        Quantity("range of what stands beside the road", "m", _even(0, 80, 20)),
        Quantity("roughness of the ground", "m", _even(0, 0.12, 24)),
        Quantity("returns of a ring", "share of the fullest ring", _even(0, 1, 20)),
        Quantity("length of cars", "m", _even(2.5, 6, 14)),
        Quantity("width of cars", "m", _even(1.2, 2.2, 10)),
        Quantity("height of cars", "m", _even(1.1, 2.3, 12)),
        Quantity("heading of cars, either way", "rad", _even(-np.pi / 2, np.pi / 2, 12)),
    )
}


@dataclass(frozen=True, eq=False)
class Statistics:
    """The numbers of some frames.

    frames: how many; points: float64 [frames], of each; values: by name of the `QUANTITIES`, float64 [N]; cars: float64
    [C, 2], distance in metres and points of each car that nothing hides; elevations: float64 [64] in degrees, of the
    rings of the sensor, the highest first, or empty where the order of the points does not tell.
    """

    frames: int
    points: Array
    values: Mapping[str, Array]
    cars: Array
    elevations: Array

    def histogram(self, name: str) -> Array:
        """Shares of the values in each bin; what lies outside counts in the outermost one. All 0 without values."""
        edges = QUANTITIES[name].edges
        counts = np.histogram(np.clip(self.values[name], edges[0], edges[-1]), edges)[0]
        return np.asarray(counts / max(counts.sum(), 1))

    def points_by_distance(self) -> list[float | None]:
        """Median of the points per car in each interval of `DISTANCES`; None where there is no car."""
        found: list[float | None] = []
        for low, high in pairwise(DISTANCES):
            inside = (self.cars[:, 0] >= low) & (self.cars[:, 0] < high)
            found.append(float(np.median(self.cars[inside, 1])) if inside.any() else None)
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return {
            "frames": self.frames,
            "points per frame": float(self.points.mean()),
            "points per car": {"distance from": list(DISTANCES[:-1]), "median": self.points_by_distance()},
            "elevation of the rings": self.elevations.round(3).tolist(),
            "histograms": {
                name: {"edges": quantity.edges.round(4).tolist(), "shares": self.histogram(name).round(5).tolist()}
                for name, quantity in QUANTITIES.items()
            },
        }


def differences(a: Statistics, b: Statistics) -> dict[str, float]:
    """How far apart two sets of frames are: the total variation of each quantity's histograms, 0 (same) to 1."""
    return {name: float(np.abs(a.histogram(name) - b.histogram(name)).sum() / 2) for name in QUANTITIES}


def measure(root: str | Path, split: str) -> Statistics:
    """The numbers of a split.

    Args:
        root: the data folder.
        split: name of the split.

    Raises:
        DataError: there are no such frames, or one of them is damaged.
    """
    frames = find_frames(root, split)
    return _joined([_measure_frame(frame) for frame in frames])


@dataclass(frozen=True, eq=False)
class _Measured:
    """What one frame gives."""

    points: int
    values: dict[str, Array]
    cars: Array
    elevations: Array


def _joined(parts: Iterable[_Measured]) -> Statistics:
    found = list(parts)
    known = [part.elevations for part in found if len(part.elevations)]
    return Statistics(
        frames=len(found),
        points=np.array([part.points for part in found], np.float64),
        values={name: np.concatenate([part.values[name] for part in found]) for name in QUANTITIES},
        cars=np.concatenate([part.cars for part in found]),
        elevations=np.median(known, 0) if known else np.zeros(0),
    )


def _measure_frame(frame: Frame) -> _Measured:
    points = read_points(frame.points).astype(np.float64)
    points = points[np.isfinite(points).all(1)]
    rings = ring_of_points(points)
    labels = boxed(read_labels(frame.labels))
    boxes = np.asarray(labels_to_boxes(labels, Calibration.read(frame.calibration)).boxes, np.float64).reshape(-1, 7)
    seen = points[np.abs(np.arctan2(points[:, 1], points[:, 0])) < HALF_VIEW]
    inside = inside_boxes(seen, boxes)
    over, rough, is_ground = _over_ground(seen)
    free = ~inside.any(0)
    cars = np.array([name == "Car" for name in labels.names], bool)
    ranges = np.linalg.norm(seen[:, :3], axis=1)
    on_cars, heights, counts = _on_cars(seen, boxes[cars], inside[cars])
    whole = (labels.occlusion[cars] == 0) & (labels.truncation[cars] <= 0)
    values = {
        "intensity on cars": on_cars,
        "intensity on the ground": seen[is_ground & free & (ranges < 25), 3],
        "intensity elsewhere": seen[(over > OVER_GROUND) & free, 3],
        "height of points on cars": heights,
        "range of points": ranges,
        "range of what stands beside the road": ranges[(over > OVER_GROUND) & free],
        "roughness of the ground": rough,
        "returns of a ring": _returns(rings),
        "length of cars": boxes[cars, 3],
        "width of cars": boxes[cars, 4],
        "height of cars": boxes[cars, 5],
        "heading of cars, either way": (boxes[cars, 6] + np.pi / 2) % np.pi - np.pi / 2,
    }
    away = np.hypot(boxes[cars, 0], boxes[cars, 1])
    pairs = np.column_stack([away, counts])[whole]
    return _Measured(len(points), values, pairs, _elevations(points, rings))


def _on_cars(points: Array, boxes: Array, inside: Array) -> tuple[Array, Array, Array]:
    """Intensities and heights (shares of the box's) of the points on cars, and how many points each car has."""
    intensities, heights = [np.zeros(0)], [np.zeros(0)]
    counts = np.zeros(len(boxes))
    for number, (box, own) in enumerate(zip(boxes, inside, strict=True)):
        height = points[own, 2] - box[2] + box[5] / 2
        on_body = height > NOT_DRIVEN_INTO
        counts[number] = on_body.sum()
        intensities.append(points[own, 3][on_body])
        heights.append(height[on_body] / box[5])
    return np.concatenate(intensities), np.concatenate(heights), counts


def _over_ground(points: Array) -> tuple[Array, Array, Array]:
    """Height of points over the lowest one nearby, roughness of each cell [m], and which points may be ground."""
    if not len(points):
        return np.zeros(0), np.zeros(0), np.zeros(0, bool)
    _, cell = np.unique(np.floor(points[:, :2] / CELL).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    lowest = np.full(cell.max() + 1, np.inf)
    np.minimum.at(lowest, cell, points[:, 2])
    over = points[:, 2] - lowest[cell]
    # Under what stands on the ground no beam reaches it: there the lowest point is no ground.
    is_ground = (over < GROUND) & (lowest[cell] < np.median(lowest) + 1.0)
    candidates = points[is_ground]
    order = np.argsort(cell[is_ground], kind="stable")
    _, starts = np.unique(cell[is_ground][order], return_index=True)
    groups = np.split(candidates[order, :3], starts[1:])
    rough = [_residual(group) for group in groups if len(group) >= FEWEST]
    return over, np.array(rough, np.float64), is_ground


def _residual(points: Array) -> float:
    """Standard deviation of the heights around the plane through points."""
    plane = np.column_stack([points[:, :2] - points[:, :2].mean(0), np.ones(len(points))])
    solution = np.linalg.lstsq(plane, points[:, 2], rcond=None)[0]
    return float(np.std(points[:, 2] - plane @ solution))


def ring_of_points(points: Array) -> Array:
    """The ring of each point, the highest first, from the order in which scans of 64 lasers are written.

    A file has one turn after the other, each from where the first one begins, so that the azimuth jumps back there.

    Args:
        points: [N, 3 or more], as in the file.

    Returns:
        int64 [N], in [0, 64), or empty where the order tells nothing.
    """
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    for origin in (0.0, float(azimuth[0]) if len(azimuth) else 0.0):
        for way in (1, -1):  # turning to the left, or to the right
            since = np.mod(way * (azimuth - origin) + START, 2 * np.pi)
            ring = np.cumsum(np.diff(since, prepend=since[:1]) < -np.pi)
            if len(ring) and ring[-1] == RINGS - 1:
                return np.asarray(ring)
    return np.zeros(0, np.int64)


def _returns(rings: Array) -> Array:
    """Points of each ring, as a share of those of the fullest one."""
    if not len(rings):
        return np.zeros(0)
    counts = np.bincount(rings, minlength=RINGS)
    return np.asarray(counts / counts.max())


def _elevations(points: Array, rings: Array) -> Array:
    """Median elevation of each ring in degrees, empty where the rings are not known."""
    if not len(rings):
        return np.zeros(0)
    angle = np.rad2deg(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    order = np.argsort(rings, kind="stable")
    starts = np.searchsorted(rings[order], np.arange(RINGS))
    return np.array([np.median(part) if len(part) else np.nan for part in np.split(angle[order], starts[1:])])
