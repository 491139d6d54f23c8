"""Detections for frames of nuScenes: measured with its own metric, written as a submission, and read from one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.nuscenes.poses import Pose
from pcdet_ext.data.nuscenes.submission import Rows, best, boxes_of, local_detections, world_rows, write_submission
from pcdet_ext.evaluation.nuscenes import CLASSES, Boxes, NuScenesResult, Samples, evaluate
from pcdet_ext.evaluation.nuscenes_columns import LARGEST
from pcdet_ext.evaluation.nuscenes_files import MAX_BOXES, Submission
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Detections, Sample

FILE_NAME = "results_nusc.json"

_log = logging.getLogger(__name__)


class NuScenesEvaluator:
    """The nuScenes metric of a data set's frames (see `Evaluator`).

    Args:
        classes: what the detections are of.
        places: of the lidar on the vehicle and of the vehicle in the world, by sample token.
        truth_of: the official ground truth of samples, by their tokens, or None where the release has none.
        tokens: samples of the split, all of which a submission has.

    Raises:
        ValueError: a class that nuScenes does not measure.
    """

    def __init__(
        self,
        classes: Sequence[str],
        places: Callable[[str], tuple[Pose, Pose]],
        truth_of: Callable[[Sequence[str]], tuple[Boxes, Samples] | None],
        tokens: Sequence[str],
    ) -> None:
        for name in classes:
            if name not in CLASSES:
                raise ValueError(f"nuScenes has no metric for class {name!r}{suggest(name, CLASSES)}")
        self.classes = tuple(classes)
        self._places, self._truth_of, self._tokens = places, truth_of, tokens
        self._frames: dict[Hashable, tuple[Rows, int]] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame, the best 500 of them.

        Those whose place, size or score is not finite, or beyond all bounds, are left out, as a submission may not have
        them; an unknown velocity (NaN) may be.
        """
        found = predictions.numpy()
        numbers = np.column_stack([found.boxes, found.scores])
        numbers[:, 7:-1] = np.nan_to_num(numbers[:, 7:-1], posinf=np.inf, neginf=-np.inf)
        kept = best(found.select((np.abs(numbers) <= LARGEST).all(axis=1)))
        self._frames[sample.frame_id] = world_rows(kept, *self._places(sample.frame_id)), len(found) - len(kept)

    def state(self) -> Mapping[Hashable, Any]:
        """The rows of each frame, and how many detections are not among them."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> NuScenesResult | None:
        """The metric over the frames added, or None when no object is labelled."""
        tokens = [token for token in self._tokens if token in self._frames]
        truth = self._truth_of(tokens) if tokens else None
        if truth is None or not len(truth[0]):
            return None
        self._note_left_out()
        found = boxes_of([self._frames[token][0] for token in tokens])
        return evaluate(truth[0], found, truth[1], strict=False)  # early in training there may be no detection

    def check_folder(self, folder: str | Path) -> None:
        """Nothing can mix: a submission is one file, which is replaced."""

    def write(self, folder: str | Path) -> list[Path]:
        """A submission, `results_nusc.json`, with all samples of the split."""
        self._note_left_out()
        path = Path(folder) / FILE_NAME
        write_submission(path, {str(token): rows for token, (rows, _) in self._frames.items()}, self._tokens)
        return [path]

    def _note_left_out(self) -> None:
        counts = [left_out for _, left_out in self._frames.values() if left_out]
        if counts:
            _log.warning(
                "%d samples have more than %d detections or some that are not finite or beyond all bounds: %d are left "
                "out, of more than %d those with the lowest scores",
                len(counts),
                MAX_BOXES,
                sum(counts),
                MAX_BOXES,
            )


class NuScenesResults(Mapping[str, Detections]):
    """Detections by sample token out of a submission of any code base, to the detection or the tracking benchmark.

    Args:
        path: the file.
        classes: come first in the detections' class names; further classes follow them.
        pose_of: lidar to world, float64 [4, 4], by sample token.
        tokens: the samples of the data set; what the file says of others is left out.

    Raises:
        DataError: the file is damaged, or is about none of the data set's samples.
    """

    def __init__(
        self, path: Path, classes: Sequence[str], pose_of: Callable[[str], Array], tokens: Collection[str]
    ) -> None:
        self._boxes, names, self._tracks = _read(path)
        known = set(tokens)
        self._number = {token: i for i, token in enumerate(names) if token in known}
        if not self._number:
            raise DataError(f"{path}: has none of the data's {len(known)} samples")
        self._classes, self._pose_of = tuple(classes), pose_of
        self._order = np.argsort(self._boxes.sample, kind="stable")
        self._starts = np.searchsorted(self._boxes.sample[self._order], np.arange(len(names) + 1))

    def __getitem__(self, token: str) -> Detections:
        number = self._number[token]
        rows = self._order[self._starts[number] : self._starts[number + 1]]
        found = local_detections(self._boxes.select(rows), self._classes, self._pose_of(token), token)
        return found if self._tracks is None else replace(found, track_ids=self._tracks[rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self._number)

    def __len__(self) -> int:
        return len(self._number)


def _read(path: Path) -> tuple[Boxes, tuple[str, ...], Array | None]:
    """Boxes, the samples that they number, and the track of each where the file is of the tracking benchmark."""
    submission = Submission.read(path)
    if not submission.is_tracking:
        return *submission.detections(), None
    tracks, names = submission.tracks()
    return tracks.boxes, names, np.unique(tracks.track, return_inverse=True)[1].astype(np.int64)
