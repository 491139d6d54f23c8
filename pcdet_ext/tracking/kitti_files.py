"""Tracking on KITTI results: detections of the frames of the tracking benchmark in, its result files out.

KITTI's results do not say how the vehicle moved, so boxes are tracked relative to it, in a frame whose x axis points
ahead. Frames are a tenth of a second apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcdet_ext.data.kitti.labels import read_labels
from pcdet_ext.data.text import floats, read_lines
from pcdet_ext.evaluation.kitti_labels import Labels
from pcdet_ext.evaluation.kitti_tracking_files import find_sequence_map, read_sequence_map
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array
from pcdet_ext.tracking.base import BoxTracker, StillBoxes, TrackedBoxes

PERIOD = 0.1  # seconds between frames
CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person", "Cyclist", "Tram", "Misc")
COLUMNS = 18  # frame, track number, type, truncation, occlusion, alpha, box, size, place, rotation, score
Sequences = Mapping[str, Sequence[Labels]]  # detections of each frame, by the name of the sequence


def is_tracking_folder(path: Path) -> bool:
    """Whether a folder is of the tracking benchmark: it has a list of sequences."""
    return path.is_dir() and any(path.glob("evaluate_tracking.seqmap*"))


def read_detections(results: Path, data: Path) -> Sequences:
    """Detections of all frames of the sequences.

    Args:
        results: a folder that has of each sequence SEQUENCE.txt, with rows as of the tracking benchmark and scores,
            whose track numbers are not looked at; or SEQUENCE/FRAME.txt or SEQUENCE_FRAME.txt, frames having six
            digits, as `pcdet test` writes them. Of a frame without a file nothing was detected.
        data: a folder with evaluate_tracking.seqmap*.

    Raises:
        DataError: a line or a file is damaged, or nothing is there of a sequence; the message names it.
    """
    lengths = read_sequence_map(find_sequence_map(data))
    return {name: _sequence(results, name, length) for name, length in lengths.items()}


def _sequence(results: Path, name: str, length: int) -> list[Labels]:
    whole = results / f"{name}.txt"
    if whole.is_file():
        return _frames_of(whole, length)
    pattern = f"{name}/%06d.txt" if (results / name).is_dir() else f"{name}_%06d.txt"
    places = [results / (pattern % frame) for frame in range(length)]
    if not any(place.is_file() for place in places):
        raise MissingFileError(f"{results}: has neither {whole.name} nor {name}/000000.txt nor {name}_000000.txt, …")
    none = Labels.empty(scores=True)
    return [read_labels(place, with_scores=True).objects() if place.is_file() else none for place in places]


def _frames_of(path: Path, length: int) -> list[Labels]:
    """The detections of each frame, out of a file of a whole sequence."""
    rows: list[list[tuple[str, list[float]]]] = [[] for _ in range(length)]
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != COLUMNS:
            raise DataError(f"{path}:{number}: expected {COLUMNS} columns, with a score, got {len(fields)}")
        values = floats([*fields[:2], *fields[3:]], f"{path}:{number}")
        frame = int(values[0])
        if frame != values[0] or not 0 <= frame < length:
            raise DataError(f"{path}:{number}: frame {fields[0]} is not in the sequence, which has {length} frames")
        rows[frame].append((fields[2], list(values)))
    return [_labels(frame) for frame in rows]


def _labels(rows: Sequence[tuple[str, Sequence[float]]]) -> Labels:
    table = np.array([values for _, values in rows], np.float64).reshape(len(rows), COLUMNS - 1)
    return Labels(
        names=tuple(name for name, _ in rows),
        truncation=table[:, 2],
        occlusion=table[:, 3].astype(np.int64),
        alpha=table[:, 4],
        bbox=table[:, 5:9],
        dimensions=table[:, 9:12],
        location=table[:, 12:15],
        rotation_y=table[:, 15],
        scores=table[:, 16],
    ).objects()


def tracked(sequences: Sequences, tracker: BoxTracker) -> dict[str, list[Labels]]:
    """The detections that are tracks, with numbers, frame by frame.

    Boxes stay those of the detections, because the benchmark compares them in the image; tracks that are not found in a
    frame are left out for the same reason. Scores are those of the tracker.
    """
    found: dict[str, list[Labels]] = {}
    for name, frames in sequences.items():
        tracker.reset()
        found[name] = [
            _numbered(own, tracker.associate(_still(own), CLASSES, PERIOD * i)) for i, own in enumerate(frames)
        ]
    return found


def _still(own: Labels) -> StillBoxes:
    """Boxes with x ahead, y to the left and z up, out of those of the camera; types that are none count as Misc."""
    right, down, ahead = own.location.T if len(own) else np.zeros((3, 0))
    height, width, length = own.dimensions.T if len(own) else np.zeros((3, 0))
    columns = (ahead, -right, height / 2 - down, length, width, height, -own.rotation_y - np.pi / 2)
    label = np.array([CLASSES.index(name) if name in CLASSES else len(CLASSES) - 1 for name in own.names], np.int64)
    velocity, score = np.full((len(own), 2), np.nan), own.scores
    return StillBoxes(np.stack(columns, axis=1), velocity, label, np.zeros(0) if score is None else score)


def _numbered(own: Labels, found: TrackedBoxes) -> Labels:
    there = found.row >= 0
    rows: Array = found.row[there]
    return replace(own.select(rows), track_ids=found.number[there], scores=found.boxes.score[there])


def write(folder: Path, sequences: Mapping[str, Sequence[Labels]]) -> None:
    """Write SEQUENCE.txt of each sequence into a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in sequences.items():
        lines = [line for frame, own in enumerate(frames) for line in _lines(frame, own)]
        with atomic_write(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def _lines(frame: int, own: Labels) -> list[str]:
    if own.track_ids is None or own.scores is None:
        raise ValueError("tracks have numbers and scores")
    numbers = np.column_stack([own.alpha, own.bbox, own.dimensions, own.location, own.rotation_y])
    heads = zip(own.track_ids.tolist(), own.names, own.truncation.tolist(), own.occlusion.tolist(), strict=True)
    return [
        f"{frame} {number} {name} {truncation:g} {occlusion} {' '.join(f'{v:.4f}' for v in row)} {score:.6f}\n"
        for (number, name, truncation, occlusion), row, score in zip(heads, numbers.tolist(), own.scores, strict=True)
    ]
