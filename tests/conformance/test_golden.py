"""Every published numeric case that this library covers passes, gradients included.

A few small cases of each system are part of the project; all of them are tried where the reference material stands
beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.conformance.golden import Case, compare, find_cases, is_covered
from pcdet_ext.conformance.reproduce import EXPECTED, load_runners, reproduce

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
SMALL = Path(__file__).resolve().parents[1] / "data" / "golden"
COMPLETE = (
    "dsvt",
    "flatformer",
    "lion",
    "lion2",
    "openpcdet",
    "openpcdet2",
    "scatterformer",
    "unilion",
)  # systems of which every case is covered


def cases() -> list[Path]:
    """The covered cases of every system, and all of those that must be."""
    load_runners()
    wanted = []
    for path in sorted(p for folder in GOLDEN.glob("*/") for p in find_cases(folder)):
        system = path.parent.name
        meta = json.loads(path.read_text(encoding="utf-8"))
        kind = meta.get("kind", path.stem.split("_")[0])
        if system in COMPLETE or is_covered(system, kind, meta.get("config", {}).get("dataset")):
            wanted.append(path)
    return wanted


def small_cases() -> list[Path]:
    """The cases that are part of the project: files, and folders of evaluators."""
    folders = [path.parent for path in SMALL.rglob(EXPECTED)]
    return sorted([*folders, *(path for folder in SMALL.iterdir() for path in find_cases(folder))])


@pytest.mark.parametrize("path", cases(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_case_is_reproduced(path: Path) -> None:
    (report,) = reproduce([path], grads=True)
    assert report.status == "pass", report.line()


@pytest.mark.parametrize("path", small_cases(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_small_case_is_reproduced(path: Path) -> None:
    (report,) = reproduce([path], grads=True)
    assert report.status == "pass", report.line()


def test_there_are_small_cases_of_every_system() -> None:
    systems = {path.parent.name for path in small_cases()}
    evaluators = {"argoverse2", "kitti", "nuscenes", "nuscenes_tracking", "waymo"}
    evaluators |= {"kitti_tracking", "bev_map", "motion", "planning", "occupancy"}
    assert systems == {*COMPLETE, "octree", "tracking", *(f"eval_{name}" for name in evaluators)}


EXPECTED_TEXTS = {"frames": [{"token": "a", "lag": 0.5, "moved": True}], "score": float("nan")}


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (EXPECTED_TEXTS, ""),
        ({"frames": [{"token": "a", "lag": 0.5000001, "moved": True}]}, ""),
        ({"frames": [{"token": "b", "lag": 0.5, "moved": True}]}, "expected.frames.0.token"),
        ({"frames": [{"token": "a", "lag": 0.6, "moved": True}]}, "expected.frames.0.lag"),
        ({"frames": [{"token": "a", "lag": 0.5}]}, "expected.frames.0"),
        ({"frames": []}, "expected.frames"),
        ({"score": 1.0}, "expected.score"),
    ],
)
def test_texts_and_nested_numbers_are_compared(found: dict[str, Any], place: str) -> None:
    arrays = {"out.names": np.array(["x", "y"])}
    meta = {"tolerance": {"rtol": 0, "atol": 1e-6}, "expected": EXPECTED_TEXTS}
    case = Case(Path("case.json"), "data", "kind", {}, meta, arrays)
    report = compare("case", case, {"out.names": np.array(["x", "y"]), "expected": found}, grads=False)
    assert (report.status, report.worst_key if place else "") == (("fail", place) if place else ("pass", ""))
    assert compare("case", case, {"out.names": np.array(["x", "z"])}, grads=False).status == "fail"
