"""From detections to result rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext import checkpoint
from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data import kitti
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.engine.testing import eval_config, measure
from pcdet_ext.inference import build
from pcdet_ext.structures import Detections, Sample

CALIBRATION = kitti.Calibration(
    p2=np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    r0_rect=np.eye(3),
    velo_to_cam=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
    image_size=(370, 1224),
)


SPAN = [0, -40, -3, 70.4, 40, 1]


def sample(calibration: kitti.Calibration | None = CALIBRATION) -> Sample:
    return Sample(np.zeros((0, 4), np.float32), kitti.POINT_FEATURES, "000000", calibration=calibration)


def detections(*positions: tuple[float, float]) -> Detections:
    boxes = np.array([[x, y, -1, 4, 2, 1.5, 0.3] for x, y in positions], np.float32).reshape(-1, 7)
    scores = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    return Detections(boxes, scores, np.arange(len(boxes)) % 2, ("Car", "Cyclist"))


def test_rows_are_what_the_camera_sees() -> None:
    found = detections((20, 0), (-20, 0), (10, 40), (15, 3))  # ahead, behind, far to the side, ahead
    rows = kitti.result_rows(found, CALIBRATION)
    assert rows.names == ("Car", "Cyclist")
    np.testing.assert_allclose(rows.scores, found.scores[[0, 3]])
    back = kitti.labels_to_boxes(rows, CALIBRATION)
    np.testing.assert_allclose(back.boxes, found.boxes[[0, 3]], atol=1e-5)


def test_frames_without_detections_or_calibration_have_no_rows(tmp_path: Path) -> None:
    write_unlabelled_frames(tmp_path, 1)
    dataset = kitti.KittiDataset(root=str(tmp_path), classes=["Car"], point_cloud_range=SPAN, split="test")
    for found, calibration in ((detections(), CALIBRATION), (detections((20, 0)), None)):
        evaluator = dataset.evaluator()
        evaluator.add(sample(calibration), found)
        (path,) = evaluator.write(tmp_path / "results")
        assert (path.name, path.read_text()) == ("000000.txt", "")


def write_unlabelled_frames(root: Path, count: int) -> None:
    points = np.random.default_rng(0).uniform([1, -5, -2, 0], [20, 5, 0, 1], (500, 4)).astype(np.float32)
    for i in range(count):
        kitti.write_points(root / "testing" / "velodyne" / f"{i:06d}.bin", points)
        CALIBRATION.write(root / "testing" / "calib" / f"{i:06d}.txt")
    prepare_kitti(root, splits=["test"], progress=False)


def test_splits_without_labels_are_only_detected_in(root: Path, tmp_path: Path) -> None:
    write_unlabelled_frames(tmp_path, 3)
    detector = build(root / "configs" / "kitti" / "demo.yaml", [f"data.root={tmp_path}"], device="cpu")
    path = tmp_path / "a.ckpt"
    checkpoint.write(path, {"config": detector.config.plain(), "model": detector.model.state_dict()})
    text = measure(path, split="test", out=tmp_path / "results", device="cpu", overrides=["test.num_workers=0"])
    assert "no labels in test: nothing to measure" in text
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["000000.txt", "000001.txt", "000002.txt"]


def test_wrong_settings_name_the_key() -> None:
    settings = Node({"test": Node({"splt": "val"}, "test", {"splt": "a.yaml:9"})})
    with pytest.raises(ConfigError, match=r"a\.yaml:9: test\.splt.*did you mean 'split'"):
        eval_config(settings)
    assert eval_config(Node({})).split == "val"
