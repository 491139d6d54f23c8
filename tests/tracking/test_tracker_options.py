"""The options of trackers stand in the help of the command and in the documentation, all of them and no others."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pcdet_ext.cli.track import BY_CLASS, OPTIONS, TRACKERS
from pcdet_ext.tracking import GraphTracker, GreedyTracker, KalmanTracker, graph_training, trajectory_fit  # noqa: F401  (registers two trackers)
from pcdet_ext.tracking.base import TRACKERS as KNOWN
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork
from pcdet_ext.tracking.graph_states import GraphOptions
from pcdet_ext.tracking.trajectory import BIRTH, KEPT, TrajectoryOptions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GreedyTracker(max_age=-1), "max_age must be at least 0, got -1"),
        (lambda: GreedyTracker({"car": math.nan}), "limits: that of car must be at least 0, got nan"),
        (lambda: GreedyTracker({}), "limits must name a class"),
        (lambda: GreedyTracker(birth_score=math.inf), "birth_score must be finite, got inf"),
        (lambda: GreedyTracker({"car": "far"}), "limits: that of car must be a number, got 'far'"),  # type: ignore[dict-item]
        (
            lambda: TrajectoryOptions(birth_score={**BIRTH, "Cyclist": 1.2}),
            "birth_score of Cyclist must be from 0 to 1",
        ),
        (lambda: TrajectoryOptions(kept_score={**KEPT, "Vehicle": -0.1}), "kept_score of Vehicle must be from 0 to 1"),
        (lambda: KalmanTracker(max_age=0), "max_age must be at least 1"),
        (lambda: KalmanTracker(farthest=-0.1), "farthest must be from 0 to 2"),
        (lambda: KalmanTracker(nms=1.1), "nms must be from 0 to 1"),
        (lambda: KalmanTracker(redundant=math.nan), "redundant must be from -1 to 1"),
        (lambda: GraphOptions(threshold=2.0), "threshold must be from 0 to 1"),
        (lambda: GraphOptions(max_age=-3), "max_age must be at least 0"),
        (lambda: GraphOptions(feature_weight=math.nan), "feature_weight must be from 0 to 1"),
        (lambda: GraphOptions(limits=(1.0,)), "limits must be 7 numbers, got 1"),
        (lambda: GraphTracker(GraphTrackerNetwork(8, 2), nms=-1), "nms must be from 0 to 1"),
        (lambda: GraphTracker(GraphTrackerNetwork(8, 2), period=math.inf), "period and max_outputs must be positive"),
    ],
)
def test_options_out_of_their_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_options_are_listed(tracker: str) -> None:
    own = list(inspect.signature(KNOWN.get(TRACKERS[tracker])).parameters)
    assert OPTIONS[tracker].split(", ") == own
    assert set(BY_CLASS[tracker]) <= set(own)
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{tracker}` |"))
    assert re.findall(r"`(\w+)`", row.split("|")[3]) == own
