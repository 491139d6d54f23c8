"""Poses and timestamps of the frames of a folder, and earlier frames joined to one (sweeps).

poses.txt        <frame> and 12 or 16 numbers per line: the 3 × 4 or 4 × 4 matrix sensor to world, row by row; or
                 without the frame, one line for each in natural order, as the KITTI odometry files have it
poses.json       {"<frame>": [[…], …]}
timestamps.txt   <frame> and seconds per line, or seconds alone, one line for each frame
timestamps.json  {"<frame>": seconds}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.custom.layout import SETTINGS, natural, sequence_of
from pcdet_ext.data.geometry import transform
from pcdet_ext.data.text import floats, read_lines
from pcdet_ext.files import DataError
from pcdet_ext.rigid import is_rigid
from pcdet_ext.structures import Array

TIME = "timestamp"  # column of joined frames: seconds before the frame
FRAME_SECONDS = 0.1  # between frames without timestamps
LONG_STEP = 30.0  # seconds between frames, beyond which times are hardly in seconds


@dataclass(frozen=True)
class Motion:
    """Poses (float64 [4, 4], sensor to world) and timestamps (seconds) by frame id; the files are where they stand.

    Either mapping is empty where there is no such file; otherwise both know all frames that the file has.
    """

    poses: Mapping[str, Array]
    timestamps: Mapping[str, float]
    poses_file: Path | None = None
    timestamps_file: Path | None = None

    def pose(self, frame_id: str) -> Array | None:
        """The pose of a frame, None where no frame has one. Raises DataError where only others have one."""
        if self.poses_file is not None and frame_id not in self.poses:
            raise DataError(f"{self.poses_file}: has no pose for frame {frame_id!r}")
        return self.poses.get(frame_id)

    def timestamp(self, frame_id: str) -> float | None:
        """The time of a frame, None where no frame has one. Raises DataError where only others have one."""
        if self.timestamps_file is not None and frame_id not in self.timestamps:
            raise DataError(f"{self.timestamps_file}: has no time for frame {frame_id!r}")
        return self.timestamps.get(frame_id)

    def sequence(self, frame_id: str, default: str) -> str:
        """The sequence of a frame: its subfolder, or `default` for one without, where frames have poses or times."""
        return sequence_of(frame_id) or (default if self.poses or self.timestamps else "")


def read_motion(root: Path, frame_ids: Sequence[str]) -> Motion:
    """The poses and timestamps of a folder; frame_ids: all its frames, in natural order.

    Raises DataError naming file and line for what is no matrix or number, and where frames are not those of the folder.
    """
    poses_file, poses = _read(root, "poses", frame_ids, (12, 16))
    times_file, times = _read(root, "timestamps", frame_ids, (1,))
    return Motion(
        {name: _matrix(values, f"{poses_file}: pose of {name!r}") for name, values in poses.items()},
        {name: values[0] for name, values in times.items()},
        poses_file,
        times_file,
    )


def _read(
    root: Path, stem: str, frame_ids: Sequence[str], widths: Sequence[int]
) -> tuple[Path | None, dict[str, list[float]]]:
    there = [path for path in (root / f"{stem}.txt", root / f"{stem}.json") if path.exists()]
    if not there:
        return None, {}
    if len(there) > 1:
        raise DataError(f"{there[0]}: there is {there[1].name} too; one of them must go")
    path = there[0]
    values = _from_json(path, widths) if path.suffix == ".json" else _from_text(path, frame_ids, widths)
    return path, values


def _from_json(path: Path, widths: Sequence[int]) -> dict[str, list[float]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: must be a mapping of frames")
    return {name: _flat(value, widths, f"{path}: frame {name!r}") for name, value in content.items()}


def _flat(value: Any, widths: Sequence[int], where: str) -> list[float]:
    try:
        numbers = np.array(value, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):  # the last for whole numbers of hundreds of digits
        numbers = np.zeros(0)
    if len(numbers) not in widths or not np.isfinite(numbers).all():
        raise DataError(f"{where}: must be {' or '.join(map(str, widths))} finite numbers")
    return [float(v) for v in numbers]


def _from_text(path: Path, frame_ids: Sequence[str], widths: Sequence[int]) -> dict[str, list[float]]:
    lines = [(i, line.split()) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    if lines and all(len(fields) in widths for _, fields in lines):
        if len(lines) != len(frame_ids):
            raise DataError(f"{path}: has {len(lines)} lines for {len(frame_ids)} frames; name the frame in each line")
        return {name: floats(fields, f"{path}:{i}") for name, (i, fields) in zip(frame_ids, lines, strict=True)}
    found: dict[str, list[float]] = {}
    for i, fields in lines:
        if len(fields) - 1 not in widths:
            counts = " or ".join(map(str, widths))
            raise DataError(f"{path}:{i}: must be the frame and {counts} number{'s' * (counts != '1')}")
        if fields[0] in found:
            raise DataError(f"{path}:{i}: frame {fields[0]!r} stands in an earlier line already")
        found[fields[0]] = floats(fields[1:], f"{path}:{i}")
    return found


def _matrix(values: Sequence[float], where: str) -> Array:
    matrix = np.eye(4)
    matrix[: len(values) // 4] = np.reshape(values, (-1, 4))
    if not is_rigid(matrix):
        raise DataError(f"{where}: is no rotation and translation (sensor to world, row by row)")
    return matrix


def check_joinable(motion: Motion, frame_ids: Sequence[str], root: Path) -> None:
    """Check that earlier frames can be joined.

    Args:
        motion: poses and times.
        frame_ids: frames that want to be joined.
        root: the data folder, for messages.

    Raises:
        DataError: there are no poses, or the times give no ages.
    """
    if motion.poses_file is None:
        raise DataError(
            f"{root / SETTINGS}: max_sweeps: joining earlier frames needs their poses ({root / 'poses.txt'} or "
            "poses.json); those of a sensor that stands still are 1 0 0 0 0 1 0 0 0 0 1 0 for every frame"
        )
    for text in (*_equal_times(motion, frame_ids), *_long_steps(motion, frame_ids)):
        raise DataError(f"{text}; with such times, earlier frames cannot be joined (`max_sweeps` in {SETTINGS})")


def motion_notes(motion: Motion, frame_ids: Sequence[str]) -> list[str]:
    """What looks wrong in the poses and timestamps of a folder, in words."""
    return [
        *_strangers(motion.poses_file, motion.poses, frame_ids),
        *_strangers(motion.timestamps_file, motion.timestamps, frame_ids),
        *_equal_times(motion, frame_ids),
        *_long_steps(motion, frame_ids),
        *_falling_times(motion, frame_ids),
    ]


def _strangers(file: Path | None, known: Mapping[str, Any], frame_ids: Sequence[str]) -> Iterator[str]:
    strange = sorted(set(known) - set(frame_ids), key=natural)
    if strange:
        yield f"{file}: names {len(strange)} frames that are not here, as {strange[0]!r}"


def _times(motion: Motion, frame_ids: Sequence[str]) -> list[list[tuple[str, float]]]:
    """The frames of each sequence that have a time, in the order of `frame_ids`, with their times."""
    sequences: dict[str, list[tuple[str, float]]] = {}
    for name in frame_ids:
        if name in motion.timestamps:
            sequences.setdefault(sequence_of(name), []).append((name, motion.timestamps[name]))
    return list(sequences.values())


def _equal_times(motion: Motion, frame_ids: Sequence[str]) -> Iterator[str]:
    for frames in _times(motion, frame_ids):
        first: dict[float, str] = {}
        for name, time in frames:
            if time in first:
                yield f"{motion.timestamps_file}: frames {first[time]!r} and {name!r} have the same time {time:.10g}"
                return
            first[time] = name


def _long_steps(motion: Motion, frame_ids: Sequence[str]) -> Iterator[str]:
    steps = [np.diff(np.sort([time for _, time in frames])) for frames in _times(motion, frame_ids)]
    step = float(np.median(np.concatenate(steps))) if steps and sum(map(len, steps)) else 0.0
    if step > LONG_STEP:
        yield (
            f"{motion.timestamps_file}: there are {step:g} seconds from frame to frame, going by these times: are they "
            "in milliseconds or microseconds? They must be in seconds"
        )


def _falling_times(motion: Motion, frame_ids: Sequence[str]) -> Iterator[str]:
    for frames in _times(motion, frame_ids):
        for (before, earlier), (name, time) in pairwise(frames):
            if time < earlier:
                yield (
                    f"{motion.timestamps_file}: frame {name!r} is earlier than {before!r}, whose name comes before; "
                    "frames are joined in the order of their times"
                )
                return


def earlier_frames(motion: Motion, frame_ids: Sequence[str], count: int, root_name: str) -> dict[str, list[str]]:
    """For each frame those before it in its sequence, the nearest first.

    The order in a sequence is that of the timestamps, or without any that of `frame_ids`.

    Args:
        motion: poses and times.
        frame_ids: all frames.
        count: how many earlier ones are wanted at most.
        root_name: name of the sequence of frames that are in no folder.
    """
    known = [name for name in frame_ids if name in motion.poses]
    if motion.timestamps_file is not None:
        known = sorted((n for n in known if n in motion.timestamps), key=lambda name: motion.timestamps[name])
    before: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    for name in known:
        sequence = before.setdefault(motion.sequence(name, root_name), [])
        found[name] = sequence[-1 : -count - 1 : -1]
        sequence.append(name)
    return found


def joined(points: Array, sweeps: Sequence[tuple[Array, Array, float]]) -> Array:
    """A cloud [N, F] and earlier ones in its frame, with a column more: seconds that each point is older.

    sweeps: of each earlier cloud its points [M, F], float64 [4, 4] from its frame to that of the cloud, and its age.
    """
    parts = [np.concatenate([points, np.zeros((len(points), 1), np.float32)], axis=1)]
    for cloud, matrix, age in sweeps:
        moved = cloud.copy()
        moved[:, :3] = transform(cloud, matrix)
        parts.append(np.concatenate([moved, np.full((len(moved), 1), age, np.float32)], axis=1))
    return np.concatenate(parts)
