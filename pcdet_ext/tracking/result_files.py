"""Tracking on result files: detections of the nuScenes format in, a submission to its tracking benchmark out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.nuscenes import CLASSES, Boxes
from pcdet_ext.evaluation.nuscenes_files import MAX_BOXES, Submission, read_json
from pcdet_ext.evaluation.nuscenes_tables import is_tables, read_tables
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES as TRACKED_CLASSES
from pcdet_ext.evaluation.nuscenes_truth import tokens_of_scenes
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.tracking.base import BoxTracker, StillBoxes, TrackedBoxes

MICROSECOND = 1e-6
LATEST = 1e11  # seconds, in the year 5138: what is later is no time


@dataclass(frozen=True)
class Frame:
    """A frame of a sequence: scene; token, the name of the frame; time in seconds."""

    scene: str
    token: str
    time: float


def read_frames(path: Path, samples: Iterable[str]) -> list[Frame]:
    """When the frames were, scene after scene and in their order.

    Args:
        path: a folder with the released tables; a JSON file with `samples` (scene, timestamp in µs) by token; or one
            with `frames`: a list of token, timestamp in seconds, and first, true where a scene starts.
        samples: tokens of the results: of the tables, only their scenes are read.

    Raises:
        DataError: that names the file and the frame where something is missing or wrong.
    """
    if is_tables(path):
        tables = read_tables(path)
        tokens = tokens_of_scenes(tables, None, list(samples))
        rows = tables.sample.find(tokens)
        times = (tables.sample.whole("timestamp", rows) * MICROSECOND).tolist()
        return _in_order(
            Frame(tables.scene_names[row], token, time)
            for row, token, time in zip(rows.tolist(), tokens, times, strict=True)
        )
    content = read_json(path)
    if isinstance(content, Mapping) and isinstance(content.get("frames"), list):
        return _listed(path, content["frames"])
    if isinstance(content, Mapping) and isinstance(content.get("samples"), Mapping):
        return _in_order(
            _sample(f"{path}: sample {token}", token, entry) for token, entry in content["samples"].items()
        )
    raise DataError(f"{path}: expected the released tables, or JSON with 'samples' or 'frames'")


def _in_order(frames: Iterable[Frame]) -> list[Frame]:
    return sorted(frames, key=lambda frame: (frame.scene, frame.time))


def _sample(where: str, token: str, entry: Any) -> Frame:
    scene, time = (entry.get(key) if isinstance(entry, Mapping) else None for key in ("scene", "timestamp"))
    if not isinstance(scene, str) or type(time) is not int or abs(time) >= LATEST / MICROSECOND:
        raise DataError(f"{where}: needs a scene (a text) and a timestamp (µs), has {scene!r} and {time!r}")
    return Frame(scene, token, time * MICROSECOND)


def _listed(path: Path, entries: Sequence[Any]) -> list[Frame]:
    frames: list[Frame] = []
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        values = [entry.get(key) if isinstance(entry, Mapping) else None for key in ("token", "timestamp", "first")]
        token, time, first = values
        no_time = not isinstance(time, int | float) or isinstance(time, bool) or not abs(time) < LATEST  # or NaN
        if not isinstance(token, str) or time is None or no_time or not isinstance(first, bool):
            raise DataError(f"{path}: frame {i}: needs token, timestamp (seconds) and first (true or false): {values}")
        if token in seen:
            raise DataError(f"{path}: frame {i}: the token {token} is there twice")
        seen.add(token)
        scene = str(i) if first or not frames else frames[-1].scene
        frames.append(Frame(scene, token, float(time)))
    return frames


def track_submission(submission: Submission, frames: Sequence[Frame], tracker: BoxTracker) -> dict[str, Any]:
    """A submission to the tracking benchmark.

    Args:
        submission: detections.
        frames: of the sequences, see `read_frames`; the submission must have exactly these.
        tracker: is reset before each scene.

    Returns:
        The submission, in plain types. Boxes of classes that are not tracked are left out, and of more than 500 boxes
        in a frame those with the lowest scores.

    Raises:
        DataError: as `Submission.detections`.
    """
    boxes, tokens = submission.detections([frame.token for frame in frames])
    order = np.argsort(boxes.sample, kind="stable")
    starts = np.searchsorted(boxes.sample[order], np.arange(len(tokens) + 1))
    results: dict[str, Any] = {}
    place = 0
    for _, scene in groupby(frames, key=lambda frame: frame.scene):
        tracker.reset()
        for frame in scene:
            rows = order[starts[place] : starts[place + 1]]
            own = boxes.select(rows)
            found = tracker.associate(still_boxes(own), CLASSES, frame.time)
            results[frame.token] = list(_entries(frame.token, own, found))
            place += 1
    return {"meta": dict(submission.meta), "results": results}


def still_boxes(boxes: Boxes) -> StillBoxes:
    """Boxes of the nuScenes format: sizes are width, length, height there; the heading is that of the ground plane."""
    heading = yaws(boxes.rotation)[:, None] if len(boxes) else np.zeros((0, 1))
    label = np.array([CLASSES.index(name) for name in boxes.name.tolist()], np.int64)
    box = np.concatenate([boxes.translation, boxes.size[:, [1, 0, 2]], heading], axis=1)
    return StillBoxes(box, boxes.velocity, label, boxes.score)


def _entries(token: str, own: Boxes, found: TrackedBoxes) -> Iterator[dict[str, Any]]:
    tracked = np.isin(np.array(CLASSES)[found.boxes.label], TRACKED_CLASSES)
    best = np.argsort(-found.boxes.score, kind="stable")
    kept = np.sort(best[tracked[best]][:MAX_BOXES])
    given = still_boxes(own).box
    for i in kept.tolist():
        box, velocity, row = found.boxes.box[i], found.boxes.velocity[i], int(found.row[i])
        unmoved = row >= 0 and np.array_equal(box, given[row])
        yield {
            "sample_token": token,
            "translation": box[:3].tolist(),
            "size": box[[4, 3, 5]].tolist(),
            "rotation": own.rotation[row].tolist() if unmoved else _quaternion(box[6]),
            "velocity": np.nan_to_num(velocity).tolist(),
            "tracking_id": str(found.number[i]),
            "tracking_name": CLASSES[found.boxes.label[i]],
            "tracking_score": float(found.boxes.score[i]),
        }


def _quaternion(heading: float) -> list[float]:
    return [float(np.cos(heading / 2)), 0.0, 0.0, float(np.sin(heading / 2))]


def write_submission(path: Path, content: Mapping[str, Any]) -> None:
    """Write a submission; a file that exists is replaced when all is written.

    Raises DataError, and writes nothing, where a number is not finite: JSON has no such numbers.
    """
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{path}: not written, {_not_finite(content)} is not finite") from error
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _not_finite(content: Any, where: str = "") -> str:
    """Where the first number that is not finite is, as keys with dots between them; empty where all are finite."""
    if isinstance(content, float):
        return "" if np.isfinite(content) else where
    if isinstance(content, Mapping):
        parts = list(content.items())
    else:
        parts = list(enumerate(content)) if isinstance(content, list | tuple) else []
    found = (_not_finite(value, f"{where}.{key}" if where else str(key)) for key, value in parts)
    return next((place for place in found if place), "")


def has_truth(path: Path) -> bool:
    """Whether the tracks can be measured with what `read_frames` reads: the tables, or JSON with gt_boxes."""
    if is_tables(path):
        return True
    content = read_json(path)
    return isinstance(content, Mapping) and "gt_boxes" in content
