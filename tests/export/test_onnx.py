"""Detectors as ONNX models: what onnxruntime finds is what PyTorch finds, for clouds of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pcdet_ext
from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.inference import Detector
from pcdet_ext.structures import PointBatch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from pcdet_ext.export.check import compare, session  # noqa: E402
from pcdet_ext.export.onnx import export  # noqa: E402
from pcdet_ext.export.recording import RecordingError, recording  # noqa: E402

RANGE = [0.0, -5.12, -3.0, 10.24, 5.12, 1.0]
SMALL_MAP = {"layer_nums": [1, 1], "layer_strides": [1, 2], "num_filters": [32, 32]}
SMALL_MAP |= {"upsample_strides": [1, 2], "num_upsample_filters": [32, 32]}
MODELS: dict[str, list[str]] = {
    "kitti/pointpillars": [f"model.bev_backbone.{key}={value}" for key, value in SMALL_MAP.items()],
}
SIZES = (3000, 40, 1, 0)


def cloud(count: int, columns: int, seed: int = 0) -> Any:
    """Points float32 [count, columns] in clusters, a few of them outside of the range."""
    generator = np.random.default_rng(seed)
    low, high = np.array(RANGE[:3]), np.array(RANGE[3:])
    centres = low + (high - low) * generator.random((12, 3))
    points = generator.random((count, columns))
    points[:, :3] = centres[generator.integers(0, 12, count)] + generator.normal(0, 1.2, (count, 3))
    return points.astype(np.float32)


def lively(name: str) -> Detector:
    """An untrained detector on a small range that finds something: norms know the data, heads have larger weights."""
    torch.manual_seed(0)
    detector = pcdet_ext.build(name, [f"data.point_cloud_range={RANGE}", *MODELS[name]], "cpu")
    for module in detector.model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    detector.model.train()
    width = len(detector.point_features)
    with torch.no_grad():
        detector.model.features(PointBatch.from_points([torch.from_numpy(cloud(3000, width, 1))] * 2))
    for layer in detector.model.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    detector.model.eval()
    return detector


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_finds_the_same(name: str) -> None:
    detector = lively(name)
    model = export(detector)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    running = session(model, threads=1)
    compared = [compare(detector, running, cloud(count, len(detector.point_features)), str(count)) for count in SIZES]
    far = cloud(50, len(detector.point_features)) + 1000  # nothing in range
    compared += [compare(detector, running, far.astype(np.float32), "far")]
    assert [str(one) for one in compared if not one.agrees] == []
    assert compared[0].found[0] > 5
    assert compared[SIZES.index(0)].found == (0, 0)


def test_metadata_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = lively("kitti/pointpillars")
    names = [str(tmp_path / name) for name in ("a.ckpt", "a.onnx", "frame.bin")]
    checkpoint.write(names[0], {"config": detector.config.plain(), "model": detector.model.state_dict()})
    cloud(500, 4).tofile(names[2])
    assert main(["export", *names[:2], "--check", names[2]]) == 0
    assert "frame.bin: 500 points" in capsys.readouterr().out
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert found["classes"] == ["Car", "Pedestrian", "Cyclist"]
    assert found["point_features"] == ["x", "y", "z", "intensity"]
    assert found["point_cloud_range"] == RANGE


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="opset must be from 18"):
        export(lively("kitti/pointpillars"), opset=11)
    with pytest.raises(ConfigError, match="finds no boxes"):
        export(pcdet_ext.build("semantickitti/demo", device="cpu"))


def test_a_choice_by_values_is_an_error() -> None:
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    model = Chooses()
    with pytest.raises(RecordingError, match="Python boolean"), recording(model):
        torch.jit.trace(model, torch.ones(3))
