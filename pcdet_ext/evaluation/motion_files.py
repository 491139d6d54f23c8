"""Files of motion forecasts: results with trajectories, and the true ones of a JSON file or of the released tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.json_numbers import real_array
from pcdet_ext.evaluation.motion import STEPS, Futures
from pcdet_ext.evaluation.nuscenes import Samples
from pcdet_ext.evaluation.nuscenes_columns import LARGEST, NONE, Table, read_table
from pcdet_ext.evaluation.nuscenes_files import Submission, boxes_of_rows, read_truth_rows
from pcdet_ext.evaluation.nuscenes_tables import CAMERA, Tables
from pcdet_ext.evaluation.nuscenes_truth import detection_truth_rows, rotations
from pcdet_ext.evaluation.quaternions import rotation_matrices, yaws
from pcdet_ext.files import DataError, paused_collection
from pcdet_ext.structures import Array

HORIZON_MICROSECONDS = 6_150_000  # a step must be earlier than this after its sample
_Rows = Sequence[tuple[int, Any]]


@paused_collection()
def read_results(path: Path | Submission, tokens: Sequence[str]) -> Futures:
    """Detections with `trajs` [modes, 12, 2] each: places in the frame of the vehicle at the front camera's time.

    The rest is a nuScenes detection submission; attributes do not matter. Raises DataError as that does, and for
    trajectories of another shape or with numbers that are not finite; the message names the file and the sample.
    """
    submission = path if isinstance(path, Submission) else Submission.read(path)
    rows, names = submission.rows(tokens)
    boxes = boxes_of_rows(submission.path, _without_attributes(rows), names, is_truth=False)
    return Futures(boxes, _modes(submission.path, rows, names), np.full(len(rows), STEPS))


def _without_attributes(rows: _Rows) -> _Rows:
    return [(i, {**box, "attribute_name": ""} if isinstance(box, Mapping) else box) for i, box in rows]


def _modes(path: Path, rows: _Rows, names: Sequence[str]) -> Array:
    """float32 [N, modes, 12, 2]; where boxes differ in their number of modes, the first stands for missing ones."""
    found = [_paths(f"{path}: sample {names[i]}", "trajs", box, (-1, STEPS, 2)) for i, box in rows]
    most = max((len(modes) for modes in found), default=1)
    modes = np.empty((len(found), most, STEPS, 2), np.float32)
    for row, own in zip(modes, found, strict=True):
        row[: len(own)], row[len(own) :] = own, own[:1]
    return modes


def _paths(where: str, key: str, box: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    """Places of a box, checked against a shape, whose -1 stands for one or more."""
    try:
        places = real_array(box[key])
    except KeyError:
        raise DataError(f"{where}: a box without {key!r}") from None
    except (ValueError, TypeError, OverflowError):
        places = np.full(1, np.nan)
    expected = [size if size >= 0 else "modes" for size in shape]
    fits = len(places.shape) == len(shape)
    if not fits or not all(size and want in (-1, size) for size, want in zip(places.shape, shape, strict=True)):
        raise DataError(f"{where}: {key} must be numbers {expected}, got {str(box[key])[:60]}")
    if not (np.abs(places) <= LARGEST).all():
        raise DataError(f"{where}: {key} has numbers that are not finite or beyond {LARGEST:g}")
    return places


@paused_collection()
def read_ground_truth(path: Path) -> tuple[Futures, Samples]:
    """Ground truth of a JSON file with `samples` (ego_translation) and `gt_boxes` by sample token.

    Each box has `traj` [k, 2], its next places, k from 0 to 12. Raises DataError as `nuscenes_files.read_ground_truth`.
    """
    rows, samples, _ = read_truth_rows(path, racks=False)
    boxes = boxes_of_rows(path, _without_attributes(rows), samples.tokens, is_truth=True)
    paths, lengths = np.zeros((len(rows), STEPS, 2)), np.zeros(len(rows), np.int64)
    for n, (i, box) in enumerate(rows):
        if box.get("traj") == []:
            continue
        own = _paths(f"{path}: sample {samples.tokens[i]}", "traj", box, (-1, 2))
        if len(own) > STEPS:
            raise DataError(f"{path}: sample {samples.tokens[i]}: traj has {len(own)} places, {STEPS} at most")
        paths[n, : len(own)], lengths[n] = own, len(own)
    return Futures(boxes, paths, lengths), samples


def tables_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Futures, Samples]:
    """Ground truth of some samples out of the released tables.

    A path's steps are the annotations of the same object that follow, whatever their times, as published; they end
    6.15 s after the sample. Raises DataError that names the table and the row where one is wrong.
    """
    rows, boxes, samples = detection_truth_rows(tables, tokens)
    following = _following(tables, rows)
    translation, rotation = _camera_poses(tables, tokens)
    turns = rotation_matrices(rotation)[boxes.sample]  # from the vehicle's frame to the global one
    centre = np.einsum("nji,nj->ni", turns, boxes.translation - translation[boxes.sample])
    axes = np.einsum("nji,njk->nik", turns, rotation_matrices(boxes.rotation))
    angle = np.arctan2(axes[:, 1, 0], axes[:, 0, 0]) - yaws(boxes.rotation)
    known = following != NONE
    places = tables.annotation.check_finite("translation", following[known])[:, :2]
    moved = np.zeros((len(rows), STEPS, 2))
    moved[known] = places - np.repeat(boxes.translation[:, :2], known.sum(axis=1), axis=0)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = np.stack([cos * moved[..., 0] - sin * moved[..., 1], sin * moved[..., 0] + cos * moved[..., 1]], axis=2)
    paths = np.where(known[..., None], turned + centre[:, None, :2], 0.0)
    return Futures(boxes, paths, known.sum(axis=1)), samples


def _following(tables: Tables, rows: Array) -> Array:
    """int64 [N, 12]: rows of the annotations that follow some of them, NONE after the last."""
    table = tables.annotation
    start = _microseconds(tables, rows)
    found = np.full((len(rows), STEPS), NONE)
    current, alive = rows.copy(), np.arange(len(rows))
    for step in range(STEPS):
        after = table.optional_rows(table, "next", current[alive])
        alive, after = alive[after != NONE], after[after != NONE]
        soon = _microseconds(tables, after) - start[alive] < HORIZON_MICROSECONDS
        alive, after = alive[soon], after[soon]
        found[alive, step] = current[alive] = after
    return found


def _microseconds(tables: Tables, rows: Array) -> Array:
    return tables.sample.whole("timestamp", tables.sample.rows(tables.annotation, "sample_token", rows))


def _camera_poses(tables: Tables, tokens: Sequence[str]) -> tuple[Array, Array]:
    """Where the vehicle was at the key frame of each sample's front camera: float64 [S, 3] and quaternions [S, 4]."""
    wanted = tables.calibrations(CAMERA)
    texts = dict.fromkeys(("sample_token", "ego_pose_token"), str)
    files = read_table(
        tables.folder / "sample_data.json",
        texts,
        lambda row: bool(row["is_key_frame"]) and row["calibrated_sensor_token"] in wanted,
    )
    frame = {token: i for i, token in enumerate(files.texts["sample_token"])}
    for token in tokens:
        if token not in frame:
            raise DataError(f"{files.path}: no key frame of {CAMERA} for the sample {token}")
    poses = _poses(tables, set(files.texts["ego_pose_token"]))
    rows = poses.rows(files, "ego_pose_token", np.array([frame[token] for token in tokens], np.int64))
    return poses.check_finite("translation", rows), rotations(poses, rows)


def _poses(tables: Tables, wanted: set[str]) -> Table:
    columns = {"translation": 3, "rotation": 4}
    return read_table(tables.folder / "ego_pose.json", columns, lambda row: row["token"] in wanted, needed=())
