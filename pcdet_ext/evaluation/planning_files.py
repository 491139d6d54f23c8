"""Files of open-loop planning: arrays of truth and plans, and the frames that the boxes of the truth come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.json_numbers import real_array
from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.evaluation.planning import STEPS, Plans
from pcdet_ext.evaluation.quaternions import no_rotations, rotation_matrices, why_no_rotation
from pcdet_ext.files import DataError, paused_collection, read_arrays
from pcdet_ext.structures import Array

OFFSETS, KNOWN, BOXES, COUNTS, FOUND = "gt_ego_fut_trajs", "gt_ego_fut_masks", "fut_boxes", "fut_counts", "pred"
FROM_FRAMES = (KNOWN, BOXES, COUNTS)
NUMBERS = {"gt_boxes": 7, "num_lidar_pts": 0, "cam_front_ego2global_translation": 3, "cam_front_ego2global_rotation": 4}


def read_plans(ground_truth: Path, results: Path, frames: Path | None = None) -> Plans:
    """What `planning.evaluate` compares.

    Args:
        ground_truth: a file .npz with gt_ego_fut_trajs [N, 6, 2] (offsets from step to step), gt_ego_fut_masks [N, 6],
            and, without `frames`, fut_boxes [K, 7] and fut_counts [N, 6] (-1 for a step that is not there).
        results: a file .npz with pred [N, 6, 2], planned places.
        frames: a file .json with the frames of the samples in the same order, to take the boxes from.

    Raises:
        DataError: a file is missing or damaged, or an array has another shape or is not finite in a sample
            whose six steps are all known (others are not measured); the message names both.
    """
    offsets, masks = read_arrays(ground_truth, OFFSETS, KNOWN)
    (found,) = read_arrays(results, FOUND)
    samples = len(offsets) if offsets.ndim else 0
    _check(ground_truth, KNOWN, masks, (samples, STEPS))
    known = masks.astype(bool)
    measured = np.asarray(known.all(axis=1))
    _check(ground_truth, OFFSETS, offsets, (samples, STEPS, 2), measured)
    _check(results, FOUND, found, (samples, STEPS, 2), measured)
    if frames is not None:
        boxes, counts = future_boxes(frames, known)
    else:
        boxes, counts = read_arrays(ground_truth, BOXES, COUNTS)
        _check(ground_truth, COUNTS, counts, (samples, STEPS))
        most = len(boxes) if boxes.ndim else 0
        if ((counts < -1) | (counts > most) | (counts != np.round(counts))).any():
            raise DataError(f"{ground_truth}: {COUNTS} must be whole numbers from -1 to the {most} {BOXES}")
        counts = np.maximum(counts.astype(np.int64), 0)
        _check(ground_truth, BOXES, boxes, (int(counts.sum()), 7))
    return Plans(found.astype(np.float32), offsets.astype(np.float32), known, boxes.astype(np.float64), counts)


def _check(path: Path, name: str, array: Array, shape: tuple[int, ...], rows: Array | None = None) -> None:
    """Raise DataError for another shape, and for numbers that are not finite in the rows (bool [N]) that count."""
    if array.shape != shape:
        raise DataError(f"{path}: {name} must be {list(shape)}, got {list(array.shape)}")
    kinds = "buif" if name == KNOWN else "uif"
    if array.dtype.kind not in kinds or not np.isfinite(array if rows is None else array[rows]).all():
        raise DataError(f"{path}: {name} must be finite numbers")


@paused_collection()
def future_boxes(path: Path, known: Array) -> tuple[Array, Array]:
    """Boxes of the following frames in the frame of each sample.

    Args:
        path: a file .json with a list of frames: scene_token, gt_boxes [B, 7] around the vehicle, num_lidar_pts [B],
            cam_front_ego2global_translation and _rotation (w, x, y, z).
        known: bool [N, 6]; as many of the following frames are looked at as steps are known.

    Returns:
        Boxes float64 [K, 7] that have points, and int64 [N, 6], how many each step has.

    Raises:
        DataError: the file is damaged, or a frame's entry is missing or wrong; the message names both.
    """
    frames = _frames(path)
    if len(frames) != len(known):
        raise DataError(f"{path}: has {len(frames)} frames, there are {len(known)} samples")
    poses = [_pose(frame) for frame in frames]
    boxes: list[Array] = [np.zeros((0, 7))]
    counts = np.zeros((len(frames), STEPS), np.int64)
    for i, steps in enumerate(known.sum(axis=1).tolist()):
        for t in range(steps):
            j = i + t + 1
            if j >= len(frames) or frames[j]["scene_token"] != frames[i]["scene_token"]:
                break
            seen = frames[j]["gt_boxes"][frames[j]["num_lidar_pts"] > 0]
            boxes.append(_moved(seen, np.linalg.inv(poses[i]) @ poses[j]))
            counts[i, t] = len(seen)
    return np.concatenate(boxes), counts


def _frames(path: Path) -> Sequence[Mapping[str, Any]]:
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of frames, got {type(content).__name__}")
    return [_frame(f"{path}: frame {i}", entry) for i, entry in enumerate(content)]


def _frame(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("scene_token"), str):
        raise DataError(f"{where}: needs a scene_token, a text")
    found: dict[str, Any] = {"scene_token": entry["scene_token"]}
    count = len(entry["gt_boxes"]) if isinstance(entry.get("gt_boxes"), list) else 0
    for key, width in NUMBERS.items():
        shape = {"gt_boxes": (count, 7), "num_lidar_pts": (count,)}.get(key, (width,))
        try:
            found[key] = real_array(entry[key]).reshape(shape)
        except (KeyError, ValueError, TypeError, OverflowError):
            raise DataError(f"{where}: {key} must be numbers {list(shape)}, got {str(entry.get(key))[:80]}") from None
        if not np.isfinite(found[key]).all():
            raise DataError(f"{where}: {key} is not finite")
    rotation = found["cam_front_ego2global_rotation"]
    if len(no_rotations(rotation[None])):
        raise DataError(f"{where}: cam_front_ego2global_rotation: {why_no_rotation(rotation)}")
    return found


def _pose(frame: Mapping[str, Any]) -> Array:
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrices(frame["cam_front_ego2global_rotation"][None])[0]
    pose[:3, 3] = frame["cam_front_ego2global_translation"]
    return pose


def _moved(boxes: Array, transform: Array) -> Array:
    """Boxes under a transform; the yaw is that of the turned direction's shadow on the ground."""
    moved = boxes.copy()
    moved[:, :3] = boxes[:, :3] @ transform[:3, :3].T + transform[:3, 3]
    way = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=1) @ transform[:2, :2].T
    moved[:, 6] = np.arctan2(way[:, 1], way[:, 0])
    return moved
