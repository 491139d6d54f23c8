"""The Waymo Open Dataset's second layout: Parquet components, one file for each segment.

    <root>/{training,validation,testing}/{lidar,lidar_pose,lidar_calibration,lidar_box,vehicle_pose}/<segment>.parquet

Points are made from the range images of all lasers and both returns. A file is read a frame at a time: forward through
its row groups, a row after the other, so that a segment never has to be in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.text import read_lines
from pcdet_ext.data.waymo.frames import (
    FARTHEST,
    LARGEST_POSITION,
    TYPES,
    Frame,
    Labels,
    check_pose,
    checked_labels,
    numbered,
    vehicle_velocity,
    whole_numbers,
)
from pcdet_ext.data.waymo.range_images import CHANNELS, POSE_CHANNELS, Laser, image_points
from pcdet_ext.data.waymo.row_files import KEYS, LASER, OBJECT, TIME, Kind, RowFile, read_columns
from pcdet_ext.evaluation.waymo_boxes import BOX, COLUMNS, OPTIONAL
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
LASERS = (1, 2, 3, 4, 5)  # TOP, FRONT, SIDE_LEFT, SIDE_RIGHT, REAR
# Without them a frame cannot be read; lidar_box may be missing in testing/.
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
BOX_COLUMNS = tuple(COLUMNS[name][0] for name in BOX)
TYPE = COLUMNS["type"][0]
DIFFICULTY, POINTS, *SPEED = (OPTIONAL[name][0] for name in ("difficulty", "num_points", "speed_x", "speed_y"))
KEPT_SEGMENTS = 16  # files of so many segments stay open in a process


class ParquetLayout:
    """A folder with the Parquet components (see `Layout`)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether a folder has this layout."""
        return any((root / folder / "lidar").is_dir() for folder in FOLDERS.values())

    def find(self, split: str, damaged: list[DataError] | None = None) -> list[Frame]:
        """The frames of a split, by segment and time; see `Layout`.

        A split is a list of segments in ImageSets/<split>.txt where there is one, else a folder: "train", "val" and
        "test" mean training, validation and testing.
        """
        frames: list[Frame] = []
        for folder, name in self._segments(split):
            try:
                frames += self._frames(folder, name)
            except DataError as error:
                if damaged is None:
                    raise
                damaged.append(error)
        if not frames and not damaged:
            raise DataError(f"{self.root}: split {split!r} has no frames")
        return [Frame(f.sequence, f.number, f.context, f.timestamp_micros, f.folder, i) for i, f in enumerate(frames)]

    def file(self, frame: Frame) -> Path:
        """See `Layout`."""
        return self._segment(frame).path("lidar")

    def points(self, frame: Frame) -> Array:
        """All points of a frame: laser by laser, all first returns before the second ones; see `Layout`."""
        return self._segment(frame).points(frame.timestamp_micros)

    def pose(self, frame: Frame) -> Array:
        """See `Layout`."""
        return self._segment(frame).pose(frame.timestamp_micros)

    def labels(self, frame: Frame) -> Labels | None:
        """See `Layout`; frames of testing/ have none."""
        return None if frame.folder == FOLDERS["test"] else self._segment(frame).labels(frame.timestamp_micros)

    def track_numbers(self, frame: Frame) -> Mapping[str, int]:
        """See `Layout`."""
        return self._segment(frame).track_numbers

    def _segment(self, frame: Frame) -> Segment:
        return open_segment(self.root / frame.folder, frame.sequence)

    def _frames(self, folder: str, name: str) -> list[Frame]:
        times = open_segment(self.root / folder, name).lidar.times()
        return [Frame(name, number, name, int(time), folder) for number, time in enumerate(times)]

    def _segments(self, split: str) -> list[tuple[str, str]]:
        """Folder and name of each segment of a split."""
        listed = self.root / "ImageSets" / f"{split}.txt"
        if listed.is_file():
            names = [line.strip() for line in read_lines(listed) if line.strip()]
            return [(self._folder_of(context_name(name), listed), context_name(name)) for name in names]
        folder = FOLDERS.get(split, split)
        if folder not in FOLDERS.values():
            raise DataError(f"{self.root}: no split {split!r}{suggest(split, FOLDERS)}; {listed} could list one")
        if not (self.root / folder / "lidar").is_dir():
            raise MissingFileError(f"{self.root / folder / 'lidar'}: no such folder, so there is no split {split!r}")
        return [(folder, name) for name in self._names(folder)]

    def _names(self, folder: str) -> list[str]:
        """The segments of which any component is there: those without lidar are missing, and not to be passed over."""
        return sorted({path.stem for name in COMPONENTS for path in (self.root / folder / name).glob("*.parquet")})

    def _folder_of(self, name: str, listed: Path) -> str:
        if Path(name).name == name:
            for folder in FOLDERS.values():
                if any((self.root / folder / component / f"{name}.parquet").is_file() for component in COMPONENTS):
                    return folder
        raise MissingFileError(f"{listed}: segment {name!r} is in none of {', '.join(FOLDERS.values())}")


def context_name(sequence: str) -> str:
    """The segment's own name in the file name of a recording, `segment-<name>_with_camera_labels.tfrecord`."""
    name = sequence.removesuffix(".tfrecord").removesuffix(".parquet").removesuffix("_with_camera_labels")
    return name.rpartition("segment-")[2]


@lru_cache(maxsize=KEPT_SEGMENTS)
def open_segment(folder: Path, name: str) -> Segment:
    """A segment of training/, validation/ or testing/, kept open for the frames that are read next."""
    return Segment(folder, name)


class Segment:
    """The components of one segment, each opened when it is needed; frames are known by their timestamp."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def path(self, component: str) -> Path:
        """The file of a component."""
        return self.folder / component / f"{self.name}.parquet"

    @cached_property
    def lidar(self) -> RowFile:
        """The range images of all lasers."""
        return RowFile(self.path("lidar"), (TIME, LASER))

    @cached_property
    def lasers(self) -> dict[int, Laser]:
        """How each laser is mounted."""
        path = self.path("lidar_calibration")
        prefix = "[LiDARCalibrationComponent]."
        kinds: dict[str, Kind] = {
            "extrinsic.transform": "lists of numbers",
            "beam_inclination.min": "numbers",
            "beam_inclination.max": "numbers",
            "beam_inclination.values": "lists of numbers",
        }
        rows = read_columns(path, {LASER: KEYS[LASER], **{prefix + n: kind for n, kind in kinds.items()}}).to_pylist()
        found = {row[LASER]: _laser(path, row[LASER], *(row[prefix + name] for name in kinds)) for row in rows}
        if len(found) < len(rows):
            raise DataError(f"{path}: a laser has several calibrations, of {[row[LASER] for row in rows]}")
        return found

    @cached_property
    def _poses(self) -> dict[int, list[Any]]:
        """What the rows of each frame say."""
        column = "[VehiclePoseComponent].world_from_vehicle.transform"
        table = read_columns(self.path("vehicle_pose"), {TIME: KEYS[TIME], column: "lists of numbers"})
        poses: dict[int, list[Any]] = {}
        for time, values in zip(table[TIME].to_pylist(), table[column].to_pylist(), strict=True):
            poses.setdefault(time, []).append(values)
        return poses

    @cached_property
    def _pixel_poses(self) -> RowFile:
        return RowFile(self.path("lidar_pose"), (TIME, LASER))

    @cached_property
    def _boxes(self) -> dict[str, Array]:
        """Columns of lidar_box, which has no row in a segment without objects."""
        path = self.path("lidar_box")
        columns: dict[str, Kind] = {TIME: KEYS[TIME], OBJECT: KEYS[OBJECT], **dict.fromkeys(BOX_COLUMNS, "numbers")}
        columns |= {TYPE: "numbers", DIFFICULTY: "numbers", POINTS: "numbers", **dict.fromkeys(SPEED, "numbers")}
        table = read_columns(path, columns, may_be_empty=True)
        found = {name: column.to_numpy(zero_copy_only=False) for name, column in zip(columns, table, strict=True)}
        unknown = np.setdiff1d(found[TIME], self.lidar.keys[TIME])
        if len(unknown):
            raise DataError(f"{path}: frame {unknown[0]} is not in {self.lidar.path}")
        return found

    @cached_property
    def track_numbers(self) -> dict[str, int]:
        """A number for each object id."""
        return numbered(self._boxes[OBJECT].tolist())

    def pose(self, time: int) -> Array:
        """float64 [4, 4], vehicle to world."""
        path = self.path("vehicle_pose")
        found = self._poses.get(time, [])
        if len(found) != 1:
            raise DataError(f"{path}: {'no pose' if not found else f'{len(found)} poses'} of frame {time}")
        return _matrix(found[0], f"{path}: pose of frame {time}")

    def rows_of_objects(self, time: int) -> Array:
        """int64 [M]: rows of lidar_box with the objects of known type of a frame, in the order of `labels`."""
        return np.flatnonzero((self._boxes[TIME] == time) & (self._boxes[TYPE] != 0))

    def labels(self, time: int) -> Labels:
        """The objects of known type of a frame."""
        rows = self.rows_of_objects(time)
        columns = {name: column[rows] for name, column in self._boxes.items()}
        where = f"{self.path('lidar_box')}: frame {time}"
        types = columns[TYPE]
        if not np.isin(types, np.arange(len(TYPES))).all():
            unknown = sorted(set(types.tolist()))
            raise DataError(f"{where}: types of objects must be from 0 to {len(TYPES) - 1}, got {unknown}")
        boxes = np.stack([columns[name] for name in BOX_COLUMNS], axis=1).astype(np.float64)
        speed = np.stack([columns[name] for name in SPEED], axis=1)
        labels = Labels(
            tuple(TYPES[int(i)] for i in types),
            np.concatenate([boxes, vehicle_velocity(speed, self.pose(time))], axis=1),
            whole_numbers(np.nan_to_num(columns[DIFFICULTY]), f"{where}: difficulty of an object"),  # null: not said
            whole_numbers(columns[POINTS], f"{where}: num_lidar_points_in_box of an object"),
            tuple(columns[OBJECT].tolist()),
        )
        return checked_labels(labels, where)

    def points(self, time: int) -> Array:
        """Points float32 [N, 6] of a frame; see `pcdet_ext.data.waymo.frames.STORED_FEATURES`."""
        return np.concatenate([points for _, _, points in self.returns(time)])

    def returns(self, time: int) -> Iterator[tuple[int, int, Array]]:
        """Laser, return (1 or 2) and points float32 [N, 6] of each range image of a frame, laser by laser."""
        images = [f"[LiDARComponent].range_image_return{i}" for i in (1, 2)]
        rows = self.lidar.read(time, {name: kind for image in images for name, kind in _image_columns(image).items()})
        found = [row[LASER] for row in rows]
        where = f"{self.lidar.path}: frame {time}"
        if len(set(found)) < len(found) or not set(found) <= set(LASERS):
            raise DataError(f"{where}: lasers must be different ones of {list(LASERS)}, got {found}")
        pixel_poses = self._frame_pixel_poses(time)
        for row in sorted(rows, key=lambda row: row[LASER]):
            laser = row[LASER]
            if laser not in self.lasers:
                raise DataError(f"{self.path('lidar_calibration')}: no calibration of laser {laser}")
            for i, image in enumerate(images, 1):
                values = _image(row, image, CHANNELS, f"{where}, laser {laser}, return {i}", optional=i > 1)
                if values is None:
                    continue
                if not (values[..., 0] <= FARTHEST).all():
                    raise DataError(f"{where}, laser {laser}, return {i}: ranges must be at most {FARTHEST:.0f} m")
                yield laser, i, self._image_points(values, laser, pixel_poses, time, where)

    def _image_points(self, image: Array, laser: int, poses: Mapping[int, Array], time: int, where: str) -> Array:
        pose = self.pose(time) if laser in poses else None
        try:
            return image_points(image, self.lasers[laser], poses.get(laser), pose)
        except ValueError as error:
            raise DataError(f"{where}, laser {laser}: {error}") from error

    def _frame_pixel_poses(self, time: int) -> dict[int, Array]:
        """[H, W, 6] of each laser that turns while the vehicle moves on: of the top one."""
        image = "[LiDARPoseComponent].range_image_return1"
        rows = self._pixel_poses.read(time, _image_columns(image))
        poses: dict[int, Array] = {}
        for row in rows:
            where = f"{self._pixel_poses.path}: frame {time}, laser {row[LASER]}"
            values = _image(row, image, POSE_CHANNELS, where)
            if row[LASER] in poses:
                raise DataError(f"{where}: is there several times")
            if values is not None:
                if not (np.abs(values) <= LARGEST_POSITION).all():
                    raise DataError(f"{where}: poses of pixels must be finite, in radians and metres")
                poses[row[LASER]] = values
        return poses


def _image(row: Mapping[str, Any], name: str, channels: int, where: str, optional: bool = False) -> Array | None:
    """The range image [H, W, channels] of a row. Raises DataError where its values do not fill its shape."""
    values, shape = row[f"{name}.values"], row[f"{name}.shape"]
    if values is None or shape is None or not len(values):
        if optional:
            return None
        raise DataError(f"{where}: no range image")
    fits = len(shape) == 3 and shape[2] == channels and (shape > 0).all()
    if not fits or math.prod(shape.tolist()) != len(values):
        raise DataError(
            f"{where}: range image of shape {shape.tolist()} with {len(values)} values; "
            f"they must fill [H, W, {channels}]"
        )
    return np.asarray(values.reshape(shape))


def _laser(path: Path, name: int, extrinsic: Any, lowest: Any, highest: Any, values: Any) -> Laser:
    matrix = _matrix(extrinsic, f"{path}: extrinsic of laser {name}")
    inclinations = np.array(values or (), np.float64)
    ends = np.array([lowest, highest], np.float64)
    if not len(inclinations) and np.isnan(ends).any():
        raise DataError(f"{path}: laser {name} has no beam inclinations")
    ends = np.nan_to_num(ends)
    if not (np.abs([*inclinations, *ends]) <= np.pi).all():
        raise DataError(f"{path}: beam inclinations of laser {name} must be finite, in radians")
    return Laser(matrix, inclinations, *ends.tolist())


def _matrix(values: Any, where: str) -> Array:
    matrix = np.array(values if values is not None else (), np.float64)
    if matrix.shape != (16,) or not np.isfinite(matrix).all():
        raise DataError(f"{where} must be 16 finite numbers")
    return check_pose(matrix.reshape(4, 4), where)


def _image_columns(image: str) -> dict[str, Kind]:
    return {f"{image}.values": "lists of numbers", f"{image}.shape": "lists of whole numbers"}
