"""Training and testing on labels of points, from the command line: what is printed, written and measured again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from semantickitti_folder import write_sequence

from pcdet_ext import load
from pcdet_ext.cli.command import main
from pcdet_ext.structures import PointLabels

SMALL = [
    "model.voxel_size=[2.4,2.4,2.4]",
    "train.epochs=1",
    "train.max_steps=2",
    "train.evaluate_every=1",
    "train.num_workers=0",
    "test.num_workers=0",
    "test.metric={min_points: 1}",
]


def test_a_segmenter_is_trained_tested_and_measured_from_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out, results = tmp_path / "data", tmp_path / "run", tmp_path / "results"
    for name, frames in {"00": 3, "08": 2}.items():
        write_sequence(root, name, frames)
    assert main(["prepare", "semantickitti", "--root", str(root), "--quiet"]) == 0
    run = ["train", "semantickitti/demo", f"data.root={root}", *SMALL, "--out", str(out), "--device", "cpu"]
    assert main(run) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("mIoU" in str(entry) for entry in log)
    capsys.readouterr()
    command = ["test", str(out / "best.ckpt"), "--out", str(results), "--json", str(tmp_path / "a.json")]
    assert main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "2 frames of val" in printed
    assert "PQ†: " in printed
    tested = json.loads((tmp_path / "a.json").read_text())
    assert sorted(path.name for path in results.rglob("*.label")) == ["000000.label", "000001.label"]
    measured = ["evaluate", "semantickitti", "--ground-truth", str(root), "--results", str(results), "panoptic=true"]
    names = ["--classes", *tested["classes"], "--json", str(tmp_path / "b.json")]
    assert main([*measured, "min_points=1", *names]) == 0
    again = json.loads((tmp_path / "b.json").read_text())
    assert again["values"] == pytest.approx(tested["values"])
    assert again["confusion"] == tested["confusion"]
    found = load(out / "best.ckpt", device="cpu").detect(root / "sequences/08/velodyne/000000.bin")
    assert isinstance(found, PointLabels)
    assert len(found) == len(found.instances) == 300
    assert load(out / "best.ckpt", device="cpu").detect(np.zeros((0, 4), np.float32)).instances.shape == (0,)
    picture = tmp_path / "a.png"
    assert main(["visualize", str(out / "best.ckpt"), f"data.root={root}", "--frame", "0", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def test_boxes_are_not_measured_on_data_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for name in ("00", "08"):
        write_sequence(root, name, 1)
    assert main(["prepare", "semantickitti", "--root", str(root), "--quiet"]) == 0
    head, out = "model.head={name: CenterHead}", str(tmp_path / "run")
    assert main(["train", "semantickitti/demo", f"data.root={root}", *SMALL, head, "--out", out]) == 2
    assert "no head of this detector labels points" in capsys.readouterr().err
