"""Runners of data pipelines read every setting of a case or refuse it by name."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.conformance.cases.data_common import run_db_sampling, run_fade, run_processor
from pcdet_ext.conformance.cases.data_nuscenes import run_sample as run_nuscenes_sample
from pcdet_ext.conformance.cases.data_nuscenes import run_sweeps
from pcdet_ext.conformance.cases.data_waymo import run_points
from pcdet_ext.conformance.cases.data_waymo import run_sample as run_waymo_sample
from pcdet_ext.conformance.cases.openpcdet_data import run_augment, run_gt_sampling
from pcdet_ext.conformance.cases.waymo_database import run_database
from pcdet_ext.conformance.golden import Case

SMALL = Path(__file__).resolve().parents[1] / "data" / "golden" / "openpcdet"


def _with(case: Case, place: tuple[Any, ...], value: Any) -> Case:
    config = copy.deepcopy(dict(case.config))
    section: Any = config
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    return replace(case, config=config)


@pytest.mark.parametrize("place", [("frustum",), ("aug_list", 1, "ALONG_AXIS_LIST")])
def test_an_augmentation_refuses_settings_it_does_not_know(place: tuple[Any, ...]) -> None:
    case = Case.read(SMALL / "augment_kitti.json")
    with pytest.raises(ValueError, match=str(place[-1])):
        run_augment(_with(case, place, ["x"]), False)


@pytest.mark.parametrize(("name", "value"), [("USE_ROAD_PLANE", True), ("IMG_AUG_TYPE", "kitti")])
def test_samplers_refuse_what_cases_have_no_data_for(shared, name: str, value: Any) -> None:
    case = Case.read(shared / "golden" / "openpcdet" / "gt_sampling.json")
    with pytest.raises(ValueError, match=name):
        run_gt_sampling(_with(case, (name,), value), False)
    runs = Case.read(shared / "golden" / "data" / "db_sampling.json")
    with pytest.raises(ValueError, match=name):
        run_db_sampling(_with(runs, ("runs", 0, "sampler", name), value), False)


def test_samplers_need_not_say_what_has_a_default_and_leave_out_classes_of_others(shared) -> None:
    case = Case.read(shared / "golden" / "openpcdet" / "gt_sampling.json")
    config = copy.deepcopy(dict(case.config))
    del config["REMOVE_EXTRA_WIDTH"]
    config |= {"SAMPLE_GROUPS": [*config["SAMPLE_GROUPS"], "Van:3", "Tram:2"], "USE_ROAD_PLANE": False}
    found = run_gt_sampling(replace(case, config=config), False)
    for key, value in run_gt_sampling(case, False).items():
        np.testing.assert_array_equal(np.asarray(found[key]), np.asarray(value))


def test_processors_refuse_settings_they_do_not_know(shared) -> None:
    case = Case.read(shared / "golden" / "data" / "processor.json")
    with pytest.raises(ValueError, match="MASK_Z"):
        run_processor(_with(case, ("voxel", 0, "MASK_Z"), True), False)


RUNNERS = {
    "nuscenes_sample_test": run_nuscenes_sample,
    "nuscenes_sweeps": run_sweeps,
    "waymo_sample": run_waymo_sample,
    "waymo_points": run_points,
    "waymo_gt_database": run_database,
}


@pytest.mark.parametrize(("name", "place"), [
    ("nuscenes_sample_test", ("USE_CAMERA",)),
    ("nuscenes_sample_test", ("samples", 0, "overrides")),
    ("nuscenes_sweeps", ("calls", 0, "newest")),
    ("waymo_sample", ("samples", 0, "overrides")),
    ("waymo_points", ("calls", 0, "overrides")),
    ("waymo_gt_database", ("with_velocity",)),
])  # fmt: skip
def test_frames_and_databases_refuse_settings_they_do_not_know(shared, name: str, place: tuple[Any, ...]) -> None:
    case = Case.read(shared / "golden" / "data" / f"{name}.json")
    wrong = _with(case, place, {"CUT_SKY": True} if place[-1] == "overrides" else True)
    with pytest.raises(ValueError, match="CUT_SKY" if place[-1] == "overrides" else place[-1]):
        RUNNERS[name](wrong, False)


def test_points_above_and_below_the_range_are_cut_where_a_case_asks_for_it(shared) -> None:
    case = Case.read(shared / "golden" / "data" / "waymo_sample.json")
    low = copy.deepcopy(dict(case.config))
    low["samples"] = [{**low["samples"][0], "overrides": {"POINT_CLOUD_RANGE": [-75.2, -75.2, 0.5, 75.2, 75.2, 1.5]}}]
    whole = np.asarray(run_waymo_sample(replace(case, config=low), False)["out.0.points"])
    low["samples"][0]["overrides"]["MASK_Z"] = True
    inside = (whole[:, 2] >= 0.5) & (whole[:, 2] <= 1.5)
    draws = {**case.arrays, "mid.0.draw.0": np.arange(int(inside.sum()))}
    cut = np.asarray(run_waymo_sample(replace(case, config=low, arrays=draws), False)["out.0.points"])
    assert 0 < len(cut) < len(whole)
    assert sorted(map(tuple, cut)) == sorted(map(tuple, whole[inside]))


def test_a_sampler_takes_the_objects_of_all_its_databases(shared) -> None:
    case = Case.read(shared / "golden" / "data" / "waymo_train_single_from_multi.json")
    name = case.config["DATA_AUGMENTOR"]["AUG_CONFIG_LIST"][0]["DB_INFO_PATH"][0]
    place = ("DATA_AUGMENTOR", "AUG_CONFIG_LIST", 0, "DB_INFO_PATH")
    with pytest.raises(ValueError, match="permutation"):  # which was recorded for half as many objects
        run_waymo_sample(_with(case, place, [name, name]), False)


def test_runs_that_fade_refuse_settings_they_do_not_know(shared) -> None:
    case = Case.read(shared / "golden" / "data" / "fade.json")
    expected = copy.deepcopy(case.expected())
    expected["runs"][0] |= {"active_by_epoch": [], "WARMUP_EPOCHS": 1}
    with pytest.raises(ValueError, match="WARMUP_EPOCHS"):
        run_fade(replace(case, meta={**case.meta, "expected": expected}), False)
    del expected["runs"][0]["WARMUP_EPOCHS"]
    found: Any = run_fade(replace(case, meta={**case.meta, "expected": expected}), False)
    assert found["expected"] == case.expected()  # whatever the case says was active


def test_objects_of_single_frames_have_no_tail(shared) -> None:
    case = _with(Case.read(shared / "golden" / "data" / "waymo_gt_database.json"), ("parallel_variant",), True)
    plain = run_database(case, False)
    for key, value in run_database(_with(case, ("crop_gt_with_tail",), True), False).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(plain[key]))
