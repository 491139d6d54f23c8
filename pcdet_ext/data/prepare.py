"""Preparation of a data set: an index of its frames, and a database of its objects for ground-truth sampling.

Everything goes under one folder, `<root>/pcdet_ext` unless told otherwise: `index_<split>.json`, and for each database
split `database_<split>/`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

from pcdet_ext.files import DataError
from pcdet_ext.data.kitti import files as kitti
from pcdet_ext.data.geometry import finite_points, inside_boxes
from pcdet_ext.data.index import FOLDER, FrameInfo, index_path, write_index
from pcdet_ext.data.objects import database_path, write_objects
from pcdet_ext.structures import Array

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What the preparation of a split found: objects by class, points not finite, errors of frames left out."""

    split: str
    frames: int
    objects: dict[str, int]
    dropped_points: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        objects = ", ".join(f"{count} {name}" for name, count in self.objects.items()) or "no labelled objects"
        text = f"{self.split}: {self.frames} frames, {objects}"
        text += f"; {self.dropped_points} points are not finite" if self.dropped_points else ""
        return text + (f"; {len(self.skipped)} damaged frames left out" if self.skipped else "")


class _Result(NamedTuple):
    """A frame's index entry and, if asked for, the points of its objects; or the error that it gave."""

    info: FrameInfo | None
    clouds: list[Array]
    error: str | None = None


def prepare_kitti(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    database: Sequence[str] = ("train",),
    out: str | Path | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> list[Summary]:
    """Index the splits of a KITTI-format folder, and build the object databases of those that `database` names.

    out: folder to write to, `<root>/pcdet_ext` when None. workers: processes, 0 for none but this one.
    Raises DataError naming the file of a damaged frame; with on_error "skip" such frames are left out and logged.
    """
    out = Path(out) if out else Path(root) / FOLDER
    return [_prepare_split(root, s, s in database, out, workers, on_error, progress) for s in splits]


def _prepare_split(
    root: str | Path, split: str, cut: bool, out: Path, workers: int, on_error: str, progress: bool
) -> Summary:
    frames = kitti.find_frames(root, split)
    read = partial(_read_frame, cut=cut, skip=on_error == "skip")
    results = list(_run(read, frames, workers, split, progress))
    good = [result for result in results if result.info]
    if cut:
        write_objects(database_path(out, split), ((r.info, r.clouds) for r in good))
    write_index(index_path(out, split), [r.info for r in good])
    skipped = tuple(result.error for result in results if result.error)
    for error in skipped:
        _log.warning("frame left out: %s", error)
    objects = Counter(name for r in good for name in r.info.names)
    return Summary(split, len(good), dict(objects.most_common()), sum(r.info.dropped for r in good), skipped)


def _run(read: Callable, frames: Sequence[kitti.Frame], workers: int, title: str, progress: bool) -> Iterator[_Result]:
    """Results of `read` for each frame, in order, with a progress bar on standard error."""
    from tqdm import tqdm

    bar = partial(tqdm, total=len(frames), desc=title, unit="frame", disable=not progress)
    if workers == 0:
        yield from bar(map(read, frames))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from bar(pool.map(read, frames, chunksize=4))
        finally:  # after an error the frames not yet begun are not waited for
            pool.shutdown(cancel_futures=True)


def _read_frame(frame: kitti.Frame, cut: bool, skip: bool) -> _Result:
    try:
        return _index_frame(frame, cut)
    except (DataError, OSError) as error:
        if not skip:
            raise
        return _Result(None, [], str(error))


def _index_frame(frame: kitti.Frame, cut: bool) -> _Result:
    points = kitti.read_points(frame.points)
    finite, dropped = finite_points(points)
    calibration = kitti.Calibration.read(frame.calibration)
    info = FrameInfo(frame.frame_id, frame.folder, len(points), dropped, frame.image_size())
    if frame.folder == "testing":
        return _Result(info, [])
    boxes = kitti.labels_to_boxes(kitti.read_labels(frame.labels, with_scores=False), calibration)
    inside = inside_boxes(finite, boxes.boxes)
    info = replace(
        info,
        boxes=boxes.boxes.tolist(),
        names=list(boxes.names),
        difficulty=boxes.difficulty.tolist(),
        points_in_box=inside.sum(axis=1).tolist(),
    )
    return _Result(info, [_relative(finite[i], box) for i, box in zip(inside, boxes.boxes, strict=True)] if cut else [])


def _relative(points: Array, box: Array) -> Array:
    """A copy of points [N, F] with positions relative to the centre of a box."""
    points = points.copy()
    points[:, :3] -= box[:3]
    return points
