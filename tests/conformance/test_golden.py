"""Every published numeric case that this library covers passes, gradients included.

A few small cases of each system are part of the project; all of them are tried where the reference material stands
beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcdet_ext.conformance.golden import find_cases, is_covered
from pcdet_ext.conformance.reproduce import EXPECTED, load_runners, reproduce

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
SMALL = Path(__file__).resolve().parents[1] / "data" / "golden"
COMPLETE = ("dsvt", "flatformer", "lion", "openpcdet", "scatterformer")  # systems of which every case is covered


def cases() -> list[Path]:
    """The covered cases of every system, and all of those that must be."""
    load_runners()
    wanted = []
    for path in sorted(p for folder in GOLDEN.glob("*/") for p in find_cases(folder)):
        system = path.parent.name
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind", path.stem.split("_")[0])
        if system in COMPLETE or is_covered(system, kind):
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
    assert systems == {*COMPLETE, "octree", *(f"eval_{name}" for name in evaluators)}
