"""Heads of queries with and without the branch of overlaps, in the versions of DSVT and of OpenPCDet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.conformance.cases.dsvt import run_transfusion_pipeline
from pcdet_ext.conformance.golden import Case, compare
from pcdet_ext.interop.openpcdet_heads import transfusion_head

SMALL = Path(__file__).resolve().parents[1] / "data" / "golden" / "dsvt" / "pipeline_transfusion_b2.json"


def _without_overlaps(section: Mapping[str, Any]) -> dict[str, Any]:
    head = copy.deepcopy(dict(section))
    del head["SEPARATE_HEAD_CFG"]["HEAD_DICT"]["iou"]
    head["POST_PROCESSING"]["USE_IOU_TO_RECTIFY_SCORE"] = False
    return head


def test_the_head_of_dsvt_needs_no_branch_of_overlaps() -> None:
    """Everything else that it predicts is as in the published case."""
    case = Case.read(SMALL)
    config = dict(case.config) | {"DENSE_HEAD": _without_overlaps(case.config["DENSE_HEAD"])}
    arrays = {
        key: value
        for key, value in case.arrays.items()
        if ".iou" not in key and not key.startswith(("out.final", "gr"))
    }
    assert len(arrays) < len(case.arrays)
    changed = Case(case.path, case.system, case.kind, config, case.meta, arrays)
    found = run_transfusion_pipeline(changed, False)
    assert "out.head.iou" not in found
    report = compare("no overlaps", changed, found, False)
    assert report.status == "pass", report.line()
    assert np.asarray(found["out.final_b0.pred_boxes"]).shape[1] == 9


@pytest.mark.parametrize(
    ("mark", "windows", "expected"),
    [
        ((), True, True),
        ((), None, False),
        (("weight",), None, True),
        (("rectify",), None, True),
        (("iou",), None, True),
        (("iou",), False, False),
    ],
)
def test_the_version_of_a_head_shows_in_what_only_one_of_them_has(mark: tuple, windows, expected: bool) -> None:
    section = Case.read(SMALL).config["DENSE_HEAD"]
    head = _without_overlaps(section)
    if "iou" in mark:
        head["SEPARATE_HEAD_CFG"]["HEAD_DICT"]["iou"] = {"out_channels": 1, "num_conv": 2}
    if not set(mark) & {"weight", "iou"}:
        del head["LOSS_CONFIG"]["LOSS_WEIGHTS"]["loss_iou_rescore_weight"]
    if "rectify" not in mark:
        for key in ("USE_IOU_TO_RECTIFY_SCORE", "IOU_RECTIFIER"):
            head["POST_PROCESSING"].pop(key, None)
    node = transfusion_head(head, [f"class {i}" for i in range(10)], windows)
    assert ("window" in node) == expected
    assert node["conv_bias"] == (expected or head["USE_BIAS_BEFORE_NORM"])
    if "iou" in mark:
        assert (node["iou_weight"] > 0) == expected
