"""Detections for frames of Argoverse 2: measured with its metric, written as a submission, and read from one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.argoverse2.logs import category_name, class_name
from pcdet_ext.evaluation.argoverse2 import (
    CATEGORIES,
    Argoverse2Result,
    Config,
    Cuboids,
    Region,
    categories_present,
    evaluate,
)
from pcdet_ext.evaluation.argoverse2_files import (
    POSITION,
    ROTATION,
    SIZE,
    Sweep,
    numbered,
    read_detections,
)
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.structures import Array, Detections, Sample

FILE_NAME = "detections.feather"
_log = logging.getLogger(__name__)

Truth = Callable[[Collection[Sweep]], tuple[Cuboids, list[Sweep]]]
Entry = tuple[Sweep, Cuboids, int]  # of a frame: its sweep, its detections, and how many are not among them


class Argoverse2Evaluator:
    """The detection metric of Argoverse 2 over a data set's frames (see `Evaluator`).

    Args:
        classes: what is measured, as Regular_vehicle.
        sweep_of: log and timestamp of a frame, by its id.
        labelled: whether a log has annotations, by its id; detections in other logs are not measured.
        truth_of: annotations of sweeps of labelled logs, and the sweep of each.
        region_of: where boxes count, for sweeps in the order of their numbers; None for everywhere.
        max_range: metres from the vehicle below which boxes count.
        recall_samples: points of the precision-recall curve.
        only_present: whether classes without annotations in the frames are left out of the averages.

    Raises:
        ValueError: for a class that the benchmark does not have.
    """

    def __init__(
        self,
        classes: Sequence[str],
        sweep_of: Callable[[str], Sweep],
        labelled: Callable[[str], bool],
        truth_of: Truth,
        region_of: Callable[[list[Sweep]], Region | None],
        max_range: float = 150.0,
        recall_samples: int = 101,
        only_present: bool = False,
    ) -> None:
        known = [class_name(category) for category in CATEGORIES]
        for name in classes:
            if name not in known:
                raise ValueError(f"Argoverse 2 has no metric for class {name!r}{suggest(name, known)}")
        if not max_range > 0 or recall_samples < 2:
            raise ValueError(f"max_range must be above 0 and recall_samples at least 2: {max_range}, {recall_samples}")
        self._config = Config(tuple(map(category_name, classes)), max_range=max_range, recall_samples=recall_samples)
        self._only_present = only_present
        self._sweep_of, self._labelled = sweep_of, labelled
        self._truth_of, self._region_of = truth_of, region_of
        self._frames: dict[Hashable, Entry] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame; those whose numbers are not finite, or that have no size, are left out."""
        boxes = cuboids_of(predictions.numpy())
        self._frames[sample.frame_id] = self._sweep_of(sample.frame_id), boxes, len(predictions) - len(boxes)

    def state(self) -> Mapping[Hashable, Any]:
        """Sweep and boxes of each frame, and how many detections are not among them."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> Argoverse2Result | None:
        """The metric over the frames added that are of logs with annotations, or None where there are none."""
        logs = {log for (log, _), *_ in self._frames.values()}
        labelled = {log for log in logs if self._labelled(log)}
        frames = [entry for entry in self._frames.values() if entry[0][0] in labelled]
        if not frames:
            return None
        truth = self._truth_of({sweep for sweep, *_ in frames})
        annotations, detections, sweeps = numbered(truth, _joined(frames))
        config = self._config
        if self._only_present:
            config = replace(config, categories=categories_present(annotations, config.categories))
        if not config.categories:
            return None
        return evaluate(annotations, detections, config, self._region_of(sweeps))

    def check_folder(self, folder: str | Path) -> None:
        """Nothing can mix: a submission is one file, which is replaced."""

    def write(self, folder: str | Path) -> list[Path]:
        """A submission, `detections.feather`, of all frames added."""
        left_out = sum(count for *_, count in self._frames.values())
        if left_out:
            _log.warning("%d detections whose numbers are not finite, or that have no size, are left out", left_out)
        path = Path(folder) / FILE_NAME
        write_detections(path, *_joined(self._frames.values()))
        return [path]


def _joined(entries: Iterable[Entry]) -> tuple[Cuboids, list[Sweep]]:
    """The detections of all frames, by log and time, and the sweep of each."""
    frames = sorted(entries, key=lambda entry: entry[0])
    sweeps = [sweep for sweep, boxes, _ in frames for _ in range(len(boxes))]
    parts = [vars(boxes) for _, boxes, _ in frames] or [vars(_cuboids(np.zeros((0, 7)), np.zeros(0), ()))]
    return Cuboids(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}), sweeps


def cuboids_of(found: Detections) -> Cuboids:
    """Detections (NumPy) of one frame as boxes of the benchmark, upright, all with the sweep 0.

    Those with a number that is not finite, or without a positive size, are left out, as a submission may not have them.
    """
    boxes, scores = np.asarray(found.boxes, np.float64)[:, :7], np.asarray(found.scores, np.float64)
    usable = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (boxes[:, 3:6] > 0).all(axis=1)
    names = [name for name, keep in zip(found.names, usable.tolist(), strict=True) if keep]
    return _cuboids(boxes[usable], scores[usable], names)


def _cuboids(boxes: Array, scores: Array, names: Sequence[str]) -> Cuboids:
    half = boxes[:, 6] / 2
    return Cuboids(
        sweep=np.zeros(len(boxes), np.int64),
        category=np.array([category_name(name) for name in names], np.str_),
        center=boxes[:, :3],
        size=boxes[:, 3:6],
        rotation=np.column_stack([np.cos(half), np.zeros((len(boxes), 2)), np.sin(half)]),
        score=scores,
        num_points=np.full(len(boxes), -1),
    )


def write_detections(path: Path, boxes: Cuboids, sweeps: Sequence[Sweep]) -> None:
    """Write a submission in Feather.

    Args:
        path: the file.
        boxes: with scores.
        sweeps: log and timestamp of each box.
    """
    import pyarrow as pa
    from pyarrow import feather

    columns: dict[str, Any] = {
        "log_id": pa.array([log for log, _ in sweeps], pa.string()),
        "timestamp_ns": pa.array([time for _, time in sweeps], pa.int64()),
        "category": pa.array(boxes.category.tolist(), pa.string()),
    }
    for names, values in ((SIZE, boxes.size), (ROTATION, boxes.rotation), (POSITION, boxes.center)):
        columns |= dict(zip(names, values.T, strict=True))
    with atomic_write(path) as temporary:
        feather.write_feather(pa.table(columns | {"score": boxes.score}), str(temporary))


def results_by_frame(path: Path, classes: Sequence[str], frames: Mapping[Sweep, str]) -> Mapping[str, Detections]:
    """Detections of a submission by frame id, as NumPy arrays.

    Args:
        path: a Feather file of any code base.
        classes: come first among the class names; further ones in the file follow, sorted.
        frames: frame ids by log and timestamp; what the file says of others is left out.

    Raises:
        DataError: the file is missing or damaged, or is about none of these frames.
    """
    boxes, sweeps = read_detections(path)
    rows: dict[str, list[int]] = {}
    for row, sweep in enumerate(sweeps):
        if sweep in frames:
            rows.setdefault(frames[sweep], []).append(row)
    if not rows:
        raise DataError(f"{path}: has none of the data's {len(frames)} sweeps")
    names = [class_name(category) for category in boxes.category.tolist()]
    all_names = (*classes, *sorted(set(names) - set(classes)))
    labels = np.array([all_names.index(name) for name in names], np.int64)
    local = np.column_stack([boxes.center, boxes.size, yaws(boxes.rotation)]).astype(np.float32)
    scores = boxes.score.astype(np.float32)
    return {
        frame_id: Detections(local[own], scores[own], labels[own], all_names, frame_id)
        for frame_id, own in ((frame_id, np.array(found, np.int64)) for frame_id, found in rows.items())
    }
