"""Points of Parquet components against those of the official tools; and what a wrong one is reported as."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.conformance.cases.waymo_points import EXPECTED_POINTS
from pcdet_ext.conformance.reproduce import reproduce

SMALL = Path(__file__).resolve().parents[1] / "data" / "golden" / "waymo_v2"


def test_every_point_is_the_official_one() -> None:
    (report,) = reproduce([SMALL])
    assert report.status == "pass", report.line()
    assert report.compared == 60  # positions and zones of 3 frames, 5 lasers, 2 returns


def test_the_reference_folders_pass(shared: Path) -> None:
    reports = reproduce([shared / "golden" / "waymo_v2", shared / "golden" / "data" / "waymo_v2"])
    assert [report.status for report in reports] == ["pass", "pass"]


@pytest.mark.parametrize("change", ["moved", "intensity", "zone", "fewer", "unknown", "lost"])
def test_other_points_fail(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "waymo_v2"
    shutil.copytree(SMALL, folder)
    with np.load(folder / EXPECTED_POINTS) as archive:
        expected = dict(archive.items())
    zone = next(key for key in expected if key.endswith("no_label_zone"))
    points = zone.replace("no_label_zone", "range_intensity_elongation_xyz")
    match change:
        case "moved":
            expected[points][3, 4] += 0.02
        case "intensity":
            expected[points][3, 1] += 1e-3
        case "zone":
            expected[zone][0] *= -1
        case "fewer":
            expected[points] = expected[points][1:]
        case "unknown":
            expected["other/1/laser1/return1/no_label_zone"] = expected[zone]
        case "lost":
            del expected[points], expected[zone]
    np.savez(folder / EXPECTED_POINTS, **expected)
    (report,) = reproduce([folder])
    assert report.status == "fail"
