"""The points of a picture page: what they can be coloured by, and their numbers as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pcdet_ext.sketch import VIRIDIS
from pcdet_ext.structures import Array
from pcdet_ext.visualization.ages import age_colours, age_label
from pcdet_ext.visualization.levels import point_colours
from pcdet_ext.visualization.page_frames import LEVELS, Frame

BY_HEIGHT, BY_RANGE, BY_CHANNEL, BY_LABEL = range(4)  # as the page's shader counts them
STEPS = 65535  # of a coordinate between the lowest and the highest of a frame
COORDINATE_BYTES = 6
LABEL = "class"
UNLABELLED = "no label"


class Blob:
    """Arrays one after the other in one block of bytes, each at an even place."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, array: Array) -> int:
        """Where an array begins."""
        place, data = self._length, array.tobytes()
        data += b"\0" * (len(data) % 2)
        self._parts.append(data)
        self._length += len(data)
        return place

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class Colouring:
    """One way to colour points: the description that the page reads, and the byte of each point of a frame."""

    def __init__(self, description: dict[str, Any], levels: Callable[[Frame], Array] | None = None) -> None:
        self.description = {"channel": description["name"] if levels else None, "classes": None, **description}
        self.levels = levels


def colourings(frames: Sequence[Frame]) -> list[Colouring]:
    """The ways to colour the points of these frames, the one that tells most first."""
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    by_column = {name: _by_column(name, frames) for name in names}
    aged = [by_column.pop("age")] if "age" in by_column else []
    labelled = [_by_label(frames)] if any(frame.labels is not None for frame in frames) else []
    spread = [colouring for colouring in by_column.values() if colouring is not None]
    return [c for c in [*labelled, *aged, _by_height(frames), *spread, _by_range(frames)] if c is not None]


def point_bytes(ways: Sequence[Colouring]) -> int:
    """How many bytes a point takes."""
    return COORDINATE_BYTES + sum(way.levels is not None for way in ways)


def point_rows(frame: Frame, ways: Sequence[Colouring], blob: Blob) -> dict[str, Any]:
    """The points of a frame as the page reads them: 16 bits per coordinate, a byte per column.

    Args:
        frame: the frame.
        ways: in which points can be coloured, of which some need a column.
        blob: takes the bytes.
    """
    points = frame.points.astype(np.float64)
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(3), np.ones(3))
    size = np.maximum(high - low, 1e-3)
    at = blob.add(((points - low) / size * STEPS).round().astype("<u2"))
    channels = {way.description["name"]: blob.add(way.levels(frame)) for way in ways if way.levels is not None}
    return {"count": len(points), "low": low.tolist(), "size": size.tolist(), "at": at, "channels": channels}


def _by_height(frames: Sequence[Frame]) -> Colouring:
    low, high = _percentiles([frame.points[:, 2] for frame in frames])
    ends = [f"{low:.1f} m", f"{high:.1f} m"]
    return Colouring({"name": "height", "by": BY_HEIGHT, "first": low, "last": high, "ramp": VIRIDIS, "ends": ends})


def _by_range(frames: Sequence[Frame]) -> Colouring:
    _, high = _percentiles([np.hypot(frame.points[:, 0], frame.points[:, 1]) for frame in frames])
    return Colouring(
        {"name": "range", "by": BY_RANGE, "first": 0.0, "last": high, "ramp": VIRIDIS, "ends": ["0 m", f"{high:.0f} m"]}
    )


def _by_column(name: str, frames: Sequence[Frame]) -> Colouring | None:
    """By a column between the 2nd and 98th percentile, by age from now to the oldest; None where all are equal."""
    values = [frame.columns[name] for frame in frames if name in frame.columns]
    low, high = _percentiles(values)
    ends, ramp = [f"{low:.3g}", f"{high:.3g}"], list(VIRIDIS)
    if name == "age":
        low, high = 0.0, max(float(v.max()) for v in values if len(v))
        unit = next(frame.age_unit for frame in frames if name in frame.columns)
        ends, ramp = ["now", age_label(float(f"{high:.3g}"), unit)], age_colours(5)
    elif not any(np.ptp(v) > 0 for v in values if len(v)):
        return None

    def levels(frame: Frame) -> Array:
        column = frame.columns.get(name, np.zeros(len(frame.points)))
        return (np.clip((column - low) / (high - low), 0, 1) * LEVELS).round().astype(np.uint8)

    return Colouring({"name": name, "by": BY_CHANNEL, "first": 0, "last": 1, "ramp": ramp, "ends": ends}, levels)


def _by_label(frames: Sequence[Frame]) -> Colouring:
    """By class: of those that occur, the colours that they have in every picture."""
    found: dict[str, str] = {}
    for frame in frames:
        colours = point_colours(len(frame.label_names))
        used = [] if frame.labels is None else np.unique(frame.labels).tolist()
        found |= {frame.label_names[i]: colours[i] for i in used if i >= 0}
    found[UNLABELLED] = point_colours(0)[0]
    if len(found) > LEVELS:
        raise ValueError(f"the points have {len(found) - 1} classes; a page tells at most {LEVELS - 1} apart")
    place = {name: i for i, name in enumerate(found)}

    def levels(frame: Frame) -> Array:
        if frame.labels is None:
            return np.full(len(frame.points), place[UNLABELLED], np.uint8)
        table = [place.get(name, 0) for name in frame.label_names] + [place[UNLABELLED]]  # the last one is number -1
        return np.array(table, np.uint8)[frame.labels]

    classes = [{"name": name, "colour": colour} for name, colour in found.items()]
    return Colouring({"name": LABEL, "by": BY_LABEL, "first": 0, "last": 1, "classes": classes, "ramp": []}, levels)


def _percentiles(values: Sequence[Array]) -> tuple[float, float]:
    """The 2nd and 98th percentile of all, not quite equal."""
    joined = np.concatenate(values) if len(values) else np.zeros(0)
    low, high = np.percentile(joined, [2, 98]).tolist() if len(joined) else (0.0, 1.0)
    return low, max(high, low + 1e-3)
