"""Key frames of nuScenes out of its tables: files, sweeps, and boxes in the lidar's frame, whose y points forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdet_ext.data.nuscenes.poses import Pose, inverse
from pcdet_ext.evaluation.nuscenes_columns import NONE, UNKNOWN, Table
from pcdet_ext.evaluation.nuscenes_tables import Tables
from pcdet_ext.evaluation.nuscenes_truth import (
    DETECTION_CLASSES,
    SECONDS,
    check_categories,
    rotations,
    samples_of_annotations,
    sizes,
    velocities,
)
from pcdet_ext.evaluation.quaternions import rotation_matrices
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

FARTHEST_APART = 1.0  # seconds between a sample and the scan of its key frame, which officially are of one time
IGNORED = "ignore"  # class of the categories that the benchmark does not measure


@dataclass(frozen=True, eq=False)
class Sweep:
    """A scan that is joined to a key frame.

    file: below the data folder; token: of its sample_data; lag: seconds that it is older; transform: float64 [4, 4] to
    the lidar of the key frame, None for the key frame itself; points: how many the file must have, None where that is
    not known.
    """

    file: str
    token: str
    lag: float = 0.0
    transform: Array | None = None
    points: int | None = None

    def to_json(self) -> list[Any]:
        """In plain types, for the index."""
        rows = None if self.transform is None else self.transform[:3].ravel().tolist()
        return [self.file, self.token, self.lag, rows, self.points]

    @staticmethod
    def from_json(values: Sequence[Any]) -> Sweep:
        """What `to_json` gave."""
        file, token, lag, rows, points = values
        transform = None if rows is None else np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]])
        return Sweep(file, token, lag, transform, points)


@dataclass(frozen=True, eq=False)
class Objects:
    """Labelled objects of a key frame, one entry each.

    boxes: float64 [M, 9] in the frame of the lidar, the last two NaN where the velocity is not known; rise: float64
    [M], the third part of the velocity; names: detection classes, or "ignore"; tokens: of the annotations;
    lidar_points, radar_points: int64 [M], those inside; instances: int64 [M], the same for one object in all frames.
    """

    boxes: Array
    rise: Array
    names: tuple[str, ...]
    tokens: tuple[str, ...]
    lidar_points: Array
    radar_points: Array
    instances: Array


@dataclass(frozen=True, eq=False)
class Frame:
    """A key frame.

    token: of its sample; scene: by name; timestamp: seconds; file, lidar_token: of its scan; sensor: place of the lidar
    on the vehicle; ego: place of the vehicle in the world; sweeps: older scans, the newest first, as many as there are;
    objects: None where the release has no annotations; problem: why it cannot be used, "" where it can.
    """

    token: str
    scene: str
    timestamp: float
    file: str = ""
    lidar_token: str = ""
    sensor: Pose = field(default_factory=lambda: Pose.of([0, 0, 0, 1, 0, 0, 0]))
    ego: Pose = field(default_factory=lambda: Pose.of([0, 0, 0, 1, 0, 0, 0]))
    sweeps: tuple[Sweep, ...] = ()
    objects: Objects | None = None
    problem: str = ""

    @property
    def pose(self) -> Array:
        """float64 [4, 4]: from the lidar to the world."""
        return self.ego.matrix @ self.sensor.matrix

    def padded(self, count: int) -> list[Sweep]:
        """So many sweeps; see `padded`."""
        return padded(Sweep(self.file, self.lidar_token), self.sweeps, count)


def padded(key: Sweep, sweeps: Sequence[Sweep], count: int) -> list[Sweep]:
    """A fixed number of sweeps, the newest first.

    Args:
        key: the key frame's own.
        sweeps: those before it, the newest first.
        count: how many are wanted. Where there are fewer, the oldest comes again and again, or without any the key
            frame.
    """
    fill = sweeps[-1] if sweeps else key
    return [*sweeps[:count], *[fill] * (count - len(sweeps))]


class Frames(Sequence[Frame]):
    """Key frames of a release, in the order of its table of samples; each is made when it is asked for.

    Args:
        tables: of the release.
        rows: which samples, by their rows.
        max_sweeps: scans in all, the key frame's own among them.
    """

    def __init__(self, tables: Tables, rows: Sequence[int], max_sweeps: int = 10) -> None:
        self._tables, self._rows, self._max_sweeps = tables, list(rows), max_sweeps
        self._scans = _Scans(tables)
        self._annotations = _Annotations(tables) if len(tables.annotation) else None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Frame]:
        return (self._frame(row) for row in self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._frame(row) for row in self._rows[index]]
        return self._frame(self._rows[index])

    def _frame(self, row: int) -> Frame:
        tables = self._tables
        token, scene = tables.sample.tokens[row], tables.scene_names[row]
        key = int(tables.key_frame[row])
        try:
            self._check_time(row, key)
            return Frame(
                token=token,
                scene=scene,
                timestamp=self._scans.times[key],
                file=self._scans.files[key],
                lidar_token=tables.lidar.tokens[key],
                sensor=self._scans.sensor(key),
                ego=self._scans.ego(key),
                sweeps=tuple(self._scans.sweeps(key, self._max_sweeps - 1)),
                objects=None if self._annotations is None else self._annotations.objects(row, self._scans.pose(key)),
            )
        except DataError as error:
            return Frame(token, scene, float(self._scans.times[key]), problem=f"sample {token}: {error}")

    def _check_time(self, row: int, key: int) -> None:
        (own,) = SECONDS * self._tables.sample.whole("timestamp", np.array([row]))
        if abs(own - self._scans.times[key]) > FARTHEST_APART:
            raise DataError(
                f"{self._tables.sample.path}: its timestamp is {own:.3f} s, and that of its key frame "
                f"{self._scans.times[key]:.3f} s ({self._tables.lidar.path.name})"
            )


class _Scans:
    """The files of the lidar, and where the sensor was."""

    def __init__(self, tables: Tables) -> None:
        self._table, self._ego, self._calibration = tables.lidar, tables.ego_pose, tables.calibration
        self.files = tables.lidar.texts["filename"]
        self.times = (SECONDS * tables.lidar.whole("timestamp")).tolist()
        self._before = tables.lidar.find(tables.lidar.texts["prev"])
        self._ego_rows = tables.ego_pose.rows(tables.lidar, "ego_pose_token")
        self._sensor_rows = tables.calibration.rows(tables.lidar, "calibrated_sensor_token")

    def ego(self, row: int) -> Pose:
        return _pose(self._ego, self._ego_rows[row])

    def sensor(self, row: int) -> Pose:
        return _pose(self._calibration, self._sensor_rows[row])

    def pose(self, row: int) -> Array:
        """From the lidar to the world."""
        return self.ego(row).matrix @ self.sensor(row).matrix

    def sweeps(self, key: int, count: int) -> Iterator[Sweep]:
        """Up to so many scans before a key frame, the newest first. A lost one is not noticed: the step is longer.

        Each must be older than the one after it, so that no chain runs in a circle.
        """
        from_world = inverse(self.sensor(key).matrix) @ inverse(self.ego(key).matrix)
        row = key
        for _ in range(count):
            before = int(self._before[row])
            if before == NONE:
                return
            table = self._table
            if before == UNKNOWN or self.times[before] >= self.times[row]:
                what = "is not there" if before == UNKNOWN else "is not older"
                raise DataError(f"{table.path}: {table.tokens[row]}: prev {table.texts['prev'][row]!r} {what}")
            row = before
            lag = self.times[key] - self.times[row]
            yield Sweep(self.files[row], self._table.tokens[row], lag, from_world @ self.pose(row))


def _pose(table: Table, row: int) -> Pose:
    rows = np.array([row])
    return Pose(table.check_finite("translation", rows)[0], rotations(table, rows)[0])


class _Annotations:
    """The labelled objects of each sample."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        check_categories(tables.category.path, tables.known_categories)
        samples = samples_of_annotations(tables)
        self._order = np.argsort(samples, kind="stable")
        self._starts = np.searchsorted(samples[self._order], np.arange(len(tables.sample) + 1))

    def objects(self, sample: int, pose: Array) -> Objects:
        """Those of a sample in which the lidar or a radar has a point, in the order of their table."""
        rows = self._order[self._starts[sample] : self._starts[sample + 1]]
        table = self._tables.annotation
        points = {kind: table.counts(f"num_{kind}_pts", rows) for kind in ("lidar", "radar")}
        seen = points["lidar"] + points["radar"] > 0
        rows = rows[seen]
        boxes = local_boxes(table.check_finite("translation", rows), sizes(table, rows), rotations(table, rows), pose)
        velocity = velocities(self._tables, rows) @ pose[:3, :3]  # the inverse rotation, applied to rows
        return Objects(
            boxes=np.column_stack([boxes, velocity[:, :2]]),
            rise=velocity[:, 2],
            names=tuple(DETECTION_CLASSES.get(name, IGNORED) for name in self._tables.categories(rows)),
            tokens=tuple(table.tokens[i] for i in rows.tolist()),
            lidar_points=points["lidar"][seen],
            radar_points=points["radar"][seen],
            instances=self._tables.instance.rows(table, "instance_token", rows),
        )


def local_boxes(translation: Array, size: Array, rotation: Array, pose: Array) -> Array:
    """Boxes float64 [N, 7] in a sensor's frame, of boxes in the world.

    Args:
        translation, size, rotation: [N, 3] centre, [N, 3] width, length and height, [N, 4] quaternion. Of the rotation
            only the heading is kept.
        pose: [4, 4] from the sensor to the world.
    """
    back = pose[:3, :3].T
    center = (translation - pose[:3, 3]) @ back.T
    turned = back @ rotation_matrices(rotation)
    heading = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
    return np.column_stack([center, size[:, [1, 0, 2]], heading])
