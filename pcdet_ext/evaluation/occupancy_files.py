"""Files of occupancy: Occ3D's labels, predictions, and the poses of frames that rays are cast from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.evaluation.nuscenes_tables import Tables, is_tables, read_tables
from pcdet_ext.evaluation.nuscenes_truth import rotations
from pcdet_ext.evaluation.occupancy import Occupancy, OccupancyCounts, OccupancyResult
from pcdet_ext.evaluation.occupancy_rays import Pose, origins
from pcdet_ext.evaluation.quaternions import no_rotations, rotation_matrices, why_no_rotation
from pcdet_ext.files import DataError, MissingFileError, read_arrays
from pcdet_ext.structures import Array

# Arrays of each side; those after the first may be missing.
TRUTH = {
    "labels": "semantics", "flow": "flow", "instances": "instances",
    "mask_lidar": "mask_lidar", "mask_camera": "mask_camera",
}  # fmt: skip
FOUND = {"labels": "pred", "flow": "pred_flow", "instances": "pred_instances"}
POSE = {"lidar2ego_translation": 3, "lidar2ego_rotation": 4, "ego2global_translation": 3, "ego2global_rotation": 4}
Frames = Iterator[tuple[str, Occupancy, Occupancy]]


def evaluate(ground_truth: Path, results: Path, poses: Path | None = None) -> OccupancyResult:
    """The metrics of files.

    Args:
        ground_truth: Occ3D's folder (SCENE/TOKEN/labels.npz with `semantics`, `mask_lidar`, `mask_camera`; `flow` and
            `instances` may be there), or a file .npz with these arrays for N frames, [N, 200, 200, 16].
        results: a folder of TOKEN.npz with `pred` (and `pred_flow`, `pred_instances`), or a file with these for N
            frames.
        poses: where the LiDAR was in all frames of the scenes, in their order: a file .json, see `read_poses`, or a
            folder with the released tables. Frames of a file .npz are those of the .json, one by one. Without poses,
            only voxels are measured.

    Raises:
        DataError: that names the file and the array where something is missing, damaged, or of another shape.
    """
    places = read_poses(poses) if poses is not None else []
    row = {pose.token: i for i, pose in enumerate(places)}
    counts = OccupancyCounts()
    frames = _folder(ground_truth, results) if ground_truth.is_dir() else _packed(ground_truth, results, places)
    measured = 0
    for name, truth, found in frames:
        measured += 1
        if places and name not in row:
            raise DataError(f"{poses}: has no frame {name!r}")
        starts = origins(places, row[name]) if places else None
        try:
            counts.add(truth, found, starts)
        except ValueError as error:
            raise DataError(f"{results}: frame {name}: {error}") from error
    if not measured:
        raise DataError(f"{ground_truth}: has no frame: there is nothing to measure")
    return counts.result()


def _folder(ground_truth: Path, results: Path) -> Frames:
    files = sorted(ground_truth.glob("*/*/labels.npz"))
    if not files:
        raise MissingFileError(f"{ground_truth}: no SCENE/TOKEN/labels.npz in it")
    for file in files:
        name = file.parent.name
        yield name, _occupancy(file, TRUTH), _occupancy(results / f"{name}.npz", FOUND)


def _packed(ground_truth: Path, results: Path, poses: Sequence[Pose]) -> Frames:
    sides = [_arrays(ground_truth, TRUTH), _arrays(results, FOUND)]
    counts = {len(value) for side in sides for value in side.values()} | ({len(poses)} if poses else set())
    if len(counts) > 1:
        raise DataError(f"{results}: the arrays of both sides, and the poses, differ in their number: {sorted(counts)}")
    for i in range(*counts):
        truth, found = (
            _checked(path, {name: value[i] for name, value in side.items()})
            for path, side in zip((ground_truth, results), sides, strict=True)
        )
        yield poses[i].token if poses else str(i), truth, found


def _occupancy(path: Path, names: Mapping[str, str]) -> Occupancy:
    return _checked(path, _arrays(path, names))


def _arrays(path: Path, names: Mapping[str, str]) -> dict[str, Array]:
    """The arrays of a file that are there, by the field of `Occupancy` that they are for; the first must be."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no readable .npz ({error})") from error
    first = next(iter(names))
    wanted = [field for field, name in names.items() if field == first or name in there]
    found = dict(zip(wanted, read_arrays(path, *(names[field] for field in wanted)), strict=True))
    for field, value in found.items():
        if value.dtype.kind not in "bui" and not (field == "flow" and value.dtype.kind == "f"):
            raise DataError(f"{path}: {names[field]} must be {'numbers' if field == 'flow' else 'whole numbers'}")
        if field == "flow" and not np.isfinite(value).all():
            raise DataError(f"{path}: {names[field]} is not finite")
    return found


def _checked(path: Path, arrays: Mapping[str, Array]) -> Occupancy:
    labels = arrays["labels"]
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise DataError(f"{path}: labels go from {labels.min()} to {labels.max()}, expected 0 to 255")
    try:
        return Occupancy(**{**arrays, "labels": labels.astype(np.uint8, copy=False)})
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_poses(path: Path) -> list[Pose]:
    """Poses of frames: a list in JSON, or the key frames of the released tables.

    An entry of the list has scene_name, token, lidar2ego_translation and _rotation, ego2global_translation and
    _rotation (w, x, y, z). Raises DataError that names the file and what is wrong in it.
    """
    if is_tables(path):
        return _table_poses(read_tables(path))
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of frames, got {type(content).__name__}")
    poses = [_pose(f"{path}: frame {i}", entry) for i, entry in enumerate(content)]
    if len({pose.token for pose in poses}) < len(poses):
        raise DataError(f"{path}: several frames have the same token")
    return poses


def _pose(where: str, entry: Any) -> Pose:
    texts = [entry.get(key) if isinstance(entry, Mapping) else None for key in ("scene_name", "token")]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: needs scene_name and token, two texts")
    numbers = {key: _numbers(f"{where}: {key}", entry.get(key), width) for key, width in POSE.items()}
    moves = [
        _matrix(numbers[f"{name}_translation"], numbers[f"{name}_rotation"]) for name in ("lidar2ego", "ego2global")
    ]
    return Pose(str(texts[0]), str(texts[1]), *moves)


def _numbers(where: str, value: Any, width: int) -> Array:
    good = isinstance(value, list) and len(value) == width and all(type(v) in (int, float) for v in value)
    try:
        found = np.array(value if good else [np.nan] * width, np.float64)
    except OverflowError:  # a whole number that no float holds
        found = np.full(width, np.inf)
    if not np.isfinite(found).all():
        raise DataError(f"{where} must be {width} finite numbers, got {str(value)[:80]}")
    if width == 4 and len(no_rotations(found[None])):
        raise DataError(f"{where}: {why_no_rotation(found)}")
    return found


def _matrix(translation: Array, rotation: Array) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_matrices(rotation[None])[0], translation
    return matrix


def _table_poses(tables: Tables) -> list[Pose]:
    keys = tables.key_frame
    sensors = tables.calibration.rows(tables.lidar, "calibrated_sensor_token", keys)
    egos = tables.ego_pose.rows(tables.lidar, "ego_pose_token", keys)
    moves = [
        (table.check_finite("translation", rows), rotations(table, rows))
        for table, rows in ((tables.calibration, sensors), (tables.ego_pose, egos))
    ]
    times = tables.sample.whole("timestamp")
    seen: dict[tuple[str, int], str] = {}
    for scene, time, token in zip(tables.scene_names, times.tolist(), tables.sample.tokens, strict=True):
        if (other := seen.setdefault((scene, time), token)) != token:
            raise DataError(f"{tables.sample.path}: samples {other} and {token} of {scene} have the same timestamp")
    return [
        Pose(tables.scene_names[i], tables.sample.tokens[i], *(_matrix(place[i], turn[i]) for place, turn in moves))
        for i in np.argsort(times, kind="stable").tolist()
    ]
