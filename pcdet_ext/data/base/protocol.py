"""What the library asks of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from pcdet_ext.config import Registry
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.evaluation.base import Evaluator
from pcdet_ext.structures import Array, Detections, PointLabels, Sample

DATASETS = Registry("dataset")


class Dataset(Protocol):
    """Frames to train on or to test.

    classes: what is to be found; point_features: names of the columns that samples have; notes: what is worth knowing
    before one trains, as how many objects of each class there are to draw from; measures: what its evaluator takes of
    a detector's results, `Detections` or another type.
    """

    classes: Sequence[str]
    point_features: Sequence[str] | None
    notes: Sequence[str]
    measures: ClassVar[type]

    @property
    def frames(self) -> Sequence[FrameInfo]:
        """The index."""

    @property
    def labelled(self) -> bool:
        """Whether there is something to measure against in any frame."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the frames met so far that are damaged and were left out, by any loader process of this data set."""

    def __getitem__(self, index: int) -> Sample:
        """A sample; its labels are positions in `classes`. Raises DataError naming a damaged file."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""

    def epoch_order(self, rng: np.random.Generator) -> Array:
        """The order in which an epoch of training goes through the samples, drawn with `rng`: int64 [K]."""

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Evaluator:
        """The data set's own metric, with options of `test.metric`. Raises ConfigError for options that do not fit."""

    def read_results(self, path: str | Path) -> Mapping[str, Detections | PointLabels]:
        """Results of any code base for frames of this data set, by frame id, to be shown.

        path: a file or folder in the benchmark's own format. Boxes are NumPy arrays in the LiDAR frame of their frame,
        labels of points are those of all points of the frame's file; frames that the file does not name are missing.
        The mapping may read a frame when it is asked for.
        Raises DataError naming what is missing or damaged, ConfigError where results of the format cannot be read.
        """
