"""Augmentation of training samples: each one a deterministic core that takes the drawn numbers, and a random shell.

A shell is called with a sample and a `numpy.random.Generator` and returns a new sample; it keeps no state, so the same
generator gives the same sample in any process. What moves the scene moves its pose along, and drops the calibration,
which no longer fits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.config import ConfigError, Registry, suggest
from pcdet_ext.data.geometry import inside_boxes, overlap_from_above, turned, wrap_angle
from pcdet_ext.data.objects import Objects, read_objects
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Sample, Targets, rows_of

AUGMENTATIONS = Registry("augmentation")
TIME_COLUMNS = ("timestamp", "frame")  # columns that say how old a point is: in seconds, or in frames
TIME_TOLERANCE = 1e-6  # seconds, by which ages may miss a time range

_log = logging.getLogger(__name__)


def flip(sample: Sample, axis: str) -> Sample:
    """Mirror the scene: along "x" y changes its sign, along "y" x does; headings and velocities follow."""
    if axis not in ("x", "y"):
        raise ValueError(f"axis must be 'x' or 'y', got {axis!r}")
    mirrored = 1 if axis == "x" else 0
    points, boxes = _copies(sample)
    points[:, mirrored] *= -1
    if boxes is not None:
        boxes[:, mirrored] *= -1
        boxes[:, 6] = -boxes[:, 6] if axis == "x" else -(boxes[:, 6] + np.pi)
        boxes[:, 7 + mirrored : 8 + mirrored] *= -1
    return _moved(sample, points, boxes, np.diag([1.0, -1.0, 1.0] if axis == "x" else [-1.0, 1.0, 1.0]))


def rotate(sample: Sample, angle: float) -> Sample:
    """Turn the scene about the z axis by `angle` radians, counter-clockwise."""
    points, boxes = _copies(sample)
    points[:, :2] = turned(points[:, :2], angle)
    if boxes is not None:
        boxes[:, :2] = turned(boxes[:, :2], angle)
        boxes[:, 6] += angle
        if boxes.shape[1] == 9:
            boxes[:, 7:] = turned(boxes[:, 7:], angle)
    return _moved(sample, points, boxes, np.vstack([turned(np.eye(3)[:, :2], angle).T, [0.0, 0.0, 1.0]]))


def scale(sample: Sample, factor: float) -> Sample:
    """Multiply positions, sizes and velocities by `factor`."""
    points, boxes = _copies(sample)
    points[:, :3] *= factor
    if boxes is not None:
        boxes[:, :6] *= factor
        boxes[:, 7:] *= factor
    return _moved(sample, points, boxes, factor * np.eye(3))


def translate(sample: Sample, offset: Sequence[float] | Array) -> Sample:
    """Move the scene by `offset` (x, y, z) metres."""
    points, boxes = _copies(sample)
    points[:, :3] += np.asarray(offset, np.float32)
    if boxes is not None:
        boxes[:, :3] += np.asarray(offset, np.float32)
    return _moved(sample, points, boxes, np.eye(3), offset)


def keep_classes(sample: Sample, classes: Sequence[str]) -> Sample:
    """Drop the boxes of other classes; labels become positions in `classes`."""
    return sample if sample.targets is None else sample.replace(targets=sample.targets.of_classes(classes))


def wrap_headings(sample: Sample) -> Sample:
    """Bring the headings of the boxes into [-π, π)."""
    _, boxes = _copies(sample)
    if boxes is None:
        return sample
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    return sample.replace(targets=None if sample.targets is None else sample.targets.replace(boxes=boxes))


@AUGMENTATIONS.register
class RandomFlip:
    """Mirror along each of `axes` ("x", "y") with a probability."""

    def __init__(self, axes: Sequence[str] = ("x",), probability: float = 0.5) -> None:
        for axis in axes:
            if axis not in ("x", "y"):
                raise ValueError(f"axes must hold 'x' and 'y' only, got {axis!r}")
        self.axes, self.probability = tuple(axes), _share("probability", probability)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for axis in self.axes:
            if rng.random() < self.probability:
                sample = flip(sample, axis)
        return sample


@AUGMENTATIONS.register
class RandomRotation:
    """Turn by an angle drawn uniformly from `angle_range` radians."""

    def __init__(self, angle_range: Sequence[float] = (-np.pi / 4, np.pi / 4)) -> None:
        self.low, self.high = _interval("angle_range", angle_range)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return rotate(sample, rng.uniform(self.low, self.high))


@AUGMENTATIONS.register
class RandomScaling:
    """Scale by a factor drawn uniformly from `scale_range`."""

    def __init__(self, scale_range: Sequence[float] = (0.95, 1.05)) -> None:
        self.low, self.high = _interval("scale_range", scale_range)
        if self.low <= 0:
            raise ValueError(f"scale_range must be positive, got {list(scale_range)}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return scale(sample, rng.uniform(self.low, self.high))


@AUGMENTATIONS.register
class RandomTranslation:
    """Move by an offset drawn from a normal distribution with deviation `std` metres on x, y, z."""

    def __init__(self, std: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        if len(std) != 3 or not all(0 <= deviation < np.inf for deviation in std):
            raise ValueError(f"std must be three deviations, finite and at least 0, got {list(std)}")
        self.std = tuple(std)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return translate(sample, rng.normal(0.0, self.std))


@AUGMENTATIONS.register
class PointShuffle:
    """Put the points in a random order."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample.select_points(rng.permutation(len(sample.points)))


@AUGMENTATIONS.register
class GroundTruthSampling:
    """Paste labelled objects of other frames into the scene where they collide with nothing (SECOND, Yan et al. 2018).

    Args:
        groups: how many objects of each class to draw, class after class in this order.
        database: folder of a prepared database, or objects by class.
        classes: of the data; groups of other classes are left out.
        min_points: objects with fewer points are not drawn; one number, or one per class.
        skip_difficulty: objects of these levels are not drawn.
        limit_whole_scene: the numbers in `groups` count the objects that the scene already has.
        extra_width: metres (x, y, z) added to a pasted box where scene points are removed.
        margin: metres between boxes that still count as collision, and around a pasted box whose points are removed
            (0.01 is what OpenPCDet's CPU functions amount to).
        time_range: of the points of pasted objects those of this age alone, minimum and maximum in seconds in any
            order; None for all, or where the scene has no column for the time and the database has one, those of
            the frame itself.
        layout: of the data that a database on disk must be of, as "kitti"; any where it is empty.

    Raises:
        ValueError: a number is outside its range, or `time_range` is given and the database has no column for the time.
        ConfigError: a group is of no class of the data.
        DataError: the database is missing, damaged or of another layout.

    Attributes:
        notes: in words, how many objects of each class can be drawn, and why the others cannot.
    """

    def __init__(
        self,
        groups: Mapping[str, int],
        database: str | Path | Mapping[str, Objects],
        classes: Sequence[str] = (),
        min_points: int | Mapping[str, int] = 5,
        skip_difficulty: Sequence[int] = (-1,),
        limit_whole_scene: bool = False,
        extra_width: Sequence[float] = (0.0, 0.0, 0.0),
        margin: float = 0.0,
        time_range: Sequence[float] | None = None,
        layout: str = "",
    ) -> None:
        if len(extra_width) != 3 or not np.isfinite([*extra_width, margin]).all():
            raise ValueError(f"extra_width must be three finite lengths and margin one, got {extra_width} and {margin}")
        for name, number in groups.items():
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"groups: {name!r} must be a whole number of at least 0, got {number}")
        objects = database if isinstance(database, Mapping) else read_objects(Path(database), layout)
        self.groups = _usable_groups(groups, objects, classes)
        self.objects = {name: objects[name] for name in self.groups}
        self.limit_whole_scene = limit_whole_scene
        self.extra_width = np.asarray(extra_width, np.float32)
        self.margin = margin
        self.time_range = None if time_range is None else _interval("time_range", sorted(time_range))
        if self.time_range is not None:
            _require_time(self.objects)
        least = min_points if isinstance(min_points, Mapping) else dict.fromkeys(self.groups, min_points)
        self.pools, self.notes = {}, []
        for name, found in self.objects.items():
            self.pools[name], note = _pool(name, found, least.get(name, 0), skip_difficulty)
            self.notes.append(note)
            if not len(self.pools[name]):
                _log.warning("%s", note)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        drawn = {name: rng.permutation(self.pools[name])[:wanted] for name, wanted in self.wanted(sample).items()}
        return self.paste(sample, drawn)

    def wanted(self, sample: Sample) -> dict[str, int]:
        """How many objects of each class are to be drawn for a sample."""
        present = sample.targets.names if self.limit_whole_scene and sample.targets is not None else ()
        return {name: max(number - present.count(name), 0) for name, number in self.groups.items()}

    def paste(self, sample: Sample, drawn: Mapping[str, Array]) -> Sample:
        """Put objects (positions in the database, by class) into the sample, class by class.

        An object stays out when it collides with a box of the scene, with one accepted for an earlier class, or with
        another one drawn for its class. Its points go in front of the scene's points; those inside its box are removed.
        Points of objects have the label -1 and the instance 0 (none), and objects the track -1, where the scene has
        these columns.
        Columns of points are taken by name, and velocities of boxes left out where the scene has none. Raises DataError
        when the database lacks a column that the sample has.
        """
        targets = self._present(sample)
        clouds = []
        before = len(targets)
        for name, index in drawn.items():
            candidates = self.objects[name]
            present = np.asarray(targets.boxes)
            free = index[self._free(candidates.boxes[index], present)]
            clouds += [self._placed(candidates, i, sample.point_features) for i in free]
            added = candidates.select(name, free)
            targets = _joined(targets, added.replace(boxes=np.asarray(added.boxes)[:, : present.shape[1]]))
        pasted = np.array(targets.boxes)[before:]
        pasted[:, 3:6] += self.extra_width
        kept = np.logical_not(inside_boxes(sample.points, pasted, self.margin).any(axis=0))
        pasted_points, columns = sum(map(len, clouds)), {}
        for name, none in {"point_labels": -1, "point_instances": 0}.items():
            if (own := getattr(targets, name)) is not None:
                columns[name] = np.concatenate([np.full(pasted_points, none, own.dtype), np.asarray(own)[kept]])
        points = np.concatenate([*clouds, rows_of(sample.points, kept)])
        return sample.replace(points=points, targets=targets.replace(**columns), point_rows=None)

    def _present(self, sample: Sample) -> Targets:
        """What a sample has labelled, if only an empty table of boxes with the columns of the database."""
        found = next(iter(self.objects.values()), None)
        targets = sample.targets if sample.targets is not None else Targets()
        if targets.occupancy is not None:
            raise ValueError(
                "GroundTruthSampling pastes objects that the occupancy does not show: leave one of them out"
            )
        if targets.boxes is None:
            columns = 7 if found is None else found.boxes.shape[1]
            none = Targets.of_names(np.zeros((0, columns), np.float32), ())
            targets = targets.replace(boxes=none.boxes, labels=none.labels, class_names=())
        if found is None:
            return targets
        ours, theirs = np.asarray(targets.boxes).shape[1], found.boxes.shape[1]
        if theirs < ours:
            raise DataError(f"the object database has boxes of {theirs} columns, the frames of {ours}; prepare anew")
        lacking = [name for name in sample.point_features if name not in found.point_features]
        if lacking:
            has = ", ".join(found.point_features)
            raise DataError(f"the object database has no {lacking[0]} of points, only {has}; prepare anew")
        return targets

    def _placed(self, objects: Objects, index: int, features: Sequence[str]) -> Array:
        """The points of an object where its box is, with columns `features`."""
        points = objects.points_of(index)
        time = _time_column(objects)
        if time is not None:
            age = points[:, objects.point_features.index(time)]
            if self.time_range is not None:
                low, high = self.time_range
                points = points[(age > low - TIME_TOLERANCE) & (age < high + TIME_TOLERANCE)]
            elif not set(TIME_COLUMNS) & set(features):
                points = points[np.abs(age) < TIME_TOLERANCE]
        placed = points[:, [objects.point_features.index(name) for name in features]]
        placed[:, :3] += objects.boxes[index, :3]
        return placed

    def _free(self, candidates: Array, present: Array) -> Array:
        mutual = overlap_from_above(candidates, candidates, self.margin)
        np.fill_diagonal(mutual, False)
        return np.logical_not(overlap_from_above(candidates, present, self.margin).any(axis=1) | mutual.any(axis=1))


def _time_column(objects: Objects) -> str | None:
    """The column that says how old a point is, if there is one."""
    return next((name for name in TIME_COLUMNS if name in objects.point_features), None)


def _require_time(objects: Mapping[str, Objects]) -> None:
    """Raises ValueError for objects whose points have no time."""
    for name, found in objects.items():
        if _time_column(found) is None:
            has = ", ".join(found.point_features)
            raise ValueError(
                f"time_range needs points with a time, the database has only {has} of {name}; prepare the folder "
                "so that objects have points of past scans too (an option of pcdet prepare)"
            )


def _usable_groups(groups: Mapping[str, int], objects: Mapping[str, Objects], classes: Sequence[str]) -> dict[str, int]:
    """The groups of configured classes that the database has objects of."""
    usable = {}
    for name, number in groups.items():
        if name in objects and (name in classes or not classes):
            usable[name] = int(number)
        elif name in classes:
            _log.warning("ground-truth sampling: the database has no %s", name)
        elif name not in objects:
            raise ConfigError(f"groups: {name!r} is no class of the data{suggest(name, {*classes, *objects})}")
    return usable


def _pool(name: str, objects: Objects, min_points: int, skip_difficulty: Sequence[int]) -> tuple[Array, str]:
    """Positions of the objects that may be drawn; and in words how many those are, and why the others may not."""
    few = np.diff(objects.offsets) < min_points
    hard = np.isin(objects.difficulty, list(skip_difficulty))
    pool = np.flatnonzero(~few & ~hard)
    reasons = [f"{few.sum()} have fewer than {min_points} points"] if few.any() else []
    reasons += [f"{hard.sum()} are of a difficulty in skip_difficulty {list(skip_difficulty)}"] if hard.any() else []
    return pool, "; ".join([f"ground-truth sampling: {len(pool)} of {len(objects)} {name} can be drawn", *reasons])


def _joined(first: Targets, second: Targets) -> Targets:
    """Boxes of both, with what else is known of the first's frame; a column that only one of them has is dropped."""

    def column(name: str) -> Array | None:
        columns = [getattr(first, name), getattr(second, name)]
        return None if any(c is None for c in columns) else np.concatenate(columns)

    tracks = None if first.track_ids is None else np.asarray(first.track_ids)
    return Targets.of_names(
        np.concatenate([np.asarray(first.boxes), np.asarray(second.boxes)]),
        first.names + second.names,
        difficulty=column("difficulty"),
        num_points=column("num_points"),
        track_ids=None if tracks is None else np.concatenate([tracks, np.full(len(second), -1, tracks.dtype)]),
        point_labels=first.point_labels,
        point_instances=first.point_instances,
        maps=first.maps,
    )


def _copies(sample: Sample) -> tuple[Array, Array | None]:
    boxes = None if sample.targets is None else sample.targets.boxes
    return sample.points.copy(), None if boxes is None else np.array(boxes)


def _moved(
    sample: Sample, points: Array, boxes: Array | None, turn: Array, offset: Sequence[float] | Array = (0.0, 0.0, 0.0)
) -> Sample:
    """The sample with moved points and boxes; turn [3, 3] and offset [3]: how, for what is drawn from maps later."""
    targets = sample.targets
    if targets is not None and targets.maps:
        raise ValueError(f"a scene with dense maps ({', '.join(targets.maps)}) cannot be moved: the maps would not fit")
    if targets is not None and boxes is not None:
        targets = targets.replace(boxes=boxes)
    step = np.eye(4)  # not always rigid: scaling is a step, too
    step[:3, :3], step[:3, 3] = turn, offset
    augmented = step if sample.augmented is None else step @ sample.augmented
    pose = None if sample.pose is None else np.asarray(sample.pose) @ np.linalg.inv(step)
    return sample.replace(points=points, targets=targets, calibration=None, pose=pose, augmented=augmented)


def _interval(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not -np.inf < values[0] <= values[1] < np.inf:
        raise ValueError(f"{name} must be a minimum and a maximum, both finite, got {list(values)}")
    return float(values[0]), float(values[1])


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value
