"""KITTI's label and result files, and boxes in the LiDAR frame from and to their rows.

A camera box stands on its location (bottom centre) and turns by rotation_y about the camera's y axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.geometry import wrap_angle
from pcdet_ext.data.kitti.calibration import Calibration, image_size_of, pixels
from pcdet_ext.data.text import floats, read_lines
from pcdet_ext.evaluation.kitti_labels import Labels, difficulty
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Detections, Targets

NEAR = 0.1  # metres before the camera: parts of a box nearer than this are cut off before projecting
COLUMNS = 15  # of a label; results and some labels have one more, tracking labels two more in front

_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)], np.int64
)
_Rows = list[tuple[int, list[str]]]  # line number and columns


def read_labels(path: str | Path, with_scores: bool | None = None) -> Labels:
    """Read a label (15 columns) or result file (16, the last is the score); an empty file has no objects.

    Rows of the tracking benchmark, which begin with frame and track number, are read too, when all are of one frame.

    Args:
        path: the file.
        with_scores: True demands scores; False leaves a 16th column of labels aside, whatever it means, with a note;
            None takes what is there.

    Raises:
        DataError: naming file and line for another number of columns, and for what is no finite number.
    """
    rows = [(i, line.split()) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    rows, track_ids, notes = _without_tracks(path, rows)
    width = _label_width(path, rows, with_scores, shift=0 if track_ids is None else 2)
    table = np.empty((len(rows), width - 1), np.float64)
    for row, (number, fields) in zip(table, rows, strict=True):
        row[:] = floats(fields[1:], f"{path}:{number}")
    occlusion = table[:, 1].astype(np.int64)
    if (wrong := np.flatnonzero(occlusion != table[:, 1])).size:
        number, fields = rows[wrong[0]]
        raise DataError(f"{path}:{number}: occlusion must be a whole number, got {fields[2]}")
    if width > COLUMNS and with_scores is False:
        notes = (*notes, f"labels: column {width} is not used")
    return Labels(
        names=tuple(fields[0] for _, fields in rows),
        truncation=table[:, 0],
        occlusion=occlusion,
        alpha=table[:, 2],
        bbox=table[:, 3:7],
        dimensions=table[:, 7:10],
        location=table[:, 10:13],
        rotation_y=table[:, 13],
        scores=table[:, 14] if width > COLUMNS and with_scores is not False else None,
        track_ids=track_ids,
        notes=notes,
    )


def boxed(labels: Labels) -> Labels:
    """The rows that have a box in space: no DontCare regions, and no objects of which only the image tells."""
    labels = labels.objects()
    return labels.select(labels.dimensions.min(axis=1, initial=np.inf) > 0)


def labels_to_boxes(labels: Labels, calibration: Calibration) -> Targets:
    """Boxes float32 [M, 7] in the LiDAR frame of the rows that have one (see `boxed`), with difficulty and track ids.

    A box stays upright in the LiDAR frame: its bottom centre is transformed; for its heading see
    `Calibration.heading_of`.
    """
    labels = boxed(labels)
    height, width, length = labels.dimensions.T
    centre = calibration.camera_to_lidar(labels.location)
    centre[:, 2] += height / 2
    heading = calibration.heading_of(labels.rotation_y)
    boxes = np.column_stack([centre, length, width, height, heading]).astype(np.float32)
    return Targets.of_names(boxes, labels.names, difficulty=difficulty(labels), track_ids=labels.track_ids)


def boxes_to_labels(
    boxes: Array, names: Sequence[str], calibration: Calibration, scores: Array | None = None
) -> Labels:
    """Rows in the camera's frame for boxes in the LiDAR's: the inverse of `labels_to_boxes`.

    bbox is the hull of the box's projection clipped to the image, zero where the box lies behind the camera; truncation
    and occlusion are -1 (not stated).

    Args:
        boxes: floating-point [N, 7 or 9] (x, y, z, dx, dy, dz, heading, …), z at the centre.
        names: one class name per box.
        calibration: between sensor and camera, with the size of the image.
        scores: [N], or None for labels.

    Raises:
        ValueError: the calibration has no image size.
    """
    boxes = np.asarray(boxes, np.float64)
    bottom = boxes[:, :3].copy()
    bottom[:, 2] -= boxes[:, 5] / 2
    location = calibration.lidar_to_camera(bottom)
    dimensions = boxes[:, [5, 4, 3]]
    rotation_y = calibration.rotation_y_of(boxes[:, 6])
    bbox = image_boxes(camera_corners(dimensions, location, rotation_y), calibration.p2)
    return Labels(
        names=tuple(names),
        truncation=np.full(len(boxes), -1.0),
        occlusion=np.full(len(boxes), -1, np.int64),
        alpha=wrap_angle(rotation_y - np.arctan2(location[:, 0], location[:, 2])),
        bbox=clip_to_image(bbox, image_size_of(calibration)),
        dimensions=dimensions,
        location=location,
        rotation_y=rotation_y,
        scores=None if scores is None else np.asarray(scores, np.float64),
    )


def result_rows(detections: Detections, calibration: Calibration) -> Labels:
    """Detections (NumPy) as rows of a result file: those of which the camera sees a part.

    Raises ValueError when the calibration has no image size.
    """
    scores = np.asarray(detections.scores, np.float64)
    rows = boxes_to_labels(np.asarray(detections.boxes), detections.names, calibration, scores)
    return rows.select((rows.bbox[:, 2] > rows.bbox[:, 0]) & (rows.bbox[:, 3] > rows.bbox[:, 1]))


def camera_corners(dimensions: Array, location: Array, rotation_y: Array) -> Array:
    """Corners of boxes in the camera's frame.

    Args:
        dimensions: [N, 3], height, width and length in metres.
        location: [N, 3], middle of the bottom (x right, y down, z forward).
        rotation_y: [N], about the y axis, in radians.

    Returns:
        float64 [N, 8, 3], the four corners of the bottom first, each face in turn.
    """
    height, width, length = np.asarray(dimensions, np.float64)[:, :, None].transpose(1, 0, 2)
    x = length / 2 * np.array([1, 1, -1, -1, 1, 1, -1, -1])
    z = width / 2 * np.array([1, -1, -1, 1, 1, -1, -1, 1])
    y = -height * np.array([0, 0, 0, 0, 1, 1, 1, 1])
    cos, sin = np.cos(rotation_y)[:, None], np.sin(rotation_y)[:, None]
    offset = np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=2)
    return np.asarray(offset + np.asarray(location)[:, None])


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
    places = pixels(points.reshape(-1, 3), p2).reshape(*points.shape[:2], 2)
    low = np.where(seen[..., None], places, np.inf).min(axis=1)
    high = np.where(seen[..., None], places, -np.inf).max(axis=1)
    return np.where(np.asarray(seen.any(axis=1))[:, None], np.concatenate([low, high], axis=1), 0.0)


def clip_to_image(bbox: Array, image_size: tuple[int, int]) -> Array:
    """2D boxes [N, 4] clipped to the pixels of an image (height, width)."""
    height, width = image_size
    limit = np.array([width - 1, height - 1, width - 1, height - 1], np.float64)
    return np.asarray(np.clip(bbox, 0.0, limit))


def _without_tracks(path: str | Path, rows: _Rows) -> tuple[_Rows, Array | None, tuple[str, ...]]:
    """Rows without the two columns that the tracking benchmark puts in front, and the track ids, where it does."""
    if not rows or not all(len(f) > 2 and _is_int(f[0]) and _is_int(f[1]) and not _is_number(f[2]) for _, f in rows):
        return rows, None, ()
    frames = sorted({int(fields[0]) for _, fields in rows})
    if len(frames) > 1:
        raise DataError(
            f"{path}: rows of {len(frames)} frames ({frames[0]} to {frames[-1]}): a tracking label file of a whole "
            "sequence, which must be split into one file per frame"
        )
    tracks = np.array([int(fields[1]) for _, fields in rows], np.int64)
    return [(i, fields[2:]) for i, fields in rows], tracks, ("labels: rows of the tracking benchmark",)


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label_width(path: str | Path, rows: _Rows, with_scores: bool | None, shift: int) -> int:
    """Columns of every row; shift: columns that stood in front, for messages."""
    if not rows:
        return COLUMNS + (with_scores is True)
    width = COLUMNS + 1 if with_scores else len(rows[0][1])
    allowed = (COLUMNS + 1,) if with_scores else (COLUMNS, COLUMNS + 1)
    expected = (
        str(allowed[0] + shift) if with_scores else f"{COLUMNS + shift} (label) or {COLUMNS + 1 + shift} (result)"
    )
    for number, fields in rows:
        if len(fields) != width or width not in allowed:
            raise DataError(f"{path}:{number}: a line must have {expected} columns, got {len(fields) + shift}")
    return width
