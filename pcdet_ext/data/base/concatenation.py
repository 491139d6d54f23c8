"""Several data sets one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils.data

from pcdet_ext.config import ConfigError
from pcdet_ext.data.balance import weighted_order
from pcdet_ext.data.base.frames import FrameDataset
from pcdet_ext.data.base.protocol import Dataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.evaluation.base import Evaluator
from pcdet_ext.structures import Array, Detections, Sample


class ConcatDataset(torch.utils.data.Dataset[Sample]):
    """Several data sets of the same classes and columns one after the other, with a common epoch, to train on."""

    measures: ClassVar[type] = Detections  # which is nothing here: see `evaluator`

    def __init__(self, parts: Sequence[Dataset]) -> None:
        if not parts:
            raise ValueError("parts must hold at least one data set")
        self.parts = list(parts)
        self.classes, self.point_features = self.parts[0].classes, self.parts[0].point_features
        for part in self.parts:
            if getattr(part, "sequence_parts", None) is not None:
                raise ValueError("sequences of sources cannot be gone through together: train on one data set")
            for name in ("classes", "point_features"):
                if tuple(getattr(part, name)) != tuple(getattr(self, name)):
                    raise ValueError(f"{name} differ: {list(getattr(self, name))} and {list(getattr(part, name))}")
        self.notes: Sequence[str] = [f"source {i}: {note}" for i, part in enumerate(self.parts) for note in part.notes]
        self._ends = list(accumulate(len(part) for part in self.parts))

    @property
    def frames(self) -> list[FrameInfo]:
        """The frames of all parts."""
        return [info for part in self.parts for info in part.frames]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    @property
    def labelled(self) -> bool:
        """Whether there is something to measure against in any frame of any part."""
        return any(part.labelled for part in self.parts)

    def epoch_order(self, rng: np.random.Generator) -> Array:
        """The samples in random order, drawn by their weights where a part has some; see `Dataset`.

        Neighbours stay together in parts that need it.
        """
        weights = [getattr(part, "weights", None) for part in self.parts]
        if any(part is not None for part in weights):
            known = [np.ones(len(part)) if own is None else own for part, own in zip(self.parts, weights, strict=True)]
            return weighted_order(np.concatenate(known), rng)
        if not any(isinstance(part, FrameDataset) and part.PAIRED for part in self.parts):
            return rng.permutation(len(self))
        starts = [0, *self._ends[:-1]]
        orders = [part.epoch_order(rng) + start for part, start in zip(self.parts, starts, strict=True)]
        whole = [order[: len(order) // 2 * 2].reshape(-1, 2) for order in orders]  # a sample left over waits an epoch
        return rng.permutation(np.concatenate(whole)).reshape(-1)

    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the damaged frames that were left out so far, with the number of their source."""
        return [f"source {i}: {frame_id}" for i, part in enumerate(self.parts) for frame_id in part.skipped]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of every part."""
        for part in self.parts:
            part.set_epoch(epoch)

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Evaluator:
        """Raises ConfigError: several data sets have no common metric."""
        raise ConfigError("data.sources: several sources have no common metric; test on the data set of data.root")

    def read_results(self, path: str | Path) -> Mapping[str, Any]:
        """Raises ConfigError: several data sets have no common format of results."""
        raise ConfigError(f"{path}: several sources have no common results; show those of the data set of data.root")
