"""The index of a prepared split: what a data set must know of its frames before it reads them. JSON, one line per frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array, Sample, Targets

FORMAT = 2  # of the prepared files; a reader takes no other
FOLDER = "pcdet_ext"  # under the data folder, where preparation writes unless another folder is named


@dataclass(frozen=True)
class FrameInfo:
    """What the index says of one frame.

    num_points: points in the file(s); dropped: how many of them are not finite; boxes: [M][7 or 9] LiDAR frame, or None
    for a frame without labels; box_columns: 7 or 9, also where there is no box; names, difficulty, points_in_box,
    track_ids (or None): one value per box; timestamp: seconds; pose: [4][4] sensor to world; extra: what the format
    itself needs to find and read the frame, in JSON types. Raises ValueError where these do not fit together.
    """

    frame_id: str
    num_points: int
    dropped: int
    sequence_id: str = ""
    boxes: list[list[float]] | None = None
    box_columns: int = 7
    names: list[str] = field(default_factory=list)
    difficulty: list[int] = field(default_factory=list)
    points_in_box: list[int] = field(default_factory=list)
    track_ids: list[int] | None = None
    timestamp: float | None = None
    pose: list[list[float]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.boxes is None:
            return
        columns = (self.names, self.difficulty, self.points_in_box, self.track_ids)
        if self.box_columns not in (7, 9) or any(len(box) != self.box_columns for box in self.boxes):
            raise ValueError(f"frame {self.frame_id}: boxes must have 7 or 9 numbers")
        if any(column is not None and len(column) != len(self.boxes) for column in columns):
            raise ValueError(f"frame {self.frame_id}: not one value per box")

    @staticmethod
    def of(sample: Sample, dropped: int, points_in_box: Array, extra: Mapping[str, Any]) -> FrameInfo:
        """The entry of a frame that was read whole. Objects without a difficulty all count (0)."""
        targets = sample.targets
        info = FrameInfo(
            frame_id=sample.frame_id,
            num_points=len(sample.points),
            dropped=dropped,
            sequence_id=sample.sequence_id,
            timestamp=sample.timestamp,
            pose=None if sample.pose is None else np.asarray(sample.pose).tolist(),
            extra=extra,
        )
        if targets is None or targets.boxes is None:
            return info
        difficulty = np.zeros(len(targets), np.int64) if targets.difficulty is None else targets.difficulty
        return replace(
            info,
            boxes=targets.boxes.tolist(),
            box_columns=targets.boxes.shape[1],
            names=list(targets.names),
            difficulty=difficulty.tolist(),
            points_in_box=points_in_box.tolist(),
            track_ids=None if targets.track_ids is None else targets.track_ids.tolist(),
        )

    @property
    def labelled(self) -> bool:
        """Whether the frame has labels, be they of no object."""
        return self.boxes is not None

    def targets(self) -> Targets | None:
        """The labelled boxes, None where the frame has no labels."""
        if self.boxes is None:
            return None
        boxes = np.array(self.boxes, np.float32).reshape(-1, self.box_columns)
        columns = {"difficulty": self.difficulty, "num_points": self.points_in_box, "track_ids": self.track_ids}
        arrays = {name: np.array(column, np.int64) for name, column in columns.items() if column is not None}
        return Targets.of_names(boxes, self.names, **arrays)


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
        return [FrameInfo(**entry) for entry in entries]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged index ({error}); prepare the data again") from error


def _require_data_folder(path: Path) -> None:
    """Raise MissingFileError where not even the data is there, in whose folder `pcdet prepare` makes its own."""
    for prepared in path.parents:
        if prepared.name == FOLDER and not prepared.parent.is_dir():
            inside = path.relative_to(prepared.parent)
            raise MissingFileError(f"{prepared.parent}: no such folder, so there is no {inside} in it")


def read_prepared(path: Path, key: str) -> Any:
    """Content under `key` of a prepared JSON file. Raises DataError when missing, damaged, or of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        _require_data_folder(path)
        raise MissingFileError(
            f"{path}: no such file; make it with `pcdet prepare` (--splits and --database name the splits; where "
            "the data folder is read-only, --out and data.index name another one)"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or key not in content:
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return content[key]
