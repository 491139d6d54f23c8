"""Every published numeric case that this library covers passes, gradients included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcdet_ext.conformance.golden import find_cases, is_covered
from pcdet_ext.conformance.reproduce import load_runners, reproduce

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
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


@pytest.mark.parametrize("path", cases(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_case_is_reproduced(path: Path) -> None:
    (report,) = reproduce([path], grads=True)
    assert report.status == "pass", report.line()
