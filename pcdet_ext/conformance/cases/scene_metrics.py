"""Evaluator cases of tracks, maps, futures, plans and occupancy: every number of the published tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pcdet_ext.conformance.cases.official_metrics import numbers_at_same_places
from pcdet_ext.evaluation import scene_benchmarks
from pcdet_ext.evaluation.kitti_tracking import KittiTrackingResult
from pcdet_ext.evaluation.nuscenes_files import read_json

TOLERANCE = 1e-9
Numbers = Iterator[tuple[str, float, float]]  # key, ours, theirs


def kitti_tracking_result(path: Path) -> KittiTrackingResult:
    """The metric on the files of a case."""
    return scene_benchmarks.kitti_tracking(path / "gt", path / "trackers" / "tracker")


def kitti_tracking_numbers(path: Path) -> Numbers:
    """Every count, ratio and list, of every sequence and of all."""
    expected = read_json(path / "expected.json")["results"]
    yield from numbers_at_same_places(kitti_tracking_result(path).to_json(), expected, "")
