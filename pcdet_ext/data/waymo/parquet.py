"""The Waymo Open Dataset's second layout: Parquet components, one file for each segment.

    <root>/{training,validation,testing}/{lidar,lidar_pose,lidar_calibration,lidar_box,vehicle_pose}/<segment>.parquet

Points are made from the range images of all lasers and both returns. A file is read a frame at a time: forward through
its row groups, a row after the other, so that a segment never has to be in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.waymo.frames import TYPES, Frame, Labels, check_boxes, numbered, vehicle_velocity
from pcdet_ext.data.waymo.range_images import CHANNELS, POSE_CHANNELS, Laser, image_points
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
LASERS = (1, 2, 3, 4, 5)  # TOP, FRONT, SIDE_LEFT, SIDE_RIGHT, REAR
TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
BOX_COLUMNS = tuple(
    f"[LiDARBoxComponent].box.{name}"
    for name in ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")
)
KEPT_SEGMENTS = 16  # files of so many segments stay open in a process
ROWS_AT_ONCE = 4  # rows of range images in memory: one of the top laser has 5 MB


class ParquetLayout:
    """A folder with the Parquet components (see `Layout`)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether a folder has this layout."""
        return any((root / folder / "lidar").is_dir() for folder in FOLDERS.values())

    def find(self, split: str) -> list[Frame]:
        """The frames of a split, by segment and time.

        A split is a list of segments in ImageSets/<split>.txt where there is one, else a folder: "train", "val" and
        "test" mean training, validation and testing.
        """
        frames = [frame for folder, name in self._segments(split) for frame in self._frames(folder, name)]
        if not frames:
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
            names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
            return [(self._folder_of(context_name(name), listed), context_name(name)) for name in names]
        folder = FOLDERS.get(split, split)
        if folder not in FOLDERS.values():
            raise DataError(f"{self.root}: no split {split!r}{suggest(split, FOLDERS)}; {listed} could list one")
        if not (self.root / folder / "lidar").is_dir():
            raise MissingFileError(f"{self.root / folder / 'lidar'}: no such folder, so there is no split {split!r}")
        return [(folder, path.stem) for path in sorted((self.root / folder / "lidar").glob("*.parquet"))]

    def _folder_of(self, name: str, listed: Path) -> str:
        if Path(name).name == name:
            for folder in FOLDERS.values():
                if (self.root / folder / "lidar" / f"{name}.parquet").is_file():
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
        names = ("extrinsic.transform", *(f"beam_inclination.{name}" for name in ("min", "max", "values")))
        rows = read_columns(path, (LASER, *(prefix + name for name in names))).to_pylist()
        return {row[LASER]: _laser(path, row[LASER], *(row[prefix + name] for name in names)) for row in rows}

    @cached_property
    def _poses(self) -> dict[int, Array]:
        column = "[VehiclePoseComponent].world_from_vehicle.transform"
        path = self.path("vehicle_pose")
        poses = {}
        for row in read_columns(path, (TIME, column)).to_pylist():
            poses[row[TIME]] = _matrix(row[column], f"{path}: pose of frame {row[TIME]}")
        return poses

    @cached_property
    def _pixel_poses(self) -> RowFile:
        return RowFile(self.path("lidar_pose"), (TIME, LASER))

    @cached_property
    def _boxes(self) -> dict[str, Array]:
        """Columns of lidar_box."""
        prefix = "[LiDARBoxComponent]."
        further = ("type", "num_lidar_points_in_box", "difficulty_level.detection", "speed.x", "speed.y")
        table = read_columns(
            self.path("lidar_box"), (TIME, "key.laser_object_id", *BOX_COLUMNS, *(prefix + name for name in further))
        )
        columns = {name.removeprefix(prefix): column for name, column in zip(table.column_names, table, strict=True)}
        found = {name: column.to_numpy(zero_copy_only=False) for name, column in columns.items()}
        unknown = np.setdiff1d(found[TIME], self.lidar.keys[TIME])
        if len(unknown):
            raise DataError(f"{self.path('lidar_box')}: frame {unknown[0]} is not in {self.lidar.path}")
        return found

    @cached_property
    def track_numbers(self) -> dict[str, int]:
        """A number for each object id."""
        return numbered(self._boxes["key.laser_object_id"].tolist())

    def pose(self, time: int) -> Array:
        """float64 [4, 4], vehicle to world."""
        if time not in self._poses:
            raise DataError(f"{self.path('vehicle_pose')}: no pose of frame {time}")
        return self._poses[time]

    def label_columns(self, time: int, names: Sequence[str]) -> dict[str, Array]:
        """Further columns of lidar_box for the objects that `labels` gives, by their name in the component."""
        path = self.path("lidar_box")
        columns = [f"[LiDARBoxComponent].{name}" for name in names]
        table = read_columns(path, columns)
        rows = self._objects(time)
        return {n: table[c].to_numpy(zero_copy_only=False)[rows] for n, c in zip(names, columns, strict=True)}

    def _objects(self, time: int) -> Array:
        """int64 [M]: rows of lidar_box with the objects of known type of a frame."""
        return np.flatnonzero((self._boxes[TIME] == time) & (self._boxes["type"] != 0))

    def labels(self, time: int) -> Labels:
        """The objects of known type of a frame."""
        columns = self._boxes
        rows = self._objects(time)
        where = f"{self.path('lidar_box')}: frame {time}"
        types = columns["type"][rows]
        if len(rows) and not np.isin(types, np.arange(len(TYPES))).all():
            raise DataError(f"{where}: types of objects must be from 0 to {len(TYPES) - 1}, got {sorted(set(types))}")
        boxes = np.stack([columns[name.removeprefix("[LiDARBoxComponent].")][rows] for name in BOX_COLUMNS], axis=1)
        ids = tuple(columns["key.laser_object_id"][rows].tolist())
        check_boxes(boxes, where, ids)
        speed = np.stack([columns["speed.x"][rows], columns["speed.y"][rows]], axis=1)
        return Labels(
            tuple(TYPES[i] for i in types),
            np.concatenate([boxes, vehicle_velocity(speed, self.pose(time))], axis=1),
            np.nan_to_num(columns["difficulty_level.detection"][rows]).astype(np.int64),
            np.nan_to_num(columns["num_lidar_points_in_box"][rows]).astype(np.int64),
            ids,
        )

    def points(self, time: int) -> Array:
        """Points float32 [N, 6] of a frame; see `pcdet_ext.data.waymo.frames.STORED_FEATURES`."""
        return np.concatenate([points for _, _, points in self.returns(time)])

    def returns(self, time: int) -> Iterator[tuple[int, int, Array]]:
        """Laser, return (1 or 2) and points float32 [N, 6] of each range image of a frame, laser by laser."""
        images = [f"[LiDARComponent].range_image_return{i}" for i in (1, 2)]
        rows = self.lidar.read(time, [f"{image}.{part}" for image in images for part in ("values", "shape")])
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
                if values is not None:
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
        rows = self._pixel_poses.read(time, [f"{image}.values", f"{image}.shape"])
        poses = {}
        for row in rows:
            where = f"{self._pixel_poses.path}: frame {time}, laser {row[LASER]}"
            values = _image(row, image, POSE_CHANNELS, where)
            if values is not None:
                poses[row[LASER]] = values
        return poses


class RowFile:
    """A Parquet file with large rows, read by the frame: forward from where the last frame was, where that is possible.

    path: of the file; keys: key columns (int64 [R] each), which are all in memory.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path = path
        self.keys = {name: column.to_numpy().astype(np.int64) for name, column in _columns(path, keys)}
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._columns: tuple[str, ...] = ()
        self._next = self._end = 0  # the rows that are still to come

    def times(self) -> Array:
        """int64 [T]: timestamps of the frames, ascending."""
        return np.unique(self.keys[TIME])

    def read(self, time: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Key and other columns of the rows of a frame. Raises DataError where there is none, or one is damaged."""
        rows = np.flatnonzero(self.keys[TIME] == time)
        if not len(rows):
            raise DataError(f"{self.path}: no row of frame {time}")
        try:
            return [self._row(int(row), tuple(columns)) for row in rows]
        except (OSError, ValueError) as error:
            self._end = 0
            raise DataError(f"{self.path}: frame {time} cannot be read ({error})") from error

    def _row(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        if columns != self._columns or not self._next <= row < self._end:
            self._start(row, columns)
        while True:
            self._next += 1
            found = next(self._rows)
            if self._next > row:
                return {**found, **{name: int(column[row]) for name, column in self.keys.items()}}

    def _start(self, row: int, columns: tuple[str, ...]) -> None:
        """Begin at the row group that holds a row."""
        with _Naming(self.path):
            from pyarrow import parquet

            file = parquet.ParquetFile(self.path, memory_map=True)
            _check_columns(self.path, file.schema_arrow.names, columns)
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if row < end:
                break
            first = end
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns), use_threads=False)
        self._rows = (_values(batch, i) for batch in batches for i in range(len(batch)))
        self._columns, self._next, self._end = columns, first, end


def _values(batch: Any, row: int) -> dict[str, Any]:
    """Arrays of one row of a batch; None where there is none."""
    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        scalar = column[row]
        found[name] = scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
    return found


def _image(row: Mapping[str, Any], name: str, channels: int, where: str, optional: bool = False) -> Array | None:
    """The range image [H, W, channels] of a row. Raises DataError where its values do not fill its shape."""
    values, shape = row[f"{name}.values"], row[f"{name}.shape"]
    if values is None or shape is None or not len(values):
        if optional:
            return None
        raise DataError(f"{where}: no range image")
    if len(shape) != 3 or shape[2] != channels or int(np.prod(shape.astype(np.int64))) != len(values):
        raise DataError(
            f"{where}: range image of shape {shape.tolist()} with {len(values)} values; "
            f"they must fill [H, W, {channels}]"
        )
    return np.asarray(values.reshape(shape))


def _laser(path: Path, name: int, extrinsic: Any, lowest: Any, highest: Any, values: Any) -> Laser:
    matrix = _matrix(extrinsic, f"{path}: extrinsic of laser {name}")
    inclinations = np.array(values or (), np.float64)
    if not len(inclinations) and (lowest is None or highest is None):
        raise DataError(f"{path}: laser {name} has no beam inclinations")
    return Laser(matrix, inclinations, float(lowest or 0.0), float(highest or 0.0))


def _matrix(values: Any, where: str) -> Array:
    matrix = np.array(values if values is not None else (), np.float64)
    if matrix.shape != (16,) or not np.isfinite(matrix).all():
        raise DataError(f"{where} must be 16 finite numbers")
    return matrix.reshape(4, 4)


def read_columns(path: Path, columns: Sequence[str]) -> Any:
    """Columns of a small component as a table of pyarrow. Raises DataError where one is missing, or all rows are."""
    with _Naming(path):
        from pyarrow import parquet

        file = parquet.ParquetFile(path, memory_map=True)
        _check_columns(path, file.schema_arrow.names, columns)
        table = file.read(columns=list(columns), use_threads=False)
    if not table.num_rows:
        raise DataError(f"{path}: the component is empty, without a row")
    return table


def _columns(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    table = read_columns(path, names)
    for name in names:
        if table[name].null_count:
            raise DataError(f"{path}: column {name} lacks values")
        yield name, table[name]


def _check_columns(path: Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}{suggest(missing[0], present)}")


class _Naming:
    """Errors of reading a Parquet file name it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        if not self.path.is_file():
            component = self.path.parent.name
            raise MissingFileError(f"{self.path}: no such file, the component {component} is missing")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, DataError):
            raise DataError(f"{self.path}: no Parquet file, or damaged ({error})") from error
