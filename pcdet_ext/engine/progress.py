"""Where a training stands, as its checkpoints say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcdet_ext.checkpoint import CheckpointError

COUNTS = ("epoch", "batch", "step", "steps")
LATER = ("best_epoch", "to_beat", "without_better")  # which checkpoints of earlier versions do not have


@dataclass
class Progress:
    """Where a training stands.

    `batch` steps of `epoch` (which has `steps`) are done, `step` in all. `best` is the highest score so far, of the
    evaluation after `best_epoch` epochs. `without_better` evaluations in a row were not better than `to_beat`, which
    follows `best` with the least difference that an early stop asks for.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    steps: int = 0
    best: float | None = None
    best_epoch: int | None = None
    to_beat: float | None = None
    without_better: int = 0

    @staticmethod
    def of(values: Mapping[str, Any]) -> Progress:
        """From what a checkpoint holds. Raises CheckpointError where it is no progress."""
        counts = (*COUNTS, *(name for name in ("without_better",) if name in values))
        whole = all(isinstance(values.get(name), int) and values[name] >= 0 for name in counts)
        numbers = all(isinstance(values.get(name), int | float | None) for name in ("best", "best_epoch", "to_beat"))
        if not whole or not numbers or set(values) - set(LATER) != {*COUNTS, "best"}:
            raise CheckpointError(f"damaged: {dict(values)} does not say where a training stands")
        return Progress(**{"to_beat": values["best"], **values})

    def scored(self, score: float, min_delta: float) -> bool:
        """Take the score of the evaluation after the present epoch; True when it is the best one so far.

        An evaluation that is done again, because the training was stopped before the next epoch began, counts once.
        """
        if self.epoch + 1 == self.best_epoch:
            return True
        if self.to_beat is None or score > self.to_beat + min_delta:
            self.to_beat, self.without_better = score, 0
        else:
            self.without_better += 1
        if self.best is not None and score <= self.best:
            return False
        self.best, self.best_epoch = score, self.epoch + 1
        return True
