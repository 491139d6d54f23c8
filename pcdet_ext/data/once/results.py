"""Detections for frames of ONCE: measured with its metric, written to a file, and read from one.

A file of results is a list with an entry for each frame: `frame_id` (the name of its files), `name`, `score` and
`boxes_3d`, lists of as many classes, scores and boxes (x, y, z, length, width, height, heading); and `sequence_id`,
which other tools leave out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.once.sequences import Frame, boxes_of
from pcdet_ext.data.waymo.pickles import read_pickle
from pcdet_ext.evaluation.once import Config, OnceResult, evaluate
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Detections, Sample, Targets

FILE_NAME = "results.json"

_log = logging.getLogger(__name__)


class OnceEvaluator:
    """ONCE's metric of a data set's frames (see `Evaluator`).

    Args:
        config: what counts.
        truth_of: the labels of a frame by its id, or None where it has none.
        frame_of: a frame by its id.
    """

    def __init__(
        self, config: Config, truth_of: Callable[[str], Targets | None], frame_of: Callable[[str], Frame]
    ) -> None:
        self._config, self._truth_of, self._frame_of = config, truth_of, frame_of
        self._frames: dict[Hashable, tuple[Detections, int]] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame; those whose numbers are not finite, or that have no size, are left out."""
        found = predictions.numpy()
        boxes = np.asarray(found.boxes)[:, :7]
        usable = np.isfinite(boxes).all(axis=1) & np.isfinite(found.scores) & (boxes[:, 3:6] > 0).all(axis=1)
        self._frames[sample.frame_id] = found.select(usable), int((~usable).sum())

    def state(self) -> Mapping[Hashable, Any]:
        """The detections of each frame, and how many are left out."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> OnceResult | None:
        """The metric over the labelled frames, or None where there are none."""
        frames = sorted(self._frames.items(), key=lambda pair: str(pair[0]))
        pairs = [(self._truth_of(str(frame_id)), found) for frame_id, (found, _) in frames]
        labelled = [(truth, found) for truth, found in pairs if truth is not None]
        if not labelled:
            return None
        return evaluate([truth for truth, _ in labelled], [found for _, found in labelled], self._config)

    def check_folder(self, folder: str | Path) -> None:
        """Nothing can mix: the results are one file, which is replaced."""

    def write(self, folder: str | Path) -> list[Path]:
        """A file `results.json` with the frames added."""
        left_out = sum(count for _, count in self._frames.values())
        if left_out:
            _log.warning("%d detections whose numbers are not finite, or that have no size, are left out", left_out)
        path = Path(folder) / FILE_NAME
        entries = [_entry(self._frame_of(str(frame_id)), found) for frame_id, (found, _) in self._frames.items()]
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(entries), encoding="utf-8")
        return [path]


def _entry(frame: Frame, found: Detections) -> dict[str, Any]:
    return {
        "sequence_id": frame.sequence,
        "frame_id": frame.name,
        "name": list(found.names),
        "score": np.asarray(found.scores, np.float64).tolist(),
        "boxes_3d": np.asarray(found.boxes, np.float64)[:, :7].tolist(),
    }


def results_by_frame(path: Path, classes: Sequence[str], frames: Iterable[Frame]) -> dict[str, Detections]:
    """Detections of a file of results by frame id, as NumPy arrays, boxes float32 [N, 7].

    Args:
        path: a JSON file, or a pickle (.pkl) of OpenPCDet's or ONCE's own tools, of which nothing is run.
        classes: come first among the class names; further ones in the file follow, sorted.
        frames: what the file may be about; its entries of other frames are left out.

    Raises:
        DataError: the file is missing or damaged, is about none of these frames, or about one of them twice.
    """
    entries = _read(path)
    ids: dict[tuple[str | None, str], list[str]] = {}
    for frame in frames:
        for key in ((frame.sequence, frame.name), (None, frame.name)):
            ids.setdefault(key, []).append(frame.frame_id)
    found: dict[str, Detections] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        sequence, name, detections = _detections(entry, classes, where)
        own = ids.get((sequence, name), ())
        if len(own) > 1:
            raise DataError(f"{where}: several sequences have a frame {name!r}; it needs a sequence_id")
        for frame_id in own:
            if frame_id in found:
                raise DataError(f"{where}: frame {name!r} is there twice")
            found[frame_id] = detections
    if not found:
        raise DataError(f"{path}: has none of the data's frames")
    return found


def _read(path: Path) -> list[Any]:
    """The entries of a file."""
    try:
        content = read_pickle(path) if path.suffix == ".pkl" else json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged or no JSON ({error})") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list with an entry for each frame")
    return content


def _detections(entry: Any, classes: Sequence[str], where: str) -> tuple[str | None, str, Detections]:
    """Sequence (or None), name and detections of an entry."""
    missing = [
        key for key in ("frame_id", "name", "score", "boxes_3d") if not isinstance(entry, dict) or key not in entry
    ]
    if missing:
        raise DataError(f"{where}: must have frame_id, name, score and boxes_3d; {missing[0]!r} is not there")
    names = entry["name"]
    names = names.tolist() if isinstance(names, np.ndarray) else names
    try:
        scores = np.array(entry["score"], np.float64).reshape(-1)
        boxes, texts = boxes_of(names if len(scores) else [], entry["boxes_3d"])
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: {error}") from None
    if len(scores) != len(texts) or not np.isfinite(scores).all():
        raise DataError(f"{where}: score must be a finite number for each of {len(texts)} names")
    if (boxes[:, 3:6] <= 0).any():
        raise DataError(f"{where}: boxes_3d must have positive sizes")
    all_names = (*classes, *sorted(set(texts) - set(classes)))
    labels = np.array([all_names.index(name) for name in texts], np.int64)
    sequence = entry.get("sequence_id")
    found = Detections(boxes.astype(np.float32), scores.astype(np.float32), labels, all_names, str(entry["frame_id"]))
    return None if sequence is None else str(sequence), str(entry["frame_id"]), found
