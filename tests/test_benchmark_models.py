"""`tools/benchmark.py models`: what it prints is measured on the stages of the detector that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.benchmark import models
from pcdet_ext.benchmark.models import PEAKS, _one_pass, dense_frame, frame_with_voxels, run_models, set_peaks
from pcdet_ext.benchmark.simulated import usual_frame
from pcdet_ext.config import ConfigError
from pcdet_ext.models.detector import build_detector


def test_stages_and_plans_of_a_detector_are_timed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "configs" / "kitti" / "lion_mamba.yaml"
    run_models(
        [path],
        voxels=300,
        rounds=1,
        threads=1,
        reference_scan=True,
        json_path=tmp_path / "models.json",
        frames=["dense"],
        operations=5,
    )
    (result,) = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))["results"]
    assert result["config"] == "kitti/lion_mamba"
    assert result["voxels"] >= 300
    assert set(result["seconds"]) == {"encoder", "backbone", "bev_backbone", "head"}
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert 0 < result["grouping_share"] < 1
    assert result["parts"]["neighbour tables"] > 0
    assert result["reference_scan"] > 0
    assert result["plain"] > 0
    assert result["frame"] == "a dense frame"
    seconds = [operation["seconds"] for operation in result["operations"]]
    assert len(seconds) == 5
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] > 0
    assert any(operation["name"].startswith(("aten::", "pcdet_ext::")) for operation in result["operations"])
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


def test_a_range_that_holds_fewer_voxels_than_usual_is_measured_with_those(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["data.point_cloud_range=[0,-8,-3,16,8,1]"]
    detector = build_detector(config.load(root / "configs" / "kitti" / "flatformer.yaml", changes)).eval()
    monkeypatch.setattr(models, "MOST_SCANS", 4)
    batch, about = dense_frame(detector, None, "cpu")
    assert len(batch.points) == 4 * models.SCAN_POINTS
    assert about == "a dense frame (4 scans have no 60000 voxels in this range)"
    with pytest.raises(ValueError, match="60000 were asked for"):
        dense_frame(detector, 60_000, "cpu")
    monkeypatch.setattr(models, "DENSE_VOXELS", 200)
    assert dense_frame(detector, None, "cpu")[1] == "a dense frame"


def test_the_usual_frame_is_one_of_the_sensors_of_the_data_set(root: Path) -> None:
    settings = config.load(root / "configs" / "kitti" / "flatformer.yaml")
    batch, about = usual_frame(settings)
    assert about == "a simulated frame"
    assert batch.batch_size == 1
    assert 10_000 < len(batch.points) < 30_000  # of a scan of 120,000 points what the camera sees
    with torch.inference_mode():
        cells = build_detector(settings).eval().encoder(batch)
    assert 1_000 < len(cells) < len(batch.points)


def test_a_frame_that_joins_several_of_waymo_has_others_before_it(root: Path) -> None:
    folder = root / "configs" / "waymo"
    changes = ["data.point_cloud_range=[-20,-20,-2,20,20,4]"]
    batch, _ = usual_frame(config.load(folder / "flatformer_2frames.yaml", changes))
    now = batch.points[batch.points[:, 4] == 0]
    before = batch.points[batch.points[:, 4] < 0]
    assert len(before) > 10_000
    assert not torch.isin(before[:, 2], now[:, 2]).all()  # the frame itself once more would have the same heights


def test_data_that_is_not_there_and_cannot_be_simulated_is_an_error(root: Path) -> None:
    with pytest.raises(ConfigError, match="no simulation of a"):
        usual_frame(config.load(root / "configs" / "lion" / "once_mamba.yaml"))


def test_untrained_heatmaps_get_as_many_peaks_as_trained_ones(root: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(config.load(root / "configs" / "kitti" / "centerpoint_pillar.yaml")).eval()
    batch, _ = frame_with_voxels(detector, 200, "cpu")
    set_peaks(detector, batch)
    with torch.inference_mode():
        (maps,) = detector(batch).tasks
    passing = int((maps.heatmap.sigmoid() > detector.head.score_threshold).any(1).sum())
    assert PEAKS - 10 < passing <= PEAKS + 10
