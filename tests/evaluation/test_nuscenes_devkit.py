"""Our submissions give the official devkit the numbers that they give us. Skips where the devkit is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.data.nuscenes import NuScenesDataset, NuScenesFrames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.evaluation.nuscenes import CLASSES
from pcdet_ext.structures import Detections

nuscenes = pytest.importorskip("nuscenes")


def disturbed(dataset: NuScenesDataset, index: int) -> Detections:
    """The labels of a frame at wrong places, some of a wrong class, some twice and some not at all."""
    rng = np.random.default_rng(index)
    targets = dataset[index].targets
    rows = rng.integers(0, len(targets), 2 * len(targets))
    boxes = targets.boxes[rows] + rng.normal(0, 0.3, (len(rows), 9)).astype(np.float32)
    boxes[:, 3:6] = np.abs(boxes[:, 3:6])
    labels = np.where(rng.random(len(rows)) < 0.1, rng.integers(0, len(CLASSES), len(rows)), targets.labels[rows])
    scores = rng.random(len(rows)).astype(np.float32)
    return Detections(boxes, scores, labels, CLASSES, dataset.frames[index].frame_id)


def test_the_devkit_finds_the_same(shared: Path, tmp_path: Path) -> None:
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.nuscenes import NuScenes

    root = shared / "golden" / "data" / "nuscenes" / "v1.0-mini"
    prepare(NuScenesFrames(root), ["val"], [], out=tmp_path / "index", progress=False)
    extent = [-60, -60, -10, 60, 60, 10]
    dataset = NuScenesDataset(
        root=root, index=tmp_path / "index", classes=CLASSES, point_cloud_range=extent, split="val"
    )
    evaluator = dataset.evaluator()
    for i in range(len(dataset)):
        evaluator.add(dataset[i], disturbed(dataset, i))
    (path,) = evaluator.write(tmp_path)
    ours = evaluator.result().to_json()
    official = DetectionEval(
        NuScenes("v1.0-mini", str(root), verbose=False),
        config_factory("detection_cvpr_2019"),
        str(path),
        "mini_val",
        str(tmp_path / "devkit"),
        verbose=False,
    )
    theirs = official.evaluate()[0].serialize()
    assert 0.05 < ours["mean_ap"] < 0.95
    for key in ("nd_score", "mean_ap", "mean_dist_aps", "tp_errors"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
    for name in CLASSES:
        expected = {k: None if np.isnan(v) else v for k, v in theirs["label_tp_errors"][name].items()}
        assert ours["label_tp_errors"][name] == pytest.approx(expected, abs=1e-6), name
