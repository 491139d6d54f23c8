"""The end of a training whose score gets no better."""

from __future__ import annotations

from dataclasses import dataclass

from pcdet_ext.ranges import check_range


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
        check_range(1, patience=self.patience)
        check_range(0, min_delta=self.min_delta)
