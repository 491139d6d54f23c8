"""Submissions to the nuScenes benchmark hold finite numbers, but for velocities that are not known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.data.nuscenes.submission import Rows, write_submission
from pcdet_ext.files import DataError

ROWS = Rows(
    translation=np.array([[1.0, 2.0, 3.0]]),
    size=np.array([[2.0, 4.0, 1.5]]),
    rotation=np.array([[1.0, 0.0, 0.0, 0.0]]),
    velocity=np.array([[np.nan, np.nan]]),
    score=np.array([0.5]),
    name=("car",),
    attribute=("vehicle.parked",),
)


def test_a_velocity_that_is_not_known_stays_unknown(tmp_path: Path) -> None:
    write_submission(tmp_path / "results.json", {"a": ROWS}, ["a", "b"])
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert np.isnan(results["a"][0]["velocity"]).all()
    assert results["b"] == []


@pytest.mark.parametrize("column", ["translation", "size", "rotation", "velocity", "score"])
def test_other_numbers_that_are_not_finite_are_refused(tmp_path: Path, column: str) -> None:
    wrong = replace(ROWS, **{column: np.full_like(getattr(ROWS, column), np.inf)})
    with pytest.raises(DataError, match=r"results\.json: not written: sample bad has numbers that are not finite"):
        write_submission(tmp_path / "results.json", {"a": ROWS, "bad": wrong}, ["a", "bad"])
    assert not (tmp_path / "results.json").exists()
