"""The KITTI object-detection layout as it is on disk (Geiger et al., CVPR 2012).

    <root>/training/{velodyne/ID.bin, label_2/ID.txt, calib/ID.txt, image_2/ID.png}   <root>/ImageSets/<split>.txt

`testing/` has the same folders without labels; image_2 is optional. Camera frame: the rectified one of camera 0,
x right, y down, z forward; a camera box stands on its location (bottom centre) and turns by rotation_y about the y
axis.
Angles are radians, lengths metres, image coordinates pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.data.points import read_bin
from pcdet_ext.data.geometry import wrap_angle
from pcdet_ext.structures import Array, Boxes

DONT_CARE = "DontCare"
DEFAULT_IMAGE_SIZE = (375, 1242)  # (height, width) of most KITTI frames, used where there is no image
VAL_SHARE = 0.2  # of the frames, in the split made where there is no ImageSets folder
NEAR = 0.1  # metres before the camera: parts of a box nearer than this are cut off before projecting

# (2D height at least, occlusion at most, truncation at most) of easy, moderate and hard objects
DIFFICULTIES = ((40.0, 0, 0.15), (25.0, 1, 0.30), (25.0, 2, 0.50))

_CALIBRATION_KEYS = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)], np.int64
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How LiDAR, camera and image of one frame relate.

    p2: float64 [3, 4] rectified camera to pixels of the left colour camera; r0_rect: float64 [3, 3] rectifying
    rotation; velo_to_cam: float64 [3, 4] LiDAR to unrectified camera.
    """

    p2: Array
    r0_rect: Array
    velo_to_cam: Array

    def __post_init__(self) -> None:
        for name, shape in (("p2", (3, 4)), ("r0_rect", (3, 3)), ("velo_to_cam", (3, 4))):
            array = np.asarray(getattr(self, name), np.float64)
            if array.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
            object.__setattr__(self, name, array)

    @staticmethod
    def read(path: str | Path) -> Calibration:
        """Read a calib file. Raises DataError naming file, line and key when one is missing or malformed."""
        found: dict[str, Array] = {}
        for number, line in enumerate(_read_lines(path), 1):
            key, colon, values = line.partition(":")
            if colon and key.strip() in _CALIBRATION_KEYS:
                found[key.strip()] = _matrix(values, key.strip(), f"{path}:{number}")
        for key in _CALIBRATION_KEYS:
            if key not in found:
                raise DataError(f"{path}: calibration key {key!r} is missing")
        return Calibration(found["P2"], found["R0_rect"], found["Tr_velo_to_cam"])

    def write(self, path: str | Path) -> None:
        """Write a calib file with every line that KITTI's own files have; the other cameras get the matrix of P2."""
        imu_to_velo = np.eye(3, 4)
        lines = [*((f"P{i}", self.p2) for i in range(4)), ("R0_rect", self.r0_rect)]
        lines += [("Tr_velo_to_cam", self.velo_to_cam), ("Tr_imu_to_velo", imu_to_velo)]
        text = "".join(f"{key}: {' '.join(f'{v:.16e}' for v in matrix.ravel())}\n" for key, matrix in lines)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @property
    def lidar_to_rectified(self) -> Array:
        """float64 [4, 4]: LiDAR frame to rectified camera frame."""
        matrix = np.eye(4)
        matrix[:3] = self.r0_rect @ self.velo_to_cam
        return matrix

    def lidar_to_camera(self, xyz: Array) -> Array:
        """Points [N, 3] in the LiDAR frame to float64 [N, 3] in the rectified camera frame."""
        return _transform(xyz, self.lidar_to_rectified)

    def camera_to_lidar(self, xyz: Array) -> Array:
        """Points [N, 3] in the rectified camera frame to float64 [N, 3] in the LiDAR frame."""
        return _transform(xyz, np.linalg.inv(self.lidar_to_rectified))

    def project(self, xyz_lidar: Array) -> tuple[Array, Array]:
        """Pixels (u, v) float64 [N, 2] and depth float64 [N] (camera z, metres) of LiDAR points [N, 3].

        Pixels mean something where the depth is positive only.
        """
        camera = self.lidar_to_camera(xyz_lidar)
        return _pixels(camera, self.p2), camera[:, 2]


@dataclass(frozen=True, eq=False)
class Labels:
    """Objects of one frame, a row for each line of a label_2 or result file.

    names: class of each; truncation float64 [N] in [0, 1] or -1; occlusion int64 [N] (0 fully visible, 1 partly,
    2 largely occluded, 3 unknown, -1 not told); alpha float64 [N] observation angle; bbox float64 [N, 4] (x1, y1, x2,
    y2) pixels; dimensions float64 [N, 3] (height, width, length); location float64 [N, 3] bottom centre, rectified
    camera frame; rotation_y float64 [N]; scores float64 [N] of detections or None.
    """

    names: tuple[str, ...]
    truncation: Array
    occlusion: Array
    alpha: Array
    bbox: Array
    dimensions: Array
    location: Array
    rotation_y: Array
    scores: Array | None = None

    def __post_init__(self) -> None:
        for name, width in (("bbox", 4), ("dimensions", 3), ("location", 3)):
            if np.shape(getattr(self, name)) != (len(self), width):
                raise ValueError(f"{name} must be [{len(self)}, {width}], got {list(np.shape(getattr(self, name)))}")
        for name in ("truncation", "occlusion", "alpha", "rotation_y", "scores"):
            column = getattr(self, name)
            if column is not None and np.shape(column) != (len(self),):
                raise ValueError(f"{name} must be [{len(self)}], got {list(np.shape(column))}")

    def __len__(self) -> int:
        return len(self.names)

    def select(self, keep: Array) -> Labels:
        """The rows that `keep` (bool [N] or int64 [K]) picks, in its order."""
        index = np.arange(len(self))[keep]
        columns = ("truncation", "occlusion", "alpha", "bbox", "dimensions", "location", "rotation_y", "scores")
        picked = {c: None if getattr(self, c) is None else getattr(self, c)[index] for c in columns}
        return Labels(tuple(self.names[i] for i in index), **picked)


def read_labels(path: str | Path, with_scores: bool | None = None) -> Labels:
    """Read a label (15 columns) or result file (16, the last is the score); an empty file has no objects.

    with_scores: True demands scores, False forbids them, None takes what is there.
    Raises DataError naming file and line for another number of columns, and for what is no finite number.
    """
    numbered = [(i, line.split()) for i, line in enumerate(_read_lines(path), 1) if line.strip()]
    width = _label_width(path, numbered, with_scores)
    table = np.empty((len(numbered), width - 1), np.float64)
    for row, (number, fields) in zip(table, numbered, strict=True):
        row[:] = _floats(fields[1:], f"{path}:{number}")
    occlusion = table[:, 1].astype(np.int64)
    if (wrong := np.flatnonzero(occlusion != table[:, 1])).size:
        number, fields = numbered[wrong[0]]
        raise DataError(f"{path}:{number}: occlusion must be a whole number, got {fields[2]}")
    return Labels(
        names=tuple(fields[0] for _, fields in numbered),
        truncation=table[:, 0],
        occlusion=occlusion,
        alpha=table[:, 2],
        bbox=table[:, 3:7],
        dimensions=table[:, 7:10],
        location=table[:, 10:13],
        rotation_y=table[:, 13],
        scores=table[:, 14] if width == 16 else None,
    )


def write_labels(path: str | Path, labels: Labels) -> None:
    """Write a label file, or a result file when the labels have scores; four decimals, scores six.

    Raises ValueError for a class name that is not one word, because columns are split at spaces.
    """
    lines = []
    for i, name in enumerate(labels.names):
        if len(name.split()) != 1:
            raise ValueError(f"{path}: a class name must be one word, got {name!r}")
        fields = [name, f"{labels.truncation[i]:.2f}", f"{int(labels.occlusion[i])}"]
        row = (labels.alpha[i], *labels.bbox[i], *labels.dimensions[i], *labels.location[i], labels.rotation_y[i])
        fields += [f"{v:.4f}" for v in row]
        fields += [] if labels.scores is None else [f"{labels.scores[i]:.6f}"]
        lines.append(" ".join(fields) + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_points(path: str | Path) -> Array:
    """Points float32 [N, 4] (x, y, z, reflectance) of a velodyne file. Raises DataError when it is cut short."""
    return read_bin(path, columns=4)


def write_points(path: str | Path, points: Array) -> None:
    """Write points [N, 4] as a velodyne file."""
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points must be [N, 4], got {list(points.shape)}")
    with atomic_write(path) as temporary:
        points.astype("<f4").tofile(temporary)


def difficulty(labels: Labels) -> Array:
    """int64 [N]: the easiest level (0 easy, 1 moderate, 2 hard) whose limits an object meets, -1 when it meets none."""
    height = labels.bbox[:, 3] - labels.bbox[:, 1]
    level = np.full(len(labels), -1, np.int64)
    for i, (min_height, max_occlusion, max_truncation) in reversed(list(enumerate(DIFFICULTIES))):
        meets = (height >= min_height) & (labels.occlusion <= max_occlusion) & (labels.truncation <= max_truncation)
        level[meets] = i
    return level


def labels_to_boxes(labels: Labels, calibration: Calibration) -> Boxes:
    """Boxes in the LiDAR frame with their difficulty; DontCare rows are dropped, headings lie in [-π, π).

    The box keeps upright in the LiDAR frame: its bottom centre is transformed, heading = -(rotation_y + π/2).
    """
    labels = labels.select(np.array([name != DONT_CARE for name in labels.names], bool))
    height, width, length = labels.dimensions.T
    centre = calibration.camera_to_lidar(labels.location)
    centre[:, 2] += height / 2
    heading = wrap_angle(-(labels.rotation_y + np.pi / 2))
    boxes = np.column_stack([centre, length, width, height, heading]).astype(np.float32)
    return Boxes(boxes, labels.names, difficulty=difficulty(labels))


def boxes_to_labels(
    boxes: Array,
    names: Sequence[str],
    calibration: Calibration,
    image_size: tuple[int, int],
    scores: Array | None = None,
) -> Labels:
    """Camera-frame rows for LiDAR boxes [N, 7 or 9]: the inverse of `labels_to_boxes`.

    bbox is the hull of the box's projection clipped to the image (height, width), zero where the box lies behind the
    camera; truncation and occlusion are -1 (not told).
    """
    boxes = np.asarray(boxes, np.float64)
    bottom = boxes[:, :3].copy()
    bottom[:, 2] -= boxes[:, 5] / 2
    location = calibration.lidar_to_camera(bottom)
    dimensions = boxes[:, [5, 4, 3]]
    rotation_y = wrap_angle(-boxes[:, 6] - np.pi / 2)
    bbox = image_boxes(camera_corners(dimensions, location, rotation_y), calibration.p2)
    return Labels(
        names=tuple(names),
        truncation=np.full(len(boxes), -1.0),
        occlusion=np.full(len(boxes), -1, np.int64),
        alpha=wrap_angle(rotation_y - np.arctan2(location[:, 0], location[:, 2])),
        bbox=clip_to_image(bbox, image_size),
        dimensions=dimensions,
        location=location,
        rotation_y=rotation_y,
        scores=None if scores is None else np.asarray(scores, np.float64),
    )


def camera_corners(dimensions: Array, location: Array, rotation_y: Array) -> Array:
    """Corners float64 [N, 8, 3] in the camera frame, the four of the bottom first, each face in turn."""
    height, width, length = np.asarray(dimensions, np.float64)[:, :, None].transpose(1, 0, 2)
    x = length / 2 * np.array([1, 1, -1, -1, 1, 1, -1, -1])
    z = width / 2 * np.array([1, -1, -1, 1, 1, -1, -1, 1])
    y = -height * np.array([0, 0, 0, 0, 1, 1, 1, 1])
    cos, sin = np.cos(rotation_y)[:, None], np.sin(rotation_y)[:, None]
    return np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=2) + np.asarray(location)[:, None]


def image_boxes(corners: Array, p2: Array) -> Array:
    """Hull [N, 4] (x1, y1, x2, y2), not clipped, of projected boxes with camera-frame corners [N, 8, 3].

    What lies nearer to the camera plane than `NEAR` is cut off first, so that a box beside the camera has the true
    hull. Boxes entirely behind it get zeros.
    """
    start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (NEAR - start[..., 2]) / (end[..., 2] - start[..., 2])
    crosses = (start[..., 2] < NEAR) != (end[..., 2] < NEAR)
    cuts = start + np.where(crosses, share, 0.0)[..., None] * (end - start)
    points = np.concatenate([corners, cuts], axis=1)
    seen = np.concatenate([corners[..., 2] >= NEAR, crosses], axis=1)
    pixels = _pixels(points.reshape(-1, 3), p2).reshape(*points.shape[:2], 2)
    low = np.where(seen[..., None], pixels, np.inf).min(axis=1)
    high = np.where(seen[..., None], pixels, -np.inf).max(axis=1)
    return np.where(seen.any(axis=1)[:, None], np.concatenate([low, high], axis=1), 0.0)


def clip_to_image(bbox: Array, image_size: tuple[int, int]) -> Array:
    """2D boxes [N, 4] clipped to the pixels of an image (height, width)."""
    height, width = image_size
    limit = np.array([width - 1, height - 1, width - 1, height - 1], np.float64)
    return np.clip(bbox, 0.0, limit)


def in_image(points: Array, calibration: Calibration, image_size: tuple[int, int]) -> Array:
    """bool [N]: which LiDAR points [N, 3+] lie before the camera and inside the image (height, width)."""
    height, width = image_size
    u, v, w = _transform(points[:, :3], calibration.p2 @ calibration.lidar_to_rectified).T  # pixels times w
    return (w > 0) & (u >= 0) & (u < width * w) & (v >= 0) & (v < height * w)


@dataclass(frozen=True)
class Frame:
    """Where the files of one frame lie, whether they exist or not."""

    root: Path
    frame_id: str
    folder: str = "training"

    @property
    def points(self) -> Path:
        """The velodyne file."""
        return self._file("velodyne", ".bin")

    @property
    def labels(self) -> Path:
        """The label_2 file."""
        return self._file("label_2", ".txt")

    @property
    def calibration(self) -> Path:
        """The calib file."""
        return self._file("calib", ".txt")

    @property
    def image(self) -> Path:
        """The image_2 file."""
        return self._file("image_2", ".png")

    def image_size(self) -> tuple[int, int]:
        """(height, width) of the frame's image, or the usual one of KITTI where there is no image."""
        return read_png_size(self.image) if self.image.exists() else DEFAULT_IMAGE_SIZE

    def _file(self, kind: str, suffix: str) -> Path:
        return self.root / self.folder / kind / f"{self.frame_id}{suffix}"


def find_frames(root: str | Path, split: str, seed: int = 0) -> list[Frame]:
    """The frames of a split: those in ImageSets/<split>.txt, or without that folder of a seeded split.

    The made split knows "train", "val" (one frame in five) and "trainval" of training/, and "test", all of testing/.
    Raises DataError when the root, the split or all frames are missing, or the list is damaged.
    """
    root = Path(root)
    folder = "testing" if split == "test" else "training"
    if not (root / folder / "velodyne").is_dir():
        raise DataError(f"{root}: no KITTI data here, {folder}/velodyne is missing")
    lists = root / "ImageSets"
    ids = _listed_ids(lists, split) if lists.is_dir() else _made_split(root / folder / "velodyne", split, seed)
    if not ids:
        raise DataError(f"{root}: split {split!r} has no frames")
    return [Frame(root, frame_id, folder) for frame_id in ids]


def write_frame(root: str | Path, frame_id: str, points: Array, labels: Labels, calibration: Calibration) -> None:
    """Write one labelled frame under root/training; the points come last, so that a frame with points is complete."""
    frame = Frame(Path(root), frame_id)
    calibration.write(frame.calibration)
    write_labels(frame.labels, labels if labels.scores is None else replace(labels, scores=None))
    write_points(frame.points, points)


def read_png_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from the header of a PNG file, without decoding it. Raises DataError when it is no PNG."""
    with Path(path).open("rb") as stream:
        header = stream.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise DataError(f"{path}: not a PNG image")
    width, height = struct.unpack(">II", header[16:24])
    return height, width


def _listed_ids(lists: Path, split: str) -> list[str]:
    path = lists / f"{split}.txt"
    if not path.exists():
        raise DataError(f"{path}: no such split{suggest(split, (p.stem for p in lists.glob('*.txt')))}")
    ids = [line.strip() for line in _read_lines(path) if line.strip()]
    for frame_id in ids:
        if Path(frame_id).name != frame_id:
            raise DataError(f"{path}: {frame_id!r} is no frame id")
    return ids


def _made_split(velodyne: Path, split: str, seed: int) -> list[str]:
    ids = sorted(path.stem for path in velodyne.glob("*.bin"))
    if split in ("trainval", "test"):
        return ids
    if split not in ("train", "val"):
        raise DataError(
            f"{velodyne.parent.parent}: no ImageSets folder, and split {split!r} is none of the made ones"
            f"{suggest(split, ('train', 'val', 'trainval', 'test'))}"
        )
    order = np.random.default_rng(seed).permutation(len(ids))
    count = min(max(round(VAL_SHARE * len(ids)), 1), len(ids) - 1) if len(ids) > 1 else 0
    chosen = order[:count] if split == "val" else order[count:]
    return [ids[i] for i in sorted(chosen)]


def _read_lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error})") from error


def _label_width(path: str | Path, numbered: list[tuple[int, list[str]]], with_scores: bool | None) -> int:
    if not numbered:
        return 16 if with_scores else 15
    width = {True: 16, False: 15}.get(with_scores, len(numbered[0][1]))
    expected = "15 (label) or 16 (result)" if with_scores is None else str(width)
    for number, fields in numbered:
        if len(fields) != width or width not in (15, 16):
            raise DataError(f"{path}:{number}: a line must have {expected} columns, got {len(fields)}")
    return width


def _floats(fields: Sequence[str], where: str) -> list[float]:
    values = []
    for field in fields:
        try:
            values.append(float(field))
        except ValueError:
            raise DataError(f"{where}: {field!r} is not a number") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where}: numbers must be finite, got {' '.join(fields)}")
    return values


def _matrix(values: str, key: str, where: str) -> Array:
    numbers = _floats(values.split(), where)
    rows, columns = _CALIBRATION_KEYS[key]
    if len(numbers) != rows * columns:
        raise DataError(f"{where}: {key} must have {rows * columns} numbers, got {len(numbers)}")
    return np.array(numbers).reshape(rows, columns)


def _transform(xyz: Array, matrix: Array) -> Array:
    return np.asarray(xyz, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def _pixels(camera: Array, p2: Array) -> Array:
    image = _transform(camera, p2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return image[:, :2] / image[:, 2:]
