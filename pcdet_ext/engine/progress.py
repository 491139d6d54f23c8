"""Where a training stands, as its checkpoints say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcdet_ext.checkpoint import CheckpointError


@dataclass
class Progress:
    """Where a training stands.

    `batch` steps of `epoch` (which has `steps`) are done, `step` in all; `best` is the highest score so far.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    steps: int = 0
    best: float | None = None

    @staticmethod
    def of(values: Mapping[str, Any]) -> Progress:
        """From what a checkpoint holds. Raises CheckpointError where it is no progress."""
        counts = ("epoch", "batch", "step", "steps")
        whole = all(isinstance(values.get(name), int) and values[name] >= 0 for name in counts)
        if not whole or set(values) != {*counts, "best"} or not isinstance(values["best"], int | float | None):
            raise CheckpointError(f"damaged: {dict(values)} does not say where a training stands")
        return Progress(**values)
