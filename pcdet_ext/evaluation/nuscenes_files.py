"""Files of the nuScenes detection benchmark: submissions, and ground truth taken out of the tables."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.nuscenes import CLASSES, Boxes, Samples
from pcdet_ext.evaluation.nuscenes_columns import LARGEST, LARGEST_WHOLE
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES as TRACKED_CLASSES
from pcdet_ext.evaluation.nuscenes_tracking import Sequences, Tracks
from pcdet_ext.evaluation.quaternions import no_rotations, why_no_rotation
from pcdet_ext.files import DataError, MissingFileError, paused_collection
from pcdet_ext.structures import Array

MAX_BOXES = 500  # of a sample in a submission
ATTRIBUTES = (
    "", "pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing", "cycle.with_rider",
    "cycle.without_rider", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip

_WIDTHS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}  # columns of several numbers

_log = logging.getLogger(__name__)


@paused_collection()
def read_results(path: str | Path, tokens: Sequence[str] | None = None) -> tuple[Boxes, tuple[str, ...]]:
    """Detections of a submission file, and the tokens of its samples; see `Submission.detections`."""
    return Submission.read(path).detections(tokens)


@paused_collection()
def read_tracks(path: str | Path, tokens: Sequence[str] | None = None) -> tuple[Tracks, tuple[str, ...]]:
    """Tracks of a submission file, and the tokens of its samples; see `Submission.tracks`."""
    return Submission.read(path).tracks(tokens)


@dataclass(frozen=True, eq=False)
class Submission:
    """Results for the detection or the tracking benchmark, in the official format.

    path: of the file; results: the boxes of each sample by its token, not checked before they are asked for; meta:
    which sensors were used, as the file says it.
    """

    path: Path
    results: Mapping[str, Any]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: str | Path) -> Submission:
        """A file (.json, also .gz). Raises DataError where it is missing, damaged, or no submission."""
        content = read_json(Path(path))
        if not isinstance(content, Mapping) or not isinstance(content.get("results"), Mapping):
            raise DataError(f"{path}: not a nuScenes submission (it has no mapping 'results' of samples to boxes)")
        meta = content.get("meta")
        return Submission(Path(path), content["results"], meta if isinstance(meta, Mapping) else {})

    @property
    def samples(self) -> tuple[str, ...]:
        """Tokens of the samples, in the order of the file."""
        return tuple(self.results)

    @property
    def is_tracking(self) -> bool:
        """Whether the first box is of the tracking benchmark."""
        first = next((boxes for boxes in self.results.values() if boxes), None)
        return isinstance(first, list) and isinstance(first[0], Mapping) and "tracking_name" in first[0]

    def detections(self, tokens: Sequence[str] | None = None) -> tuple[Boxes, tuple[str, ...]]:
        """Detections, and the tokens of their samples.

        Args:
            tokens: samples of the split; the submission must have exactly these. Their order then numbers the boxes'
                samples. None: all samples of the file, in its order.

        Raises:
            DataError: that names the file and the sample, for missing and unknown samples, more than 500 boxes in a
                sample, boxes of another sample, unknown classes and attributes, and numbers that are missing, no
                numbers, not finite (a velocity may be NaN) or beyond all bounds.
        """
        rows, names = self.rows(tokens)
        return boxes_of_rows(self.path, rows, names, is_truth=False), names

    def tracks(self, tokens: Sequence[str] | None = None) -> tuple[Tracks, tuple[str, ...]]:
        """Tracks; see `detections`. Every box has a tracking_id, no two boxes of a class and sample the same."""
        rows, names = self.rows(tokens)
        found = _tracks(self.path, rows, names, is_truth=False)
        _check_tracks(self.path, found, names)
        return found, names

    def rows(self, tokens: Sequence[str] | None) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
        """All boxes as the file has them, with the number of their sample, and the tokens; see `detections`."""
        if tokens is not None:
            _check_samples(self.path, self.results, tokens)
        names = self.samples if tokens is None else tuple(tokens)
        number = {token: i for i, token in enumerate(names)}
        return [(number[token], box) for token, box in _all_boxes(self.path, self.results)], names


@paused_collection()
def read_ground_truth(path: str | Path) -> tuple[Boxes, Samples]:
    """Ground truth of a JSON file with `samples` (ego_translation, bicycle_racks) and `gt_boxes` by sample token."""
    path = Path(path)
    rows, samples, _ = read_truth_rows(path)
    return boxes_of_rows(path, rows, samples.tokens, is_truth=True), samples


def read_truth_rows(path: Path, racks: bool = True) -> tuple[list[tuple[int, Any]], Samples, Mapping[str, Any]]:
    """Boxes with the number of their sample, the samples, and what the file says of each of these.

    racks: whether the samples say where bicycle racks are.
    """
    content = read_json(path)
    samples = content.get("samples") if isinstance(content, Mapping) else None
    boxes = content.get("gt_boxes") if isinstance(content, Mapping) else None
    if not isinstance(samples, Mapping) or not isinstance(boxes, Mapping):
        raise DataError(f"{path}: no ground truth, which has mappings 'samples' and 'gt_boxes' by sample")
    names = tuple(samples)
    number = {token: i for i, token in enumerate(names)}
    entries = [(i, sample) for i, sample in enumerate(samples.values())]
    ego = _numbers(entries, "ego_translation", 3, False, lambda i: f"{path}: sample {names[i]}")
    stands = [
        (i, rack)
        for i, sample in (entries if racks else ())
        for rack in _listed(path, names[i], sample.get("bicycle_racks"))
    ]
    unknown = [token for token in boxes if token not in number]
    if unknown:
        raise DataError(f"{path}: gt_boxes has {unknown[0]!r}, which is not among the samples")
    rows = [(number[token], box) for token, found in boxes.items() for box in _listed(path, token, found)]
    return rows, Samples(names, ego, _racks(path, stands, names)), samples


def _listed(path: Path, token: str, boxes: Any) -> list[Any]:
    if not isinstance(boxes, list):
        raise DataError(f"{path}: sample {token}: expected a list of boxes, got {type(boxes).__name__}")
    return boxes


@paused_collection()
def read_track_ground_truth(path: str | Path) -> tuple[Tracks, Sequences]:
    """Ground truth of a JSON file with `samples` (scene, timestamp, ego_translation, …) and `gt_boxes` by sample."""
    path = Path(path)
    rows, samples, content = read_truth_rows(path)
    for token, sample in content.items():
        scene, time = sample.get("scene"), sample.get("timestamp")
        if type(scene) is not str or type(time) is not int or abs(time) > LARGEST_WHOLE:
            raise DataError(
                f"{path}: sample {token}: needs a scene (a text) and a timestamp (µs), has {scene!r} and {time!r}"
            )
    scene = np.array([sample["scene"] for sample in content.values()], np.str_)
    timestamp = np.array([sample["timestamp"] for sample in content.values()], np.int64)
    return _tracks(path, rows, samples.tokens, is_truth=True), Sequences(samples, scene, timestamp)


def read_json(path: Path) -> Any:
    """Content of a JSON file, also compressed with gzip. Raises DataError that names it."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: damaged or no JSON ({error})") from error


def _check_samples(path: Path, results: Mapping[str, Any], tokens: Sequence[str]) -> None:
    missing, unknown = set(tokens) - set(results), set(results) - set(tokens)
    for names, what in ((missing, "misses"), (unknown, "has results for unknown")):
        if names:
            raise DataError(f"{path}: {what} samples of the split, {len(names)} in all, for example {min(names)}")


def _all_boxes(path: Path, results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for token, boxes in results.items():
        if len(_listed(path, token, boxes)) > MAX_BOXES:
            raise DataError(f"{path}: sample {token}: {len(boxes)} boxes, at most {MAX_BOXES} are allowed")
        for box in boxes:
            if type(box) is dict and box.get("sample_token", token) != token:
                raise DataError(f"{path}: sample {token}: a box whose sample_token is {box['sample_token']!r}")
            yield token, box


def _tracks(path: Path, rows: Sequence[tuple[int, Any]], tokens: Sequence[str], is_truth: bool) -> Tracks:
    for i, (_, box) in enumerate(rows):
        if not isinstance(box, Mapping) or type(box.get("tracking_id")) not in (str, int):
            raise DataError(f"{path}: sample {tokens[rows[i][0]]}: a box without a tracking_id")
    boxes = boxes_of_rows(path, rows, tokens, is_truth, task="tracking")
    return Tracks(boxes, np.array([str(box["tracking_id"]) for _, box in rows], np.str_))


def _check_tracks(path: Path, found: Tracks, tokens: Sequence[str]) -> None:
    """Raises DataError where one track is at two places at once."""
    keys = zip(found.boxes.sample.tolist(), found.boxes.name.tolist(), found.track.tolist(), strict=True)
    (key, count), *_ = Counter(keys).most_common(1) or [((0, "", ""), 0)]
    if count > 1:
        sample, name, track = key
        raise DataError(f"{path}: sample {tokens[sample]}: {count} boxes of {name} with the tracking_id {track!r}")


def _note_scores(path: Path, scores: Array) -> None:
    """The format wants scores in [0, 1]; the official tool measures others too."""
    beyond = int(((scores < 0) | (scores > 1)).sum())
    if beyond:
        extent = f"from {scores.min():g} to {scores.max():g}"
        _log.warning("%s: %d of %d scores are not in [0, 1]; they go %s", path, beyond, len(scores), extent)


def boxes_of_rows(
    path: Path, rows: Sequence[tuple[int, Any]], tokens: Sequence[str], is_truth: bool, task: str = "detection"
) -> Boxes:
    """Boxes of JSON objects, each with the number of its sample, checked.

    Args:
        path, tokens: the file and the samples' names, for messages.
        rows: the objects.
        is_truth: whether they have `num_pts` instead of a score.
        task: "detection" or "tracking", which decides the keys and the classes.

    Raises:
        DataError: as `Submission.detections`.
    """

    def where(i: int) -> str:
        return f"{path}: sample {tokens[rows[i][0]]}"

    vectors = _vectors(rows, _WIDTHS)

    def vector(key: str, may_be_nan: bool = False) -> Array:
        if key in vectors:
            return _within_bounds(rows, key, vectors[key], may_be_nan, where)
        return _numbers(rows, key, _WIDTHS[key], may_be_nan, where)

    def number(key: str) -> Array:
        return _numbers(rows, key, 0, False, where)

    tracked = task == "tracking"
    names = _texts(rows, f"{task}_name", TRACKED_CLASSES if tracked else CLASSES, "class", where)
    attributes = np.full(len(rows), "", np.str_)
    if not tracked:
        attributes = _texts(rows, "attribute_name", ATTRIBUTES, "attribute", where)
    size = vector("size")
    for i in np.flatnonzero((size <= 0).any(1)):
        raise DataError(f"{where(int(i))}: sizes must be positive, got {size[i].tolist()}")
    rotation = vector("rotation")
    for i in no_rotations(rotation):
        raise DataError(f"{where(int(i))}: {why_no_rotation(rotation[i])}")
    count = len(rows)
    score = np.full(count, -1.0) if is_truth else number(f"{task}_score")
    if not is_truth:
        _note_scores(path, score)
    return Boxes(
        sample=np.array([sample for sample, _ in rows], np.int64),
        name=names,
        attribute=attributes,
        translation=vector("translation"),
        size=size,
        rotation=rotation,
        velocity=vector("velocity", may_be_nan=True),
        score=score,
        num_points=number("num_pts").astype(np.int64) if is_truth else np.full(count, -1),
    )


def _numbers(rows: Sequence[tuple[int, Any]], key: str, width: int, may_be_nan: bool, where: Any) -> Array:
    """float64 [N, width], or [N] for width 0; checked one by one only where the quick way fails."""
    shape = (len(rows), width) if width else (len(rows),)
    try:
        entries = [box[key] for _, box in rows]
        kinds = set(map(type, chain.from_iterable(entries) if width else entries))
        values = np.array(entries, np.float64).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError):
        kinds, values = set(), np.full(shape, np.nan)
        _check_each(rows, key, width, where)
    if not kinds <= {int, float}:  # what NumPy would take for numbers: truth values, and texts of digits
        _check_each(rows, key, width, where)
    return _within_bounds(rows, key, values, may_be_nan, where)


def _within_bounds(
    rows: Sequence[tuple[int, Any]], key: str, values: Array, may_be_nan: bool, where: Callable[[int], str]
) -> Array:
    wrong = ~(np.abs(values) <= LARGEST)
    wrong = wrong & ~np.isnan(values) if may_be_nan else wrong
    for i in np.flatnonzero(wrong.reshape(len(rows), -1).any(1)) if wrong.any() else ():
        what = f"is beyond {LARGEST:g}" if np.isfinite(values[i]).all() else "is not finite"
        raise DataError(f"{where(int(i))}: {key} {what}: {rows[int(i)][1][key]}")
    return values


def _vectors(rows: Sequence[tuple[int, Any]], widths: Mapping[str, int]) -> dict[str, Array]:
    """float64 [N, width] by key, all keys of a box at one visit, which takes a third of the time of one key at a time.

    Empty where an entry is missing, of another length, or no number: those are checked one by one.
    """
    try:
        entries = list(chain.from_iterable(map(itemgetter(*widths), (box for _, box in rows))))
        lengths = np.fromiter(map(len, entries), np.int64, len(entries)).reshape(-1, len(widths))
        numbers = list(chain.from_iterable(entries))
        if not set(map(type, numbers)) <= {int, float} or (lengths != list(widths.values())).any():
            return {}
        values = np.fromiter(numbers, np.float64, len(numbers)).reshape(len(rows), -1)
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    columns = np.split(values, np.cumsum(list(widths.values()))[:-1], axis=1)
    return {key: np.ascontiguousarray(column) for key, column in zip(widths, columns, strict=True)}


def _check_each(rows: Sequence[tuple[int, Any]], key: str, width: int, where: Any) -> None:
    for row, (_, box) in enumerate(rows):
        _check_numbers(box, key, width, where(row))


def _check_numbers(box: Any, key: str, width: int, where: str) -> None:
    if not isinstance(box, Mapping) or key not in box:
        raise DataError(f"{where}: {key!r} is missing")
    value = box[key]
    entries = value if width else [value]
    good = isinstance(entries, list) and len(entries) == max(width, 1)
    if not good or not all(type(v) in (int, float) for v in entries):
        expected = f"{width} numbers" if width else "a number"
        raise DataError(f"{where}: {key} must be {expected}, got {value!r}")
    if any(type(v) is int and abs(v) > LARGEST for v in entries):
        raise DataError(f"{where}: {key} is beyond {LARGEST:g}")


def _texts(rows: Sequence[tuple[int, Any]], key: str, known: Sequence[str], what: str, where: Any) -> Array:
    """unicode [N]: one of the known texts per row; checked one by one only where the quick way fails."""
    number = {text: i for i, text in enumerate(known)}
    try:
        return np.array(known, np.str_)[np.array([number[box[key]] for _, box in rows], np.intp)]
    except (KeyError, TypeError):
        i, text = next((i, _text(box, key, where(i))) for i, (_, box) in enumerate(rows) if _unknown(box, key, number))
        raise DataError(f"{where(i)}: unknown {what} {text!r}{suggest(text, known)}") from None


def _unknown(box: Any, key: str, known: Mapping[str, int]) -> bool:
    return not isinstance(box, Mapping) or not isinstance(box.get(key), str) or box[key] not in known


def _text(box: Any, key: str, where: str) -> str:
    text = box.get(key) if isinstance(box, Mapping) else None
    if not isinstance(text, str):
        raise DataError(f"{where}: a box without a text {key!r}")
    return text


def _racks(path: Path, racks: Sequence[tuple[int, Any]], tokens: Sequence[str]) -> Boxes:
    def column(key: str, width: int) -> Array:
        return _numbers(racks, key, width, False, lambda i: f"{path}: sample {tokens[racks[i][0]]}: bicycle rack")

    count = len(racks)
    texts = np.full(count, "", np.str_)
    return Boxes(
        sample=np.array([sample for sample, _ in racks], np.int64),
        name=texts,
        attribute=texts,
        translation=column("translation", 3),
        size=column("size", 3),
        rotation=column("rotation", 4),
        velocity=np.full((count, 2), math.nan),
        score=np.zeros(count),
        num_points=np.full(count, -1),
    )
