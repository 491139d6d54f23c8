"""The evaluators against the numbers of the official tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pcdet_ext.conformance.cases.evaluators import EVALUATORS, find_evaluator_cases, run_evaluator_case
from pcdet_ext.conformance.cases.official_metrics import (
    argoverse2_result,
    nuscenes_result,
    nuscenes_tracking_result,
    waymo_result,
)
from pcdet_ext.conformance.cases.scene_metrics import bev_map_result, kitti_tracking_numbers, occupancy_result

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
CASES = [case for kind in EVALUATORS for case in find_evaluator_cases(GOLDEN / kind)]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_number_of_the_official_tool(path: Path) -> None:
    report = run_evaluator_case(path)
    assert report.status == "pass", report.line()


def _copy(shared: Path, folder: Path, name: str, *sections: str, **changes: Any) -> Path:
    """A case with other settings in a section of what it expects, in a folder of its own."""
    shutil.copytree(shared / "golden" / name, folder / name)
    expected = json.loads((folder / name / "expected.json").read_text(encoding="utf-8"))
    section = expected
    for key in sections:
        section = section[key]
    section |= changes
    (folder / name / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    return folder / name


def test_breakdowns_of_waymo_may_have_levels_of_their_own(shared, tmp_path: Path) -> None:
    every = waymo_result(shared / "golden" / "eval_waymo" / "velocity").curves
    levels = [[2], [1, 2], [2, 1], [1], [1, 2], [2]]
    few = waymo_result(_copy(shared, tmp_path, "eval_waymo/velocity", "config", levels=levels)).curves
    assert {name: (curve.ap, curve.aph) for name, curve in few.items()} == {
        name: (curve.ap, curve.aph) for name, curve in every.items() if name in few
    }
    left = {name for name in every if name not in few}
    assert left == {
        name
        for name in every
        if (name.startswith(("OBJECT_TYPE", "ALL_BUT_SIGN", "SIGN")) and name.endswith("_1"))
        or (name.startswith("SIZE") and name.endswith("_2"))
    }


@pytest.mark.parametrize("setting", ["affinity_type", "filter_metric", "max_number"])
def test_other_settings_of_argoverse_are_refused(shared, tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        argoverse2_result(_copy(shared, tmp_path, "eval_argoverse2/small", "config", **{setting: "MANHATTAN"}))


@pytest.mark.parametrize("setting", ["box_type", "score_cutoffs", "let_metric_config"])
def test_other_settings_of_waymo_are_refused(shared, tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        waymo_result(_copy(shared, tmp_path, "eval_waymo/small", "config", **{setting: "TYPE_2D"}))


@pytest.mark.parametrize("setting", ["class_range", "dist_th_tp", "min_recall"])
def test_other_settings_of_nuscenes_are_refused(shared, tmp_path: Path, setting: str) -> None:
    for kind, result in (("nuscenes", nuscenes_result), ("nuscenes_tracking", nuscenes_tracking_result)):
        with pytest.raises(ValueError, match=setting):
            result(_copy(shared, tmp_path, f"eval_{kind}/small", "summary", "cfg", **{setting: 3}))


def test_other_overlaps_and_classes_are_refused(shared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alphas"):
        list(kitti_tracking_numbers(_copy(shared, tmp_path, "eval_kitti_tracking/small", alphas=[0.5])))
    with pytest.raises(ValueError, match="classes"):
        occupancy_result(_copy(shared, tmp_path, "eval_occupancy/edge_rules", classes=["free"]))


def test_maps_are_measured_at_the_thresholds_of_the_case(shared, tmp_path: Path) -> None:
    every = bev_map_result(shared / "golden" / "eval_bev_map" / "small").counts
    few = bev_map_result(_copy(shared, tmp_path, "eval_bev_map/small", thresholds=[0.4, 0.65])).counts
    assert few.tolist() == every[:, [1, 6]].tolist()
