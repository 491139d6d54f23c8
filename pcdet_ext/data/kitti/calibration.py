"""How LiDAR, camera and image of a frame in the KITTI layout relate.

Camera frame: the rectified one of camera 0, x right, y down, z forward. Angles are radians, lengths metres, image
coordinates pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pcdet_ext.data.geometry import pieces, transform, wrap_angle
from pcdet_ext.data.text import floats, read_lines
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.structures import Array

# Shape of each matrix, and the keys that it has in KITTI's own files (object, tracking, raw data) and others' ones.
_MATRICES = {
    "P2": ((3, 4), ("P2", "P_rect_02")),
    "R0_rect": ((3, 3), ("R0_rect", "R_rect", "R_rect_00")),
    "Tr_velo_to_cam": ((3, 4), ("Tr_velo_to_cam", "Tr_velo_cam", "Tr_velo2cam")),
}
_ODOMETRY = "Tr"  # LiDAR to the rectified camera at once, in files that have no R0_rect
_IMAGE_SIZE = "S_rect_02"  # width and height, as in KITTI's raw data
# The cameras that recorded KITTI, from the raw data's calibrations of five days: focal length and principal point of
# P2, and (height, width) of the rectified images.
_KITTI_CAMERAS = (
    ((721.5377, 609.5593, 172.8540), (375, 1242)),
    ((707.0493, 604.0814, 180.5066), (370, 1224)),
    ((718.3351, 600.3891, 181.5122), (374, 1238)),
    ((707.0912, 601.8873, 183.1104), (370, 1226)),
    ((718.8560, 607.1928, 185.2157), (376, 1241)),
)
_ALIGNED = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # a camera that looks along the LiDAR's x axis
_NEARLY_ALIGNED = np.deg2rad(3)
_ROTATION_TOLERANCE = 0.02
_MIN_SLANT = 0.1  # of the camera's y axis along the LiDAR's z axis


@dataclass(frozen=True, eq=False)
class Calibration:
    """The matrices of one frame, and the size of its image.

    p2: float64 [3, 4], rectified camera to pixels of the left colour camera; r0_rect: float64 [3, 3], rectifying
    rotation; velo_to_cam: float64 [3, 4], LiDAR to unrectified camera; image_size: (height, width) or None where
    nothing states it; notes: what was unusual about the file, and how it was read.
    Raises ValueError for other shapes, numbers that are not finite, matrices that are no rotation or no camera, and a
    camera that looks straight up or down.
    """

    p2: Array
    r0_rect: Array
    velo_to_cam: Array
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, shape in (("p2", (3, 4)), ("r0_rect", (3, 3)), ("velo_to_cam", (3, 4))):
            array = np.asarray(getattr(self, name), np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {list(shape)} and finite, got {array.tolist()}")
            object.__setattr__(self, name, array)
        for name in ("r0_rect", "velo_to_cam"):
            _check_rotation(name, getattr(self, name)[:, :3])
        if self.p2[0, 0] <= 0 or self.p2[1, 1] <= 0:
            raise ValueError(f"p2 must have positive focal lengths, got {self.p2[0, 0]:g} and {self.p2[1, 1]:g}")
        if abs(np.linalg.det(self._camera_to_heading)) < _MIN_SLANT:
            raise ValueError("the camera looks along the LiDAR's z axis, so that its boxes have no heading there")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", check_image_size(self.image_size))

    @staticmethod
    def read(path: str | Path) -> Calibration:
        """Read a calib file of the object, tracking or odometry benchmark, with or without colons behind its keys.

        The image size is taken from a line S_rect_02 where there is one. Raises DataError naming file, line and key
        when a matrix is missing, stands there twice with other numbers, or is malformed.
        """
        found: dict[str, tuple[str, Array]] = {}
        for number, line in enumerate(read_lines(path), 1):
            key, values = _key_and_values(line)
            name = _name_of(key)
            if name is None:
                continue
            matrix = _matrix(name, key, values, f"{path}:{number}")
            if name in found and not np.array_equal(found[name][1], matrix):
                raise DataError(f"{path}:{number}: {key} stands here, and {found[name][0]} with other numbers before")
            found[name] = key, matrix
        return _from_matrices(path, found)

    def write(self, path: str | Path) -> None:
        """Write a calib file with every line that KITTI's own files have; the other cameras get the matrix of P2.

        A known image size follows in a line S_rect_02 (width, height), as KITTI's raw data have it.
        """
        imu_to_velo = np.eye(3, 4)
        lines = [*((f"P{i}", self.p2) for i in range(4)), ("R0_rect", self.r0_rect)]
        lines += [("Tr_velo_to_cam", self.velo_to_cam), ("Tr_imu_to_velo", imu_to_velo)]
        lines += [] if self.image_size is None else [(_IMAGE_SIZE, np.array(self.image_size[::-1], np.float64))]
        text = "".join(f"{key}: {' '.join(f'{v:.16e}' for v in matrix.ravel())}\n" for key, matrix in lines)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def with_image_size(self, image_size: tuple[int, int] | None) -> Calibration:
        """The same with another size (height, width) of the image."""
        return replace(self, image_size=image_size)

    def known_image_size(self) -> tuple[int, int] | None:
        """(height, width): what the file states, or that of the cars that recorded KITTI, known by their P2."""
        return self._kittis_size if self.image_size is None else self.image_size

    @property
    def lidar_to_rectified(self) -> Array:
        """float64 [4, 4]: LiDAR frame to rectified camera frame."""
        matrix = np.eye(4)
        matrix[:3] = self.r0_rect @ self.velo_to_cam
        return matrix

    def lidar_to_camera(self, xyz: Array) -> Array:
        """Points [N, 3] in the LiDAR frame to float64 [N, 3] in the rectified camera frame."""
        return transform(xyz, self.lidar_to_rectified)

    def camera_to_lidar(self, xyz: Array) -> Array:
        """Points [N, 3] in the rectified camera frame to float64 [N, 3] in the LiDAR frame."""
        return transform(xyz, np.linalg.inv(self.lidar_to_rectified))

    def heading_of(self, rotation_y: Array) -> Array:
        """Headings in the LiDAR frame, in [-π, π), of boxes that turn by `rotation_y` about the camera's y axis.

        The direction of a box goes through the calibration's rotation and is seen from above. For KITTI's own
        recordings, heading = -(rotation_y + π/2) as all published data sets and models have it: it takes their axes as
        aligned, which they are to within a degree.
        """
        if self._is_kittis_own:
            return wrap_angle(-(rotation_y + np.pi / 2))
        x, y = self._camera_to_heading @ np.stack([np.cos(rotation_y), np.sin(rotation_y)])
        return wrap_angle(np.arctan2(y, x))

    def rotation_y_of(self, heading: Array) -> Array:
        """The inverse of `heading_of`."""
        if self._is_kittis_own:
            return wrap_angle(-heading - np.pi / 2)
        cos, sin = np.linalg.solve(self._camera_to_heading, np.stack([np.cos(heading), np.sin(heading)]))
        return wrap_angle(np.arctan2(sin, cos))

    def sees_its_axis(self, image_size: tuple[int, int]) -> bool:
        """Whether the principal point of P2 lies in an image (height, width); else P2 is for images of another size."""
        height, width = image_size
        return bool(0 <= self.p2[0, 2] <= width and 0 <= self.p2[1, 2] <= height)

    @property
    def tilt(self) -> float:
        """Angle between the camera's y axis and straight down in the LiDAR frame, in radians."""
        return float(np.arccos(np.clip(-self.lidar_to_rectified[1, 2], -1, 1)))

    def project(self, xyz_lidar: Array) -> tuple[Array, Array]:
        """Pixels (u, v) float64 [N, 2] and depth float64 [N] (camera z, metres) of LiDAR points [N, 3].

        Pixels mean something where the depth is positive only.
        """
        camera = self.lidar_to_camera(xyz_lidar)
        return pixels(camera, self.p2), camera[:, 2]

    @cached_property
    def _kittis_size(self) -> tuple[int, int] | None:
        """(height, width) of the images when P2 is of a camera that recorded KITTI."""
        camera = self.p2[[0, 0, 1], [0, 2, 2]]
        return next((size for known, size in _KITTI_CAMERAS if np.allclose(camera, known, rtol=0, atol=1e-3)), None)

    @cached_property
    def _is_kittis_own(self) -> bool:
        """Whether P2 is of the cars that recorded KITTI, and the LiDAR is mounted as there."""
        off = np.trace(self.lidar_to_rectified[:3, :3] @ _ALIGNED.T)
        return self._kittis_size is not None and bool(np.arccos(np.clip((off - 1) / 2, -1, 1)) < _NEARLY_ALIGNED)

    @cached_property
    def _camera_to_heading(self) -> Array:
        """float64 [2, 2]: (cos, sin) of rotation_y to the direction's x and y in the LiDAR frame.

        A box points along (cos, 0, -sin) in the camera frame.
        """
        rotation = self.lidar_to_rectified[:3, :3]
        return np.stack([rotation[0, :2], -rotation[2, :2]], axis=1)


def in_image(points: Array, calibration: Calibration) -> Array:
    """bool [N]: which LiDAR points [N, 3+] lie before the camera and inside its image.

    Raises ValueError when the calibration has no image size.
    """
    height, width = image_size_of(calibration)
    matrix = calibration.p2 @ calibration.lidar_to_rectified
    inside = np.zeros(len(points), bool)
    for piece in pieces(len(points)):
        u, v, w = transform(points[piece], matrix).T  # pixels times w
        inside[piece] = (w > 0) & (u >= 0) & (u < width * w) & (v >= 0) & (v < height * w)
    return inside


def image_size_of(calibration: Calibration) -> tuple[int, int]:
    """(height, width) of a calibration's image. Raises ValueError when it is not known."""
    if calibration.image_size is None:
        raise ValueError("the calibration has no image size (height, width)")
    return calibration.image_size


def check_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    """A size of images as it was given. Raises ValueError for anything but two positive whole numbers."""
    if len(image_size) != 2 or any(int(v) != v or v < 1 for v in image_size):
        raise ValueError(f"image_size must be height and width in pixels, got {list(image_size)}")
    return int(image_size[0]), int(image_size[1])


def pixels(camera: Array, p2: Array) -> Array:
    """Pixels [N, 2] of points [N, 3] in the rectified camera frame; not finite in the camera's plane."""
    image = transform(camera, p2)
    with np.errstate(divide="ignore", invalid="ignore"):
        places: Array = image[:, :2] / image[:, 2:]
    return places


def _check_rotation(name: str, matrix: Array) -> None:
    off = np.abs(matrix @ matrix.T - np.eye(3)).max()
    if off > _ROTATION_TOLERANCE or np.linalg.det(matrix) < 0:
        raise ValueError(f"{name} must hold a rotation, got {matrix.tolist()}")


def _key_and_values(line: str) -> tuple[str, str]:
    """ "R_rect 1 0 …" of the tracking benchmark is the same as "R_rect: 1 0 …"."""
    key, _, values = line.strip().replace(":", " ", 1).partition(" ")
    return key, values


def _name_of(key: str) -> str | None:
    for name, (_, keys) in _MATRICES.items():
        if key in keys:
            return name
    return key if key in (_ODOMETRY, _IMAGE_SIZE) else None


def _matrix(name: str, key: str, values: str, where: str) -> Array:
    shape = {_ODOMETRY: (3, 4), _IMAGE_SIZE: (2,)}.get(name) or _MATRICES[name][0]
    numbers = floats(values.split(), where)
    if len(numbers) != np.prod(shape):
        raise DataError(f"{where}: {key} must have {np.prod(shape)} numbers, got {len(numbers)}")
    return np.array(numbers).reshape(shape)


def _from_matrices(path: str | Path, found: dict[str, tuple[str, Array]]) -> Calibration:
    if _ODOMETRY in found and not {"R0_rect", "Tr_velo_to_cam"} & set(found):
        found |= {"R0_rect": ("R0_rect", np.eye(3)), "Tr_velo_to_cam": found[_ODOMETRY]}
    for name, (_, keys) in _MATRICES.items():
        if name not in found:
            raise DataError(f"{path}: calibration key {name!r} is missing (nor is there {', '.join(keys[1:])})")
    notes = [f"calibration: {key} read as {name}" for name, (key, _) in found.items() if key != name]
    size = found.get(_IMAGE_SIZE, ("", None))[1]
    try:
        p2, r0_rect, velo_to_cam = (found[name][1] for name in _MATRICES)
        return Calibration(p2, r0_rect, velo_to_cam, None if size is None else (size[1], size[0]), tuple(notes))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
