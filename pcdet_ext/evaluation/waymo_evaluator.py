"""The metric of the Waymo Open Dataset for the frames of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.waymo import evaluate
from pcdet_ext.evaluation.waymo_boxes import Boxes, joined, sides, type_number, usable, write_boxes
from pcdet_ext.evaluation.waymo_messages import has_protobuf, write_objects
from pcdet_ext.evaluation.waymo_objects import Breakdown, Config
from pcdet_ext.evaluation.waymo_result import WaymoResult
from pcdet_ext.structures import Detections, Sample

RESULTS = "results.parquet", "results.bin"  # what is written: a table, and an Objects message for the server

_log = logging.getLogger(__name__)


class WaymoEvaluator:
    """AP and APH of a data set's frames (see `Evaluator`).

    Args:
        classes: what is measured.
        truth_of: the labelled boxes of a sample, or None where it has no labels.
        found_of: the detections in a sample (NumPy) under the names of the benchmark.
        breakdowns: what the numbers are divided by.

    Raises:
        DataError: for a class that the benchmark does not know.
    """

    def __init__(
        self,
        classes: Sequence[str],
        truth_of: Callable[[Sample], Boxes | None],
        found_of: Callable[[Sample, Detections], Boxes],
        breakdowns: Sequence[Breakdown] = ("OBJECT_TYPE", "RANGE"),
    ) -> None:
        self._types = [type_number(name, "classes") for name in classes]
        self._truth_of, self._found_of = truth_of, found_of
        self._config = Config(breakdowns=tuple(breakdowns))
        self._frames: dict[Hashable, tuple[Boxes | None, Boxes]] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame."""
        self._frames[sample.frame_id] = self._truth_of(sample), self._found_of(sample, predictions.numpy())

    def state(self) -> Mapping[Hashable, Any]:
        """Labelled and detected boxes of each frame."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> WaymoResult | None:
        """The metric, or None when no frame is labelled. Raises ValueError when only some are."""
        truth = [boxes for boxes, _ in self._sorted() if boxes is not None]
        if not truth:
            return None
        if len(truth) < len(self._frames):
            without = len(self._frames) - len(truth)
            raise ValueError(f"{without} of {len(self._frames)} frames have no labels to compare with")
        found = joined([boxes for _, boxes in self._sorted()])
        return evaluate(*sides(joined(truth), found), self._config).of_types(self._types)

    def check_folder(self, folder: str | Path) -> None:
        """Nothing to refuse: the files that are written have the same names in every run."""

    def write(self, folder: str | Path) -> list[Path]:
        """`results.parquet`, and, where the package protobuf is there, `results.bin` for Waymo's server.

        Boxes that no reader takes, as those that are not finite or have no size, are left out, and logged.
        """
        found = joined([boxes for _, boxes in self._sorted()])
        kept = usable(found)
        if not kept.all():
            _log.warning("%s: %d of %d boxes are not written, as they are none", folder, (~kept).sum(), len(kept))
            found = found.select(np.flatnonzero(kept))
        table, message = (Path(folder) / name for name in RESULTS)
        write_boxes(table, found)
        if has_protobuf():
            write_objects(message, found)
            return [table, message]
        message.unlink(missing_ok=True)  # of an earlier run
        _log.warning("%s is not written: Objects messages need the package protobuf", message)
        return [table]

    def _sorted(self) -> list[tuple[Boxes | None, Boxes]]:
        return [self._frames[key] for key in sorted(self._frames, key=str)]
