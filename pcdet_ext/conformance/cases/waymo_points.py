"""Every point of Waymo's Parquet components, held against what the official program makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.conformance.golden import Report
from pcdet_ext.data.waymo.parquet import ParquetLayout, open_segment
from pcdet_ext.structures import Array

EXPECTED_POINTS = "expected_points.npz"  # makes a folder of Parquet components a case
POINT_TOLERANCE = 5e-3  # metres: the official arithmetic is in float32


def run_point_case(folder: Path) -> Report:
    """Every point of a folder of Parquet components, by frame, laser and return."""
    layout = ParquetLayout(folder)
    name, kind = f"{folder.parent.name}/{folder.name}", "waymo_v2"
    found: dict[str, Array] = {}
    for frame in layout.find("train"):
        segment = open_segment(folder / frame.folder, frame.sequence)
        for laser, number, points in segment.returns(frame.timestamp_micros):
            found[f"{frame.context}/{frame.timestamp_micros}/laser{laser}/return{number}"] = points
    worst, worst_key, compared = -1.0, "", 0
    with np.load(folder / EXPECTED_POINTS, allow_pickle=False) as archive:
        for key, expected in archive.items():
            place, _, what = key.rpartition("/")
            if place not in found:
                return Report(name, kind, "fail", message=f"{place} was not computed")
            error = _point_error(found.pop(place) if what == "no_label_zone" else found[place], what, expected)
            compared += 1
            if error > worst:
                worst, worst_key = error, key
    left = [place for place, points in found.items() if len(points)]
    if left:
        return Report(name, kind, "fail", message=f"{left[0]} is not expected")
    return Report(name, kind, "pass" if 0 <= worst <= 1 else "fail", worst, worst_key, compared)


def _point_error(points: Array, what: str, expected: Array) -> float:
    """Worst error in units of the tolerance; other columns than positions must be equal."""
    if len(points) != len(expected):
        return np.inf
    if what == "no_label_zone":
        return 0.0 if np.array_equal(points[:, 5], expected) else np.inf
    if not np.array_equal(points[:, 3:5], expected[:, 1:3]):
        return np.inf
    return float(np.abs(points[:, :3].astype(np.float64) - expected[:, 3:]).max(initial=0.0) / POINT_TOLERANCE)
