"""Settings of tracking cases that are not known, or that contradict each other, are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pcdet_ext.conformance import golden
from pcdet_ext.conformance.cases import tracking
from pcdet_ext.conformance.golden import Case
from pcdet_ext.conformance.reproduce import load_runners
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.tracking import KalmanTracker


def kalman(config: dict[str, Any]) -> KalmanTracker:
    with every_setting_counts(config) as settings:
        settings.skip(("class_loop", "class_names"))
        return tracking._kalman(settings)


def test_settings_of_the_kalman_tracker_are_used_or_named(shared: Path) -> None:
    config = json.loads((shared / "golden" / "tracking" / "simpletrack_nus_giou.json").read_text())["config"]
    assert kalman(config).nms == config["nms_iou"]
    for section, change, message in (
        ("running", {"bogus": 1}, "running.bogus: the setting is not known here"),
        ("redundancy", {"bogus": 1}, "redundancy.bogus: the setting is not known here"),
        ("running", {"nms_thres": 0.3}, "nms_thres and nms_iou differ"),
        ("running", {"asso_thres": {"giou": 1.5, "bogus": 1}}, "asso_thres.bogus: the setting is not known"),
        ("running", {"motion_model": "fake"}, "motion_model must be 'kf'"),
    ):
        with pytest.raises(ValueError, match=message):
            kalman({**config, section: {**config[section], **change}})


@pytest.mark.parametrize(
    "name",
    [
        "greedy_edge",
        "greedy_waymo",
        "motformer_layers_prenorm",
        "motformer_track_random",
        "motformer_preprocess",
        "trajectoryformer_geometry",
        "trajectoryformer_motion_eval_b1",
        "trajectoryformer_track_reinit",
        "trajectoryformer_train_b2",
    ],
)
def test_a_setting_that_no_runner_knows_is_named(shared: Path, name: str) -> None:
    load_runners()
    case = Case.read(shared / "golden" / "tracking" / f"{name}.json")
    runner = golden._runner(case.system, case.kind, None)
    assert runner is not None
    with pytest.raises(ValueError, match="bogus: the setting is not known here"):
        runner(replace(case, config={**case.config, "bogus": 1}), False)
