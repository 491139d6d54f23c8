"""The comparison of two versions of detectors: how far apart what they find is, and what is printed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BOXES = np.array([[10.0, 20.0, -1.0, 4.0, 2.0, 1.5, 3.0, 0.9, 0.0], [-30.0, 5.0, 0.0, 1e20, 1.0, 1.0, 0.5, 0.9, 1.0]])


@pytest.fixture(scope="module")
def before_after(root: Path) -> Iterator[ModuleType]:
    """benchmarks/before_after.py, which is no part of the package."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        yield importlib.import_module("before_after")
    finally:
        sys.path.remove(str(root / "benchmarks"))


def test_boxes_are_compared_with_the_nearest_relative_to_large_values(before_after: ModuleType) -> None:
    other = BOXES[::-1].copy()  # equal scores come in any order
    other[1, 6] += 3e-4
    other[0, 3] += 2e16
    apart = before_after.apart(
        {"rows": BOXES, "logits": np.array([1.0, 2.0])}, {"rows": other, "logits": np.array([1.5, 2.0])}
    )
    assert apart["largest_difference"] == pytest.approx(2e-4)
    assert apart["where_largest"]["column"] == "length"
    assert apart["largest_by_column"]["heading"] == pytest.approx(3e-4)
    assert apart["largest_by_column"]["x"] == 0
    assert apart["largest_logit_difference"] == 0.5


def test_a_box_that_is_missing_is_infinitely_far(before_after: ModuleType) -> None:
    assert before_after.difference(BOXES, BOXES[:1]) == {"largest_difference": float("inf")}


def test_the_distances_from_float64_stand_beside_that_of_the_versions(before_after: ModuleType) -> None:
    far = {"largest_difference": 1.2e-4, "largest_logit_difference": 1e-5}
    result = {"config": "waymo/x", "ratio": 2.0, "boxes": 7, "median": {"before": 4.0, "after": 2.0}}
    result |= {"processor_median": {"before": 8.0, "after": 4.0}, **far}
    result["from_float64"] = {side: far | {"largest_difference": d} for side, d in (("before", 9e-5), ("after", 7e-5))}
    first, *others = before_after.lines(result)
    assert first.startswith("waymo/x: 4.000 s before, 2.000 s after, 2.00x (processor time 8.00 s, 4.00 s, 2.00x)")
    assert [line.split(": ")[1].split()[0] for line in others] == ["1.2e-04", "9.0e-05", "7.0e-05"]
    assert "from float64 to after" in others[2]
