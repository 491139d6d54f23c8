"""Files of ONCE (Mao et al., NeurIPS Datasets and Benchmarks 2021) as they are released.

    <root>/ImageSets/<split>.txt                        names of sequences, one per line
    <root>/data/<sequence>/<sequence>.json              calibration, and of each frame its pose and its labels
    <root>/data/<sequence>/lidar_roof/<frame>.bin       float32 x, y, z, intensity

Coordinates are those of the sensor: x to the left, y to the back, z up. Frames are named by their time in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.points import read_bin
from pcdet_ext.data.text import read_lines
from pcdet_ext.evaluation.quaternions import no_rotations, rotation_matrices, why_no_rotation
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.rigid import rigid_motion
from pcdet_ext.structures import Array

POINT_FEATURES = ("x", "y", "z", "intensity")
LISTS, DATA, LIDAR = "ImageSets", "data", "lidar_roof"


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a sequence.

    root: the data folder; sequence, name: of the sequence and of the frame's files; pose: float64 [4, 4] from the
    sensor to the world, or None; boxes: float64 [M, 7], None where the frame has no labels; names: the class of each
    box; problem: why it cannot be used, "" where it can.
    """

    root: Path
    sequence: str
    name: str
    pose: Array | None = None
    boxes: Array | None = None
    names: tuple[str, ...] = ()
    problem: str = ""

    @property
    def frame_id(self) -> str:
        """The sequence and the name of the files, as "000076_1616343528200"."""
        return f"{self.sequence}_{self.name}"

    @property
    def points(self) -> Path:
        """The file of the points."""
        return self.root / DATA / self.sequence / LIDAR / f"{self.name}.bin"

    @property
    def timestamp(self) -> float | None:
        """Seconds, where the name says them."""
        return int(self.name) * 1e-3 if self.name.isascii() and self.name.isdigit() else None


def read_points(path: Path) -> Array:
    """Points float32 [N, 4] of a frame. Raises DataError for a file that is missing or cut short."""
    return read_bin(path, len(POINT_FEATURES))


def sequences_of(root: Path, split: str) -> list[str]:
    """The sequences of a split. Raises DataError where its list is missing or empty."""
    path = root / LISTS / f"{split}.txt"
    known = sorted(file.stem for file in (root / LISTS).glob("*.txt")) if (root / LISTS).is_dir() else []
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, which lists the sequences of {split!r}{suggest(split, known)}")
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no sequence")
    return names


def sequence_file(root: Path, name: str) -> Path:
    """The file that has what is known of a sequence."""
    return root / DATA / name / f"{name}.json"


def read_sequence(root: Path, name: str) -> list[Frame]:
    """The frames of a sequence, in the order of their file; one that is damaged says so when it is asked for.

    Raises DataError for a file that is missing or damaged as a whole.
    """
    path = sequence_file(root, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged or no JSON ({error})") from error
    entries = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: must have a list 'frames'")
    return [_frame(root, name, path, number, entry) for number, entry in enumerate(entries)]


def _frame(root: Path, sequence: str, path: Path, number: int, entry: Any) -> Frame:
    name = entry.get("frame_id") if isinstance(entry, dict) else None
    if not isinstance(name, str | int) or not str(name) or set(str(name)) & set("/\0"):
        raise DataError(f"{path}: frames[{number}]: frame_id must be the name of its files, is {name!r}")
    frame = str(name)
    try:
        boxes, names = _labels(entry.get("annos"))
        return Frame(root, sequence, frame, _pose(entry.get("pose")), boxes, names)
    except ValueError as error:
        return Frame(root, sequence, frame, problem=f"{path}: frame {frame}: {error}")


def _pose(values: Any) -> Array | None:
    """A pose [4, 4] of a quaternion (x, y, z, w) and a translation."""
    if values is None:
        return None
    numbers = _numbers(values, "pose")
    if numbers.shape != (7,):
        raise ValueError(f"pose must be 7 numbers, a quaternion x, y, z, w and a translation, is {values!r}")
    quaternion = numbers[[3, 0, 1, 2]][None]
    if len(no_rotations(quaternion)):
        raise ValueError(f"pose: {why_no_rotation(quaternion[0])}")
    return rigid_motion(rotation_matrices(quaternion)[0], numbers[4:])


def _labels(entry: Any) -> tuple[Array | None, tuple[str, ...]]:
    """Boxes [M, 7] and their names; None where there are no labels."""
    if entry is None:
        return None, ()
    if not isinstance(entry, Mapping) or "names" not in entry or "boxes_3d" not in entry:
        raise ValueError("annos must have 'names' and 'boxes_3d'")
    return boxes_of(entry["names"], entry["boxes_3d"])


def boxes_of(names: Any, rows: Any) -> tuple[Array, tuple[str, ...]]:
    """Boxes float64 [M, 7] and their names, out of lists. Raises ValueError that says what is wrong with them."""
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be a list of texts, is {names!r}")
    boxes = _numbers(rows, "boxes_3d")
    if not boxes.size and boxes.ndim == 1:
        boxes = boxes.reshape(0, 7)
    if boxes.shape != (len(names), 7):
        raise ValueError(f"boxes_3d must be 7 numbers for each of {len(names)} names, is {list(boxes.shape)}")
    return boxes, tuple(names)


def _numbers(values: Any, what: str) -> Array:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} must be numbers") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} must be finite numbers")
    return numbers
