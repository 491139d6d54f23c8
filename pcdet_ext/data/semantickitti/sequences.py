"""SemanticKITTI's files (Behley et al., ICCV 2019), which have the layout of KITTI's odometry benchmark.

    <root>/sequences/NN/{velodyne/000000.bin, labels/000000.label, calib.txt, poses.txt, times.txt}

Labels, poses and times may be missing, as in the sequences 11 to 21 of the benchmark, whose labels are kept back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.points import read_bin
from pcdet_ext.data.text import floats, read_lines
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.rigid import is_rotation
from pcdet_ext.structures import Array

POINT_FEATURES = ("x", "y", "z", "intensity")  # columns of the velodyne files
SEQUENCES = "sequences"
PREDICTIONS = "predictions"  # the folder of a sequence that has results instead of labels
LISTS = "splits"  # folder of the data, with a file <split>.txt of sequences for each split of its own
PUBLISHED_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "trainval": ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10"),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}


@dataclass(frozen=True)
class Frame:
    """One scan of a sequence. name: of its files, as "000000"; labelled: whether the sequence has labels."""

    root: Path
    sequence: str
    name: str
    labelled: bool

    @property
    def frame_id(self) -> str:
        """The sequence and the name of the files, as "08_000123"."""
        return f"{self.sequence}_{self.name}"

    @property
    def points(self) -> Path:
        """The velodyne file."""
        return self._file("velodyne", ".bin")

    @property
    def labels(self) -> Path:
        """The label file."""
        return self._file("labels", ".label")

    def result(self, folder: Path) -> Path:
        """Where results for this frame are, or go, below a folder of them, in the layout that the benchmark takes."""
        return folder / SEQUENCES / self.sequence / PREDICTIONS / f"{self.name}.label"

    def _file(self, kind: str, suffix: str) -> Path:
        return self.root / SEQUENCES / self.sequence / kind / f"{self.name}{suffix}"


def read_points(path: Path) -> Array:
    """Points float32 [N, 4] (x, y, z, remission) of a velodyne file. Raises DataError when it is cut short."""
    return read_bin(path, columns=len(POINT_FEATURES))


def sequences_of(root: Path, split: str) -> list[str]:
    """The sequences of a split that are there.

    They are those that `splits/<split>.txt` lists, one per line, where that file exists; else the published ones.
    Raises DataError where the split is not known, or none (or for a list: not each) of its sequences is there.
    """
    folder = root / SEQUENCES
    if not folder.is_dir():
        raise MissingFileError(f"{root}: no SemanticKITTI data here, the folder {SEQUENCES} is missing")
    known = sorted(path.name for path in folder.iterdir() if (path / "velodyne").is_dir())
    path = root / LISTS / f"{split}.txt"
    if path.is_file():
        listed = [line.strip() for line in read_lines(path) if line.strip()]
        for name in listed:
            if name not in known:
                raise DataError(f"{path}: there is no sequence {name!r} in {folder}{suggest(name, known)}")
        if not listed:
            raise DataError(f"{path}: names no sequence")
        return listed
    if split not in PUBLISHED_SPLITS:
        hint = suggest(split, PUBLISHED_SPLITS)
        raise MissingFileError(f"{path}: no such file, and {split!r} is no published split{hint}")
    found = [name for name in PUBLISHED_SPLITS[split] if name in known]
    if not found:
        raise DataError(
            f"{folder}: has no sequence of split {split!r} ({', '.join(PUBLISHED_SPLITS[split])}), but "
            f"{', '.join(known) or 'none at all'}; a file {path} can name others, one per line"
        )
    return found


def find_frames(root: Path, split: str) -> list[Frame]:
    """The frames of a split, sequence after sequence. Raises DataError without any."""
    frames = [frame for sequence in sequences_of(root, split) for frame in frames_of(root, sequence)]
    if not frames:
        raise DataError(f"{root}: split {split!r} has no frames (sequences/NN/velodyne/*.bin)")
    return frames


def frames_of(root: Path, sequence: str) -> list[Frame]:
    """The frames of a sequence, by name."""
    folder = root / SEQUENCES / sequence
    labelled = (folder / "labels").is_dir()
    return [Frame(root, sequence, path.stem, labelled) for path in sorted((folder / "velodyne").glob("*.bin"))]


@dataclass(frozen=True, eq=False)
class Motion:
    """Where the sensor of a sequence was. poses: float64 [T, 4, 4], LiDAR to world; times: float64 [T], seconds.

    Both by the frames' numbers, that of "000123" being 123; None where the sequence has no such file.
    """

    poses: Array | None
    times: Array | None

    @staticmethod
    def read(root: Path, sequence: str) -> Motion:
        """Of a sequence's poses.txt (of the left camera, brought to the LiDAR by Tr of calib.txt) and times.txt.

        Raises DataError naming file and line where one is damaged, or where poses are without a calibration.
        """
        folder = root / SEQUENCES / sequence
        poses = _optional(folder / "poses.txt", _read_poses)
        times = _optional(folder / "times.txt", lambda path: _read_rows(path, 1)[:, 0])
        if poses is None:
            return Motion(None, times)
        lidar_to_camera = read_calibration(folder / "calib.txt")
        return Motion(np.linalg.inv(lidar_to_camera) @ poses @ lidar_to_camera, times)

    def of(self, name: str) -> tuple[Array | None, float | None]:
        """The pose and the time of a frame, None for what is not known."""
        number = int(name) if name.isdigit() else -1

        def known(values: Array | None) -> bool:
            return values is not None and 0 <= number < len(values)

        pose = self.poses[number] if self.poses is not None and known(self.poses) else None
        time = float(self.times[number]) if self.times is not None and known(self.times) else None
        return pose, time


def read_calibration(path: Path) -> Array:
    """Tr of a calib.txt: float64 [4, 4], from the LiDAR to the left camera. Raises DataError naming file and line."""
    for number, line in enumerate(read_lines(path), 1):
        name, _, values = line.partition(":")
        if name.strip() == "Tr":
            matrix = _matrices(_numbers(values, 12, path, number)[None])[0]
            if not is_rotation(matrix[:3, :3]):
                raise DataError(f"{path}:{number}: Tr must begin with a rotation, got {values.strip()}")
            return matrix
    raise DataError(f"{path}: has no line 'Tr:', the transform from the LiDAR to the camera")


def _optional(path: Path, read: Callable[[Path], Array]) -> Array | None:
    return read(path) if path.exists() else None


def _read_rows(path: Path, count: int) -> Array:
    """Numbers float64 [T, count], one row per line that is not empty."""
    rows = [_numbers(line, count, path, i) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    return np.array(rows, np.float64).reshape(-1, count)


def _read_poses(path: Path) -> Array:
    """float64 [T, 4, 4], the upper three rows of each in a line. Raises DataError for one that is no rigid motion."""
    poses = _matrices(_read_rows(path, 12))
    for number, pose in enumerate(poses):
        if not is_rotation(pose[:3, :3]):
            raise DataError(f"{path}: pose {number} must be a rotation and a translation, is {pose[:3].tolist()}")
    return poses


def _numbers(text: str, count: int, path: Path, line: int) -> Array:
    numbers = floats(text.split(), f"{path}:{line}")
    if len(numbers) != count:
        raise DataError(f"{path}:{line}: must have {count} numbers, has {len(numbers)}")
    return np.array(numbers)


def _matrices(rows: Array) -> Array:
    """float64 [T, 4, 4] of the upper three rows of each, float64 [T, 12]."""
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3] = rows.reshape(-1, 3, 4)
    return matrices


def calibration_text(lidar_to_camera: Array, projections: Sequence[Array]) -> str:
    """The content of a calib.txt. projections: float64 [3, 4] of the cameras P0, P1, …."""
    rows = {f"P{i}": projection for i, projection in enumerate(projections)} | {"Tr": lidar_to_camera[:3]}
    return "".join(f"{name}: {' '.join(f'{v:.12e}' for v in np.ravel(row))}\n" for name, row in rows.items())
