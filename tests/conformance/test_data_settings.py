"""Runners of data pipelines read every setting of a case or refuse it by name."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.conformance.cases.data_common import run_db_sampling, run_processor
from pcdet_ext.conformance.cases.openpcdet_data import run_augment, run_gt_sampling
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
