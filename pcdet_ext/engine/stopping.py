"""The end of a training whose score gets no better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """The setting `train.early_stop`.

    Args:
        patience: the training ends after so many evaluations in a row without a better score.
        min_delta: what a score must be above the one to beat, to count as better.

    Raises:
        ValueError: a value is outside its range.
    """

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ValueError(
                f"patience must be at least 1 and min_delta at least 0, got {self.patience} and {self.min_delta}"
            )
