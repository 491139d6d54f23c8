"""Timing of the metrics: every evaluator's case is measured, beside the seconds that its official tool took."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest

from pcdet_ext.benchmark.metrics import METRICS, run_metrics
from pcdet_ext.cli.command import main
from pcdet_ext.files import paused_collection

CASES = Path(__file__).parent / "data" / "golden"


def test_every_metric_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = run_metrics([CASES / kind for kind in METRICS], {"eval_waymo": 2.0}, 1, tmp_path / "metrics.json")
    assert {timing.case.split("/")[0] for timing in timings} == set(METRICS)
    assert all(0 < timing.fastest <= timing.seconds for timing in timings)
    written = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert [entry["case"] for entry in written] == [timing.case for timing in timings]
    assert len(capsys.readouterr().out.splitlines()) == len(timings)


def test_recorded_seconds_count_and_others_can_be_given(tmp_path: Path) -> None:
    for name, content in (("one", {"timing_seconds": [{"total": 7.0}, {"total": 5.5}]}), ("two", {})):
        case = tmp_path / "eval_nuscenes" / name
        shutil.copytree(CASES / "eval_nuscenes" / "edge_rules", case)
        (case / "expected.json").write_text(json.dumps(content))
    one, two = run_metrics([tmp_path / "eval_nuscenes"], {"eval_nuscenes": 4.0}, 1)
    assert (one.official, two.official) == (5.5, 4.0)
    assert "times as long" in one.line()


@pytest.mark.parametrize("given", ["eval_waymo", "eval_waymo=0", "eval_waymo=nan", "eval_waymo=fast"])
def test_wrong_seconds_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "metrics", str(CASES / "eval_waymo"), "--official", given]) == 2
    assert "METRIC=SECONDS" in capsys.readouterr().err


def test_folders_without_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no case of eval_kitti"):
        run_metrics([tmp_path], {})


def test_collection_goes_on_after_a_pause() -> None:
    @paused_collection()
    def fail() -> None:
        assert not gc.isenabled()
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()
