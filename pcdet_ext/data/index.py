"""The index of a prepared split: what a data set must know of its frames before it reads them. JSON, a line a frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.structures import Boxes

FORMAT = 1  # of the prepared files; a reader takes no other
FOLDER = "pcdet_ext"  # under the data folder, where preparation writes unless told otherwise


@dataclass(frozen=True)
class FrameInfo:
    """What the index tells of one frame.

    num_points: rows in the point file; dropped: how many of them are not finite; image_size: (height, width) pixels;
    boxes: [M][7] LiDAR frame, or None for a frame without labels; names, difficulty, points_in_box: a value each box.
    """

    frame_id: str
    folder: str
    num_points: int
    dropped: int
    image_size: tuple[int, int]
    boxes: list[list[float]] | None = None
    names: list[str] = field(default_factory=list)
    difficulty: list[int] = field(default_factory=list)
    points_in_box: list[int] = field(default_factory=list)

    def to_boxes(self) -> Boxes | None:
        """The labelled boxes, None where the frame has no labels."""
        if self.boxes is None:
            return None
        boxes = np.array(self.boxes, np.float32).reshape(-1, 7)
        difficulty, num_points = (np.array(column, np.int64) for column in (self.difficulty, self.points_in_box))
        return Boxes(boxes, tuple(self.names), difficulty=difficulty, num_points=num_points)


def index_path(folder: str | Path, split: str) -> Path:
    """Index file of a split in a preparation folder."""
    return Path(folder) / f"index_{split}.json"


def write_index(path: Path, infos: Sequence[FrameInfo]) -> None:
    """Write an index atomically."""
    lines = ",\n".join(json.dumps(asdict(info)) for info in infos)
    with atomic_write(path) as temporary:
        temporary.write_text(f'{{"format": {FORMAT}, "frames": [\n{lines}\n]}}\n', encoding="utf-8")


def read_index(path: Path) -> list[FrameInfo]:
    """Read an index. Raises DataError when it is missing, damaged, or of another format."""
    entries = read_prepared(path, "frames")
    try:
        return [FrameInfo(**{**entry, "image_size": tuple(entry["image_size"])}) for entry in entries]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: damaged index ({error}); prepare the data again") from error


def read_prepared(path: Path, key: str) -> Any:
    """Content under `key` of a prepared JSON file. Raises DataError when missing, damaged, or of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; make it with tools/prepare_data.py (--splits and --database name the splits; where "
            "the data folder is read-only, --out and data.index name another one)"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or key not in content:
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return content[key]
