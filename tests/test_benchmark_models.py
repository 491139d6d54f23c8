"""`tools/benchmark.py models`: what it prints is measured on the stages of the detector that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.benchmark.models import _one_pass, frame_with_voxels, run_models
from pcdet_ext.models.detector import build_detector


def test_stages_and_plans_of_a_detector_are_timed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "configs" / "kitti" / "lion_mamba.yaml"
    run_models([path], voxels=300, rounds=1, threads=1, reference_scan=True, json_path=tmp_path / "models.json")
    (result,) = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))["results"]
    assert result["config"] == "kitti/lion_mamba"
    assert result["voxels"] >= 300
    assert set(result["seconds"]) == {"encoder", "backbone", "bev_backbone", "head"}
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert 0 < result["grouping_share"] < 1
    assert result["parts"]["neighbour tables"] > 0
    assert result["reference_scan"] > 0
    printed = capsys.readouterr().out
    assert "backbone on the PyTorch scan" in printed


def test_plans_inside_plans_count_once(root: Path) -> None:
    detector = build_detector(config.load(root / "configs" / "kitti" / "flatformer.yaml")).eval()
    batch, count = frame_with_voxels(detector, 200, "cpu")
    with torch.inference_mode():
        assert len(detector.encoder(batch)) == count
        seconds, parts = _one_pass(detector, batch, "cpu", lambda _: None)
    assert 0 < sum(parts.values()) < seconds["backbone"]


def test_a_range_that_cannot_hold_so_many_voxels_is_an_error(root: Path) -> None:
    detector = build_detector(config.load(root / "configs" / "kitti" / "flatformer.yaml")).eval()
    with pytest.raises(ValueError, match="1000000 were asked for"):
        frame_with_voxels(detector, 1_000_000, "cpu")
