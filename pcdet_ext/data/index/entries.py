"""What the index says of one frame, and how that stands in a row of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pcdet_ext.structures import Array, Sample, Targets

SCHEMA = pa.schema(
    [
        ("frame_id", pa.string()),
        ("sequence_id", pa.string()),
        ("num_points", pa.int64()),
        ("dropped", pa.int64()),
        ("timestamp", pa.float64()),
        ("pose", pa.list_(pa.float64())),
        ("box_columns", pa.int8()),
        ("boxes", pa.list_(pa.float32())),
        ("names", pa.list_(pa.string())),
        ("difficulty", pa.list_(pa.int32())),
        ("points_in_box", pa.list_(pa.int32())),
        ("track_ids", pa.list_(pa.int64())),
        ("extra", pa.string()),
    ]
)


def _no_integers() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class FrameInfo:
    """What the index says of one frame.

    num_points: points in the frame's own file(s); dropped: how many of them are not finite; boxes: float32 [M, 7 or 9]
    in the LiDAR frame, or None for a frame without labels; names: the class of each box; difficulty, points_in_box,
    track_ids (or None): int64 [M]; timestamp: seconds; pose: float64 [4, 4] sensor to world; extra: what the format
    itself needs to find and read the frame, in JSON types. Raises ValueError where these do not fit together.
    """

    frame_id: str
    num_points: int
    dropped: int
    sequence_id: str = ""
    boxes: Array | None = None
    names: Sequence[str] = ()
    difficulty: Array = field(default_factory=_no_integers)
    points_in_box: Array = field(default_factory=_no_integers)
    track_ids: Array | None = None
    timestamp: float | None = None
    pose: Array | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.boxes is None:
            return
        if self.boxes.ndim != 2 or self.boxes.shape[1] not in (7, 9):
            raise ValueError(f"frame {self.frame_id}: boxes must have 7 or 9 numbers")
        columns = (self.names, self.difficulty, self.points_in_box, self.track_ids)
        if any(column is not None and len(column) != len(self.boxes) for column in columns):
            raise ValueError(f"frame {self.frame_id}: not one value per box")

    @staticmethod
    def of(sample: Sample, dropped: int, points_in_box: Array, extra: Mapping[str, Any]) -> FrameInfo:
        """The entry of a frame that was read whole.

        Objects without a difficulty get the difficulty 0, so that all count.

        Args:
            sample: the frame.
            dropped: number of its NaN and infinite points, which were left out.
            points_in_box: int64 [M], points found inside each box, where the labels do not say themselves how many.
            extra: what else the format keeps about a frame.
        """
        targets = sample.targets
        info = FrameInfo(
            frame_id=sample.frame_id,
            num_points=len(sample.points),
            dropped=dropped,
            sequence_id=sample.sequence_id,
            timestamp=sample.timestamp,
            pose=None if sample.pose is None else np.asarray(sample.pose, np.float64),
            extra=extra,
        )
        if targets is None or targets.boxes is None:
            return info
        counts = points_in_box if targets.num_points is None else targets.num_points
        difficulty = np.zeros(len(targets), np.int64) if targets.difficulty is None else targets.difficulty
        return replace(
            info,
            boxes=np.asarray(targets.boxes, np.float32),
            names=targets.names,
            difficulty=np.asarray(difficulty, np.int64),
            points_in_box=np.asarray(counts, np.int64),
            track_ids=None if targets.track_ids is None else np.asarray(targets.track_ids, np.int64),
        )

    @property
    def labelled(self) -> bool:
        """Whether the frame has labels, be they of no object: boxes, or by `extra["point_labels"]` those of points."""
        return self.boxes is not None or bool(self.extra.get("point_labels"))

    def targets(self) -> Targets | None:
        """The labelled boxes, None where the frame has no labels."""
        if self.boxes is None:
            return None
        columns = {"difficulty": self.difficulty, "num_points": self.points_in_box, "track_ids": self.track_ids}
        own = {name: column.copy() for name, column in columns.items() if column is not None}
        return Targets.of_names(self.boxes.copy(), self.names, **own)


def table_of(infos: Sequence[FrameInfo]) -> pa.Table:
    """Entries as rows of the file."""

    def per_box(column: Array | None, info: FrameInfo) -> Any:
        return None if info.boxes is None or column is None else np.asarray(column)

    columns = {
        "frame_id": [info.frame_id for info in infos],
        "sequence_id": [info.sequence_id for info in infos],
        "num_points": [info.num_points for info in infos],
        "dropped": [info.dropped for info in infos],
        "timestamp": [info.timestamp for info in infos],
        "pose": [None if info.pose is None else np.asarray(info.pose, np.float64).ravel() for info in infos],
        "box_columns": [7 if info.boxes is None else info.boxes.shape[1] for info in infos],
        "boxes": [None if info.boxes is None else info.boxes.ravel() for info in infos],
        "names": [None if info.boxes is None else list(info.names) for info in infos],
        "difficulty": [per_box(info.difficulty, info) for info in infos],
        "points_in_box": [per_box(info.points_in_box, info) for info in infos],
        "track_ids": [per_box(info.track_ids, info) for info in infos],
        "extra": [json.dumps(dict(info.extra)) for info in infos],
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def entry_of(table: pa.Table, row: int) -> FrameInfo:
    """The entry in a row of the file. Raises TypeError, ValueError or IndexError where the row is damaged."""

    def value(name: str) -> Any:
        return table[name][row].as_py()

    def numbers(name: str, dtype: type) -> Array | None:
        scalar = table[name][row]
        return None if not scalar.is_valid else scalar.values.to_numpy(zero_copy_only=False).astype(dtype)

    boxes, pose = numbers("boxes", np.float32), numbers("pose", np.float64)
    info = FrameInfo(
        frame_id=value("frame_id"),
        num_points=int(value("num_points")),
        dropped=int(value("dropped")),
        sequence_id=value("sequence_id"),
        timestamp=value("timestamp"),
        pose=None if pose is None else pose.reshape(4, 4),
        extra=json.loads(value("extra")),
    )
    if boxes is None:
        return info
    difficulty, counts = numbers("difficulty", np.int64), numbers("points_in_box", np.int64)
    return replace(
        info,
        boxes=boxes.reshape(-1, value("box_columns")),
        names=tuple(value("names")),
        difficulty=_no_integers() if difficulty is None else difficulty,
        points_in_box=_no_integers() if counts is None else counts,
        track_ids=numbers("track_ids", np.int64),
    )
