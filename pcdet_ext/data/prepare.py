"""Preparation of a data set: an index of its frames, and a database of its objects for ground-truth sampling.

Everything goes under one folder, `<root>/pcdet_ext` unless another is named: `index_<split>.parquet`, and for each
database split `database_<split>/`. A format brings a `FrameSource`; the rest is the same for all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from pcdet_ext.config import Registry
from pcdet_ext.data.geometry import finite_points, inside_boxes
from pcdet_ext.data.index import FOLDER, FrameInfo, index_path, index_writer
from pcdet_ext.data.objects import ObjectWriter, database_path, object_writer
from pcdet_ext.data.workers import run_in_processes
from pcdet_ext.files import DataError, check_output_folder
from pcdet_ext.structures import Array, Sample

# Functions (root, …) -> FrameSource by the name of a format, as the command line has it.
FRAME_SOURCES = Registry("format")

NO_BOX = "no box in space"  # why an object does not count that has none
EXCLUSIVE_MARGIN = 1e-5  # metres on the upright sides of boxes whose points belong to one box alone

AHEAD = 8  # frames per process that are read before they can be written

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RawFrame:
    """One frame as a format reads it for its index.

    sample: all points, and all labelled boxes under the format's own class names; extra: what the format needs to find
    and read the frame again, in JSON types; reasons: why each object does not count, in words, "" where it does, or
    empty where all count; unboxed: class names of objects that have no box in space; notes: what was unusual, and how
    it was read, in words that are the same for all frames of a kind; object_points: float32 [P, F], what the objects
    of the database are cut from, where that is more than the frame itself (as several sweeps), or a function that reads
    it, called if objects are to be cut; object_features: names of its columns; cut: bool [M], which boxes go into the
    database, None for all; exclusive: whether a point in several of these boxes belongs to the first of them alone.
    """

    sample: Sample
    extra: Mapping[str, Any] = field(default_factory=dict)
    reasons: Sequence[str] = ()
    unboxed: Sequence[str] = ()
    notes: Sequence[str] = ()
    object_points: Array | Callable[[], Array] | None = None
    object_features: tuple[str, ...] = ()
    cut: Array | None = None
    exclusive: bool = False


class FrameSource(Protocol):
    """Where preparation gets the frames of a format from. LAYOUT: its name, which the index and the database keep."""

    LAYOUT: ClassVar[str]
    root: Path

    def find(self, split: str) -> Sequence[Any]:
        """The frames of a split, as objects that can be sent to another process. Raises DataError without any."""

    def read(self, frame: Any) -> RawFrame:
        """One of them. Raises DataError naming the file that is missing or damaged."""


@runtime_checkable
class ConcludingSource(Protocol):
    """A source of frames that has something to say of all splits together, when they are prepared."""

    def finish(self, out: Path, splits: Sequence[str]) -> str:
        """A report on what is prepared in a folder; it may write further files there."""


@dataclass(frozen=True)
class Summary:
    """What the preparation of a split found.

    objects: objects by class; reasons: for each class, why some do not count, and how many; notes: what was unusual,
    with its number of frames; dropped_points: points that are not finite; skipped: errors of frames left out; empty:
    frames without a finite point.
    """

    split: str
    frames: int
    objects: Mapping[str, int]
    dropped_points: int
    skipped: tuple[str, ...]
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    empty: int = 0

    def __str__(self) -> str:
        objects = ", ".join(f"{count} {name}" for name, count in self.objects.items()) or "no labelled boxes"
        text = f"{self.split}: {self.frames} frames, {objects}"
        text += f"; {self.dropped_points} points are not finite" if self.dropped_points else ""
        text += f"; {self.empty} frames have no finite point" if self.empty else ""
        text += f"; {len(self.skipped)} damaged frames left out" if self.skipped else ""
        lines = [self._counting(name) for name in {*self.objects, *self.reasons}]
        notes = [f"  {note} (in {count} of {self.frames} frames)" for note, count in self.notes.items()]
        return "\n".join([text, *sorted(line for line in lines if line), *notes])

    def _counting(self, name: str) -> str:
        """How many objects of a class count, where not all do."""
        reasons = self.reasons.get(name)
        if not reasons:
            return ""
        total = self.objects.get(name, 0)
        counting = total - sum(count for reason, count in reasons.items() if reason != NO_BOX)
        why = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
        return f"  {name}: {counting} of {total} count, the others do not: {why}"


class _Result(NamedTuple):
    """A frame's index entry and, if asked for, the points of its objects by box; or the error that it gave."""

    info: FrameInfo | None
    clouds: Mapping[int, Array]
    raw: RawFrame | None = None
    error: str | None = None


def prepare(
    source: FrameSource,
    splits: Sequence[str] = ("train", "val"),
    database: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> list[Summary]:
    """Index splits of a data set, and build the object databases of those that `database` names.

    Args:
        source: the format's frames.
        splits: what is indexed.
        database: the splits among them of which objects are cut out; None for "train" where it is one of them.
        out: folder to write to, `<root>/pcdet_ext` when None.
        workers: processes, 0 for none but this one.
        on_error: with "skip", damaged frames are left out and logged.
        progress: whether a progress bar is shown on standard error.

    Raises:
        DataError: naming the file of a damaged frame; and when no frame of a split can be read.
        ValueError: a database split is not among the splits, or workers is below 0.
        OSError: `out` cannot be written to.
    """
    database = [split for split in splits if split == "train"] if database is None else database
    missing = [split for split in database if split not in splits]
    if missing:
        raise ValueError(f"{source.root}: database {missing[0]!r} is not one of the splits {', '.join(splits)}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    out = Path(out) if out else Path(source.root) / FOLDER
    check_output_folder(out)
    tallies = [_prepare_split(source, s, s in database, out, workers, on_error, progress) for s in splits]
    _note_shared(tallies)
    return [tally.summary() for tally in tallies]


def _note_shared(tallies: Sequence[_Tally]) -> None:
    """Warn of splits with the same frames, unless one's name says so, as trainval does of train."""
    for a, b in combinations(tallies, 2):
        shared = a.ids & b.ids
        if shared and a.split not in b.split and b.split not in a.split:
            _log.warning(
                "%s: splits %r and %r have %d frames in common, as %s; who trains on one of them and tests on the "
                "other gets better numbers than are true",
                a.root,
                a.split,
                b.split,
                len(shared),
                min(shared),
            )


def _prepare_split(
    source: FrameSource, split: str, cut: bool, out: Path, workers: int, on_error: str, progress: bool
) -> _Tally:
    frames = source.find(split)
    results = _run(partial(_read_frame, source, cut, on_error == "skip"), frames, workers, split, progress)
    tally = _Tally(split, source.root)
    existed = out.exists()
    try:
        with ExitStack() as stack:
            index = stack.enter_context(index_writer(index_path(out, split), Path(source.root), source.LAYOUT))
            objects: ObjectWriter | None = None
            for info, raw, clouds in _usable(results, tally, source, on_error):
                tally.add(info, raw)
                index.add(info)
                if cut and objects is None:
                    features = raw.object_features or raw.sample.point_features
                    writer = object_writer(database_path(out, split), features, source.LAYOUT)
                    objects = stack.enter_context(writer)
                if objects is not None:
                    objects.add(info, clouds)
            _require_points(tally, source)
    except BaseException:
        _remove_empty(out, split, existed)
        raise
    for error in tally.skipped:
        _log.warning("frame left out: %s", error)
    return tally


def _usable(
    results: Iterable[_Result], tally: _Tally, source: FrameSource, on_error: str
) -> Iterator[tuple[FrameInfo, RawFrame, Mapping[int, Array]]]:
    """The frames that could be read, each once; the tally is told of others, or DataError raised for the second one."""
    for result in results:
        if result.info is None or result.raw is None:
            tally.skipped.append(result.error or "")
        elif tally.is_new(result.info.frame_id):
            yield result.info, result.raw, result.clouds
        else:
            twice = f"{source.root}: frame {result.info.frame_id!r} is in split {tally.split!r} twice"
            if on_error == "raise":
                raise DataError(twice)
            tally.skipped.append(twice)


def _require_points(tally: _Tally, source: FrameSource) -> None:
    """Raise DataError for a split without a frame, or without a point in any of them."""
    if not tally.frames:
        raise DataError(f"{source.root}: no frame of split {tally.split!r} could be read: {tally.skipped[0]}")
    if tally.empty == tally.frames:
        raise DataError(f"{source.root}: none of the {tally.frames} frames of split {tally.split!r} has a finite point")


def _remove_empty(out: Path, split: str, existed: bool) -> None:
    """After an error: leave no empty folder behind that was not there before."""
    for folder in (database_path(out, split), *(() if existed else (out,))):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _Tally:
    """What the preparation of a split has found so far."""

    def __init__(self, split: str, root: Path) -> None:
        self.split, self.root = split, root
        self.frames, self.dropped, self.empty = 0, 0, 0
        self.ids: set[str] = set()
        self.objects: Counter[str] = Counter()
        self.reasons: dict[str, Counter[str]] = {}
        self.notes: Counter[str] = Counter()
        self.skipped: list[str] = []

    def is_new(self, frame_id: str) -> bool:
        """Whether no frame of this id was asked about before."""
        known = frame_id in self.ids
        self.ids.add(frame_id)
        return not known

    def add(self, info: FrameInfo, raw: RawFrame) -> None:
        """Count one frame."""
        self.frames += 1
        self.empty += info.num_points == info.dropped
        self.dropped += info.dropped
        self.objects.update(info.names)
        self.notes.update(raw.notes)
        missed = [*zip(info.names, raw.reasons, strict=False), *((name, NO_BOX) for name in raw.unboxed)]
        for name, reason in missed:
            if reason:
                self.reasons.setdefault(name, Counter())[reason] += 1

    def summary(self) -> Summary:
        """The counts of the split."""
        return Summary(
            self.split,
            self.frames,
            dict(self.objects.most_common()),
            self.dropped,
            tuple(self.skipped),
            {name: dict(found.most_common()) for name, found in self.reasons.items()},
            dict(self.notes),
            self.empty,
        )


def _run(
    read: Callable[[Any], _Result], frames: Sequence[Any], workers: int, title: str, progress: bool
) -> Iterator[_Result]:
    """Results of `read` for each frame, in order, with a progress bar on standard error."""
    from tqdm import tqdm

    bar = partial(tqdm, total=len(frames), desc=title, unit="frame", disable=not progress)
    if workers == 0:
        yield from bar(map(read, frames))
        return
    yield from bar(run_in_processes(read, frames, workers, AHEAD))


def _read_frame(source: FrameSource, cut: bool, skip: bool, frame: Any) -> _Result:
    try:
        return _index_frame(source.read(frame), cut)
    except (DataError, OSError) as error:
        if not skip:
            raise
        return _Result(None, {}, error=str(error))


def _index_frame(raw: RawFrame, cut: bool) -> _Result:
    sample, targets = raw.sample, raw.sample.targets
    finite, dropped = finite_points(sample.points)
    boxes = np.zeros((0, 7), np.float32) if targets is None or targets.boxes is None else np.asarray(targets.boxes)
    wrong = np.flatnonzero(~np.isfinite(boxes[:, :7]).all(axis=1) | (boxes[:, 3:6] <= 0).any(axis=1))
    if len(wrong):
        box = boxes[wrong[0]].tolist()
        raise DataError(f"frame {sample.frame_id}: box {wrong[0]} must be finite and of positive size, is {box}")
    inside = inside_boxes(finite, boxes)
    info = FrameInfo.of(sample, dropped, inside.sum(axis=1), raw.extra)
    clouds = cut_objects(raw, inside) if cut else {}
    without_points = replace(raw, sample=sample.replace(points=sample.points[:0], targets=None), object_points=None)
    return _Result(info, clouds, without_points)  # points would have to go back to the main process


def cut_objects(raw: RawFrame, inside: Array | None = None) -> dict[int, Array]:
    """The points of each box that goes into the database, by the position of the box, relative to its centre.

    inside: bool [M, N], which finite points of the sample are in which boxes, where that is known already.
    """
    targets = raw.sample.targets
    if targets is None or targets.boxes is None:
        return {}
    boxes, found = np.asarray(targets.boxes), raw.object_points
    wanted = np.ones(len(boxes), bool) if raw.cut is None else raw.cut
    points = finite_points(raw.sample.points if found is None else found() if callable(found) else found)[0]
    if raw.exclusive:
        inside = inside_boxes(points, boxes, margin=EXCLUSIVE_MARGIN) & wanted[:, None]
        inside &= np.cumsum(inside, axis=0) == 1
    elif inside is None or found is not None:
        inside = inside_boxes(points, boxes)
    return {int(i): _relative(points[inside[i]], boxes[i]) for i in np.flatnonzero(wanted)}


def _relative(points: Array, box: Array) -> Array:
    """A copy of points [N, F] with positions relative to the centre of a box."""
    points = points.copy()
    points[:, :3] -= box[:3]
    return points
