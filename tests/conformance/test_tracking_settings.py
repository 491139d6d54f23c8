"""Settings of tracking cases that are not known, or that contradict each other, are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcdet_ext.conformance.cases import tracking


def test_settings_of_the_kalman_tracker_are_used_or_named(shared: Path) -> None:
    config = json.loads((shared / "golden" / "tracking" / "simpletrack_nus_giou.json").read_text())["config"]
    assert tracking._kalman(config).nms == config["nms_iou"]
    for section, change, message in (
        ("running", {"bogus": 1}, "not known here: running.bogus"),
        ("redundancy", {"bogus": 1}, "not known here: redundancy.bogus"),
        ("running", {"nms_thres": 0.3}, "nms_thres and nms_iou differ"),
        ("running", {"motion_model": "fake"}, "motion_model must be 'kf'"),
    ):
        with pytest.raises(ValueError, match=message):
            tracking._kalman({**config, section: {**config[section], **change}})
