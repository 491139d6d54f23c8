"""Label and result files of one's own data.

Text, `<frame>.txt`: one box per line, without a header:

    x y z dx dy dz heading class

in metres and radians, in the LiDAR frame, z at the box centre; the class name is the rest of the line, so it may have
spaces. A result file has the score after it, and its headings may be a few turns beyond a full one. JSON,
`<frame>.json`, may say more:

    {"objects": [{"class": "Car", "box": [x, y, z, dx, dy, dz, heading], "velocity": [vx, vy], "track_id": 7}]}

where the list may also stand alone, velocity (m/s) and track_id are optional, and results have a `score`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.custom.layout import Settings, check_known_class
from pcdet_ext.data.text import number, read_lines
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array, Detections, Targets

COLUMNS = "x y z dx dy dz heading class"
NUMBERS = 7  # of a box
TURN = 2 * math.pi * (1 + 1e-6)  # headings of labels beyond a full turn are taken for degrees
TURNS = 4  # in results, whose headings are sums of what a network finds, those beyond so many turns
LARGEST_SIZE = 1000.0  # metres, beyond which no object is
LARGEST = float(np.finfo(np.float32).max)
KEYS = ("class", "box", "velocity", "track_id", "score")  # of an object in JSON


@dataclass(frozen=True, eq=False)
class Labels:
    """The boxes of one frame.

    boxes: float32 [M, 7], LiDAR frame; names: class names; scores: float32 [M] or None; velocities: float32 [M, 2],
    NaN where it is not stated; track_ids: int64 [M], -1 where it is not stated.
    """

    boxes: Array
    names: tuple[str, ...]
    velocities: Array
    track_ids: Array
    scores: Array | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def has_velocity(self) -> bool:
        """Whether a velocity is stated."""
        return bool(np.isfinite(self.velocities).any())

    def targets(self, velocity: bool = False) -> Targets:
        """Ground truth with boxes [M, 7], with velocity [M, 9]."""
        boxes = np.concatenate([self.boxes, self.velocities], axis=1) if velocity else self.boxes
        tracks = self.track_ids if (self.track_ids >= 0).any() else None
        return Targets.of_names(boxes, self.names, track_ids=tracks)

    def detections(self, frame_id: str, classes: Sequence[str] = ()) -> Detections:
        """Results as detections, as arrays; classes that are not among those given follow them, sorted."""
        names = (*classes, *sorted(set(self.names) - set(classes)))
        labels = np.array([names.index(name) for name in self.names], np.int64)
        boxes = np.concatenate([self.boxes, np.nan_to_num(self.velocities)], 1) if self.has_velocity else self.boxes
        scores = np.ones(len(self), np.float32) if self.scores is None else self.scores
        tracks = self.track_ids if (self.track_ids >= 0).any() else None
        return Detections(boxes, scores, labels, names, frame_id, tracks)


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, ...]
    score: float = math.nan
    velocity: tuple[float, float] = (math.nan, math.nan)
    track_id: int = -1


def read_labels(path: str | Path, settings: Settings | None = None, with_scores: bool = False) -> Labels:
    """Read a label or result file; an empty text file has no objects.

    Args:
        path: a .txt or .json file.
        settings: the unit of headings and the known classes; None for radians and any class.
        with_scores: whether it is a result file, where every box has a score.

    Raises:
        DataError: naming the file and line (in JSON the object) for another number of columns, what is no finite
            number, a size that is not positive, a heading beyond a full turn, and a class that is not known.
    """
    path, settings = Path(path), settings or Settings()
    read = _read_json if path.suffix.lower() == ".json" else _read_text
    found = read(path, settings, with_scores)
    boxes = np.array([o.box for o in found], np.float64).reshape(-1, NUMBERS)
    return Labels(
        boxes.astype(np.float32),
        tuple(o.name for o in found),
        np.array([o.velocity for o in found], np.float32).reshape(-1, 2),
        np.array([o.track_id for o in found], np.int64),
        np.array([o.score for o in found], np.float32) if with_scores else None,
    )


def _read_text(path: Path, settings: Settings, with_scores: bool) -> list[_Object]:
    lines = [(f"{path}:{i}", line) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    return [_line(line, where, settings, with_scores) for where, line in lines]


def _line(line: str, where: str, settings: Settings, with_scores: bool) -> _Object:
    *numbers, rest = line.split(None, NUMBERS)
    expected = f"{COLUMNS} score" if with_scores else COLUMNS
    if len(numbers) < NUMBERS:
        raise DataError(f"{where}: a line must have the columns {expected!r}, got {len(numbers) + 1}: {line.strip()!r}")
    name, score = rest.strip(), math.nan
    if with_scores:
        *before, last = name.rsplit(None, 1)
        score = _number(last, f"{where}: the score at the end")
        name = "".join(before)
        if not name:
            raise DataError(f"{where}: a result must have the columns {expected!r}, one is missing: {line.strip()!r}")
    box = tuple(_number(text, where, expected) for text in numbers)
    _check_name(name, where, settings.classes, with_scores)
    return _Object(name, _checked_box(box, where, settings, with_scores), score)


def _number(text: str, where: str, expected: str = "") -> float:
    try:
        value = number(text)
    except ValueError:
        hint = f"; the columns are {expected!r}, without a header" if expected else ""
        raise DataError(f"{where}: {text!r} is not a number{hint}") from None
    if not math.isfinite(value):
        raise DataError(f"{where}: numbers must be finite, got {text!r}")
    return value


def _check_name(name: str, where: str, classes: Sequence[str], with_scores: bool) -> None:
    check_known_class(name, classes, where)
    ends = {word for word in (name.split()[0], name.split()[-1]) if _is_number(word)}
    if ends and not classes and not with_scores:
        raise DataError(
            f"{where}: is {name!r} a class? It has a number, and a line has the columns {COLUMNS!r} and no others "
            "(JSON may say more); if it is one, list it under `classes` in dataset.yaml"
        )


def _is_number(text: str) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _checked_box(box: Sequence[float], where: str, settings: Settings, with_scores: bool) -> tuple[float, ...]:
    """The box with its heading in radians, at most a full turn."""
    sizes = " ".join(f"{v:g}" for v in box[3:6])
    if min(box[3:6]) <= 0 or np.float32(min(box[3:6])) <= 0:
        raise DataError(f"{where}: the sizes dx, dy, dz must be positive, got {sizes}")
    if max(map(abs, box)) > LARGEST:
        raise DataError(f"{where}: numbers must be finite, got {' '.join(f'{v:g}' for v in box)}")
    if max(box[3:6]) > LARGEST_SIZE and not with_scores:
        raise DataError(f"{where}: the sizes dx, dy, dz must be in metres, and at most {LARGEST_SIZE:g}, got {sizes}")
    if settings.degrees:
        return (*box[:6], math.radians(box[6]))
    return (*box[:6], _heading(box[6], where, with_scores))


def _heading(heading: float, where: str, with_scores: bool) -> float:
    """A heading in radians, of results in [-π, π) where it goes beyond a full turn."""
    if abs(heading) <= TURN:
        return heading
    if with_scores and abs(heading) <= TURNS * TURN:
        return _in_range(heading)
    instead = "" if with_scores else ", or dataset.yaml must say `heading_unit: degrees`"
    limit = f"{TURNS} full turns ({2 * TURNS}π)" if with_scores else "a full turn (2π)"
    raise DataError(
        f"{where}: heading {heading:g} is more than {limit}: is it in degrees? It must be in radians{instead}"
    )


def wrapped(boxes: Array) -> Array:
    """Boxes [M, 7+] with headings beyond a full turn brought to [-π, π); others stay as they are."""
    boxes = boxes.copy()
    far = np.abs(boxes[:, 6]) > TURN
    boxes[far, 6] = [_in_range(float(heading)) for heading in boxes[far, 6]]
    return boxes


def _in_range(heading: float) -> float:
    return (heading + math.pi) % (2 * math.pi) - math.pi


def _read_json(path: Path, settings: Settings, with_scores: bool) -> list[_Object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error})") from error
    objects = content.get("objects") if isinstance(content, Mapping) else content
    if not isinstance(objects, list):
        raise DataError(f'{path}: must be {{"objects": [{{"class": …, "box": […]}}, …]}}, or the list alone')
    return [_object(item, f"{path}: object {i}", settings, with_scores) for i, item in enumerate(objects)]


def _object(item: Any, where: str, settings: Settings, with_scores: bool) -> _Object:
    if not isinstance(item, Mapping) or not isinstance(item.get("class"), str) or not item["class"].strip():
        raise DataError(f'{where}: must be a mapping with "class" and "box"')
    for key in item:
        if key not in KEYS:
            raise DataError(f"{where}: has no such key {key!r}{suggest(str(key), KEYS)}")
    name = item["class"].strip()
    check_known_class(name, settings.classes, where)
    box = _numbers(item.get("box"), NUMBERS, f"{where}: box")
    velocity = item.get("velocity")
    vx, vy = (math.nan, math.nan) if velocity is None else _numbers(velocity, 2, f"{where}: velocity")
    track_id = item.get("track_id", -1)
    if not isinstance(track_id, int) or isinstance(track_id, bool) or not -1 <= track_id < 2**63:
        raise DataError(f"{where}: track_id must be a whole number of at least 0, got {track_id!r}")
    score = _numbers([item.get("score")], 1, f"{where}: score")[0] if with_scores else math.nan
    return _Object(name, _checked_box(box, where, settings, with_scores), score, (vx, vy), track_id)


def _numbers(value: Any, count: int, where: str) -> tuple[float, ...]:
    fits = isinstance(value, list) and len(value) == count
    if not fits or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise DataError(f"{where}: must be {count} number{'s' if count > 1 else ''}, got {value!r}")
    if not all(abs(v) <= LARGEST for v in value):
        raise DataError(f"{where}: numbers must be finite, got {', '.join(map(_few_digits, value))}")
    return tuple(float(v) for v in value)


def _few_digits(value: float) -> str:
    """A number for a message; whole numbers of JSON may be too long for a float, or for any line."""
    return f"{value:g}" if isinstance(value, float) else reprlib.repr(value)


def write_labels(path: str | Path, boxes: Array, names: Sequence[str], scores: Array | None = None) -> None:
    """Write a text file of labels, with scores a result file; float32 values come back exactly.

    Args:
        path: the file.
        boxes: floating-point [M, 7] (x, y, z, dx, dy, dz, heading), in metres and radians.
        names: one class name per box.
        scores: [M], or None for labels.

    Raises:
        ValueError: the boxes have another shape, or a class name would not come back.
    """
    if boxes.ndim != 2 or boxes.shape[1] != NUMBERS or len(names) != len(boxes):
        raise ValueError(f"boxes must be [M, 7] with one name per box, got {list(boxes.shape)} and {len(names)} names")
    for name in set(names):
        if not name or name != name.strip() or name.splitlines() != [name] or "\0" in name:
            raise ValueError(f"{name!r} is no class name: it must be one line without spaces around it")
    rows = [(*map(_short, box), name) for box, name in zip(boxes, names, strict=True)]
    if scores is not None:
        rows = [(*row, _short(score)) for row, score in zip(rows, scores, strict=True)]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{' '.join(row)}\n" for row in rows), encoding="utf-8")


def _short(value: Any) -> str:
    """The shortest text that gives a float32 again."""
    return str(np.float32(value))


def write_objects(path: str | Path, boxes: Array, names: Sequence[str], scores: Array | None = None) -> None:
    """Write a JSON file of labels with velocities, with scores a result file.

    Args:
        path: the file.
        boxes: floating-point [M, 9] (x, y, z, dx, dy, dz, heading, vx, vy), in metres, radians and metres per second; a
            velocity that is not finite is left out.
        names: one class name per box.
        scores: [M], or None for labels.
    """
    objects: list[dict[str, Any]] = []
    for i, (box, name) in enumerate(zip(boxes, names, strict=True)):
        entry: dict[str, Any] = {"class": name, "box": [float(v) for v in box[:NUMBERS]]}
        if np.isfinite(box[NUMBERS:]).all():
            entry["velocity"] = [float(v) for v in box[NUMBERS:]]
        objects.append(entry if scores is None else {**entry, "score": float(scores[i])})
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"objects": objects}), encoding="utf-8")
