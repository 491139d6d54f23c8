"""The baseline of point segmentation finds what nearest means find."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.data import semantickitti

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_points_have_the_class_of_the_nearest_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    import segmentation_baseline

    for name in ("00", "08"):
        rng, folder = np.random.default_rng(int(name)), tmp_path / "sequences" / name
        (folder / "velodyne").mkdir(parents=True)
        heights = np.repeat([-1.7, 1.5, 0.0], 200)
        points = np.column_stack([rng.uniform(-20, 20, (600, 2)), heights + rng.normal(0, 0.1, 600), rng.random(600)])
        points.astype("<f4").tofile(folder / "velodyne" / "000000.bin")
        ids = np.repeat([40, 50, 10], 200)
        semantickitti.write_labels(folder / "labels" / "000000.label", ids)
    assert main(["prepare", "semantickitti", "--root", str(tmp_path), "--quiet"]) == 0
    capsys.readouterr()
    segmentation_baseline.main(["semantickitti/demo", f"data.root={tmp_path}"])
    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:] if line.split()}
    assert all(float(rows[name]) > 80 for name in ("road", "building", "car"))
    assert rows["pole"] == "-"
