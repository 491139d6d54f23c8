"""The evaluators against the numbers of the official tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcdet_ext.conformance.cases.evaluators import EVALUATORS, find_evaluator_cases, run_evaluator_case

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
CASES = [case for kind in EVALUATORS for case in find_evaluator_cases(GOLDEN / kind)]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_number_of_the_official_tool(path: Path) -> None:
    report = run_evaluator_case(path)
    assert report.status == "pass", report.line()
