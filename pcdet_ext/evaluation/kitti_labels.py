"""Rows of KITTI's label and result files, which its metric compares, and which of them count (Geiger et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

DONT_CARE = "DontCare"
DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)  # pixels of the 2-D box, at least
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)


def is_dont_care(name: str) -> bool:
    """Whether a row is a region where nothing was labelled; files of other tools write it in any case."""
    return name.lower() == DONT_CARE.lower()


@dataclass(frozen=True, eq=False)
class Labels:
    """Objects of one frame, one row for each line of a label_2 or result file.

    names: class of each; truncation: float64 [N] in [0, 1] or -1; occlusion: int64 [N] (0 fully visible, 1 partly,
    2 largely occluded, 3 unknown, -1 not stated); alpha: float64 [N], observation angle; bbox: float64 [N, 4] (x1, y1,
    x2, y2) pixels; dimensions: float64 [N, 3] (height, width, length); location: float64 [N, 3] bottom centre,
    rectified camera frame; rotation_y: float64 [N]; scores: float64 [N] of detections or None; track_ids: int64 [N] or
    None; notes: what was unusual about the file, and how it was read.
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
    track_ids: Array | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, width in (("bbox", 4), ("dimensions", 3), ("location", 3)):
            if np.shape(getattr(self, name)) != (len(self), width):
                raise ValueError(f"{name} must be [{len(self)}, {width}], got {list(np.shape(getattr(self, name)))}")
        for name in ("truncation", "occlusion", "alpha", "rotation_y", "scores", "track_ids"):
            column = getattr(self, name)
            if column is not None and np.shape(column) != (len(self),):
                raise ValueError(f"{name} must be [{len(self)}], got {list(np.shape(column))}")

    def __len__(self) -> int:
        return len(self.names)

    def select(self, keep: Array) -> Labels:
        """The rows that `keep` (bool [N] or int64 [K]) picks, in its order."""
        index = np.arange(len(self))[keep]
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("names", "notes")}
        picked = {name: column[index] for name, column in columns.items() if column is not None}
        return replace(self, names=tuple(self.names[i] for i in index), **picked)

    def objects(self) -> Labels:
        """The rows without DontCare regions."""
        return self.select(np.array([not is_dont_care(name) for name in self.names], bool))

    @staticmethod
    def empty(scores: bool = False) -> Labels:
        """No rows, with a score column if asked for."""
        none = np.zeros(0)
        corners, vectors = np.zeros((0, 4)), np.zeros((0, 3))
        return Labels((), none, none.astype(np.int64), none, corners, vectors, vectors, none, none if scores else None)


def write_labels(path: str | Path, labels: Labels) -> None:
    """Write a label file, or a result file when the labels have scores; four decimals, scores six.

    Raises ValueError for a class name that is not one word, because columns are split at spaces.
    """
    lines = []
    for i, name in enumerate(labels.names):
        if len(name.split()) != 1:
            raise ValueError(f"{path}: a class name must be one word, got {name!r}")
        fields_ = [name, f"{labels.truncation[i]:.2f}", f"{int(labels.occlusion[i])}"]
        row = (labels.alpha[i], *labels.bbox[i], *labels.dimensions[i], *labels.location[i], labels.rotation_y[i])
        fields_ += [f"{v:.4f}" for v in row]
        fields_ += [] if labels.scores is None else [f"{labels.scores[i]:.6f}"]
        lines.append(" ".join(fields_) + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def too_hard(labels: Labels, level: int) -> Array:
    """bool [N]: which rows miss the limits of a difficulty (0 easy, 1 moderate, 2 hard) and do not count there."""
    missed = np.stack([rows for _, rows in _limits(labels, level)])
    return np.asarray(missed.any(axis=0))


def difficulty(labels: Labels) -> Array:
    """int64 [N]: the easiest level (0 easy, 1 moderate, 2 hard) whose limits an object meets, -1 when it meets none."""
    level = np.full(len(labels), -1, np.int64)
    for i in reversed(range(len(DIFFICULTIES))):
        level[~too_hard(labels, i)] = i
    return level


def reasons_not_to_count(labels: Labels, level: int = 2) -> list[str]:
    """Why each object does not count at a difficulty, in words; "" for those that do."""
    limits = _limits(labels, level)
    return [" and ".join(text for text, missed in limits if missed[i]) for i in range(len(labels))]


def _limits(labels: Labels, level: int) -> Sequence[tuple[str, Array]]:
    """The limits of a difficulty: what it means to miss each, and which rows (bool [N]) do."""
    height = labels.bbox[:, 3] - labels.bbox[:, 1]
    return (
        (f"2-D box lower than {MIN_HEIGHT[level]:g} pixels", height < MIN_HEIGHT[level]),
        (f"occlusion above {MAX_OCCLUSION[level]}", labels.occlusion > MAX_OCCLUSION[level]),
        (f"truncation above {MAX_TRUNCATION[level]:g}", labels.truncation > MAX_TRUNCATION[level]),
    )
