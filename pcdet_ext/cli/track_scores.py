"""The scores of results beside the thresholds of a tracker: results of KITTI may have scores on any scale."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.tracking.base import BoxTracker, StillBoxes, TrackedBoxes

# Options that keep detections from starting tracks, and what a score must be beside them.
THRESHOLDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "birth_score": (operator.gt, "above"),
    "score_threshold": (operator.ge, "at or above"),
}


class HighestScore(BoxTracker):
    """Another tracker, and the highest score that it has been given; -inf before the first detection.

    Args:
        tracker: does the work.
    """

    def __init__(self, tracker: BoxTracker) -> None:
        self.tracker, self.highest = tracker, -math.inf

    def reset(self) -> None:
        """See `Tracker.reset`; the highest score stays."""
        self.tracker.reset()

    def associate(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> TrackedBoxes:
        """Take a frame. Arguments as in `BoxTracker.associate`."""
        if len(boxes):
            self.highest = max(self.highest, float(boxes.score.max()))
        return self.tracker.associate(boxes, class_names, timestamp)

    def check_thresholds(self, node: Node, results: Path) -> None:
        """Raises ConfigError where a threshold lets no detection start a track, though there are detections."""
        for name, (passes, words) in THRESHOLDS.items():
            value = node.get(name)
            if value is not None and math.isfinite(self.highest) and not passes(self.highest, value):
                raise ConfigError(
                    f"{node.where(name)}: no detection in {results} has a score {words} {value:g}, so nothing would be "
                    f"tracked; the highest is {self.highest:g}"
                )
