"""The benchmark of the trackers measures what it says; how fast they are is for no test to say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.benchmark.trackers import crossing_objects
from pcdet_ext.cli.command import main
from pcdet_ext.tracking import GreedyTracker


def test_the_command_measures_both_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--detections", "8", "--frames", "5", "--rounds", "1", "--json", str(tmp_path / "out.json")]
    assert main(["benchmark", "trackers", *numbers]) == 0
    printed = capsys.readouterr().out
    timings = json.loads((tmp_path / "out.json").read_text())["trackers"]
    assert [timing["tracker"] for timing in timings] == ["greedy", "kalman"]
    assert all(timing["per_second"] > 0 for timing in timings)
    assert "greedy: 8 detections per frame, 5 frames" in printed
    assert main(["benchmark", "trackers", "--frames", "0"]) == 2


def test_its_objects_can_be_followed() -> None:
    tracker, ids = GreedyTracker(), []
    for i, found in enumerate(crossing_objects(30, 6)):
        ids.append(np.sort(tracker.update(found, None, 0.5 * i).track_ids))
    kept = len(np.intersect1d(ids[0], ids[-1]))
    assert kept > 15
