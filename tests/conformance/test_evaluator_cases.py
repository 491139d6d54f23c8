"""The evaluators against the numbers of the official tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pcdet_ext.conformance.cases.evaluators import EVALUATORS, find_evaluator_cases, run_evaluator_case
from pcdet_ext.conformance.cases.official_metrics import argoverse2_result, waymo_result

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
CASES = [case for kind in EVALUATORS for case in find_evaluator_cases(GOLDEN / kind)]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_number_of_the_official_tool(path: Path) -> None:
    report = run_evaluator_case(path)
    assert report.status == "pass", report.line()


def _copy(shared: Path, folder: Path, name: str, **changes: Any) -> Path:
    """A case with other settings, in a folder of its own."""
    shutil.copytree(shared / "golden" / name, folder / name)
    expected = json.loads((folder / name / "expected.json").read_text(encoding="utf-8"))
    expected["config"] |= changes
    (folder / name / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    return folder / name


def test_breakdowns_of_waymo_may_have_levels_of_their_own(shared, tmp_path: Path) -> None:
    every = waymo_result(shared / "golden" / "eval_waymo" / "velocity").curves
    levels = [[2], [1, 2], [2, 1], [1], [1, 2], [2]]
    few = waymo_result(_copy(shared, tmp_path, "eval_waymo/velocity", levels=levels)).curves
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


@pytest.mark.parametrize("setting", ["affinity_type", "filter_metric"])
def test_other_distances_of_argoverse_are_refused(shared, tmp_path: Path, setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        argoverse2_result(_copy(shared, tmp_path, "eval_argoverse2/small", **{setting: "MANHATTAN"}))
