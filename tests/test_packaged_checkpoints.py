"""Checkpoints that come with the library: found by name, small, and good for something."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError, MissingCheckpointError
from pcdet_ext.cli.command import main
from pcdet_ext.data import kitti
from pcdet_ext.ops import iou_bev

NAME = "kitti/demo_sim"
MOST_BYTES = 2_000_000


@pytest.mark.parametrize("name", sorted(checkpoint.packaged()))
def test_they_are_small_load_and_hold_nothing_of_where_they_were_made(name: str) -> None:
    file = checkpoint.packaged()[name]
    assert file.stat().st_size < MOST_BYTES
    content = checkpoint.read(name)
    assert set(content) == {"format", "config", "model"}
    assert not Path(content["config"]["data"]["root"]).is_absolute()
    assert len(pcdet_ext.load(name, device="cpu").classes) >= 1


def test_a_name_is_found_with_and_without_ending_and_a_file_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = checkpoint.packaged()[NAME]
    assert checkpoint.find(NAME) == checkpoint.find(f"{NAME}.ckpt") == packaged
    own = tmp_path / f"{NAME}.ckpt"
    own.parent.mkdir()
    own.write_bytes(b"")
    assert checkpoint.find(f"{NAME}.ckpt").resolve() == own
    assert checkpoint.find(NAME) == packaged


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(
        MissingCheckpointError, match="kitti/demo_sin: no such checkpoint; did you mean 'kitti/demo_sim'"
    ):
        pcdet_ext.load("kitti/demo_sin")
    with pytest.raises(MissingCheckpointError, match=r"nothing/like\.it: no such checkpoint$"):
        pcdet_ext.load("nothing/like.it")


def test_a_compact_checkpoint_gives_what_the_whole_one_gives(tmp_path: Path) -> None:
    detector = pcdet_ext.build("kitti/demo_sim", device="cpu")
    content = {"config": {"data": {"root": "/home/me/kitti", "classes": ["Car"]}, "model": {}}, "optimizer": {}}
    content["model"] = detector.model.state_dict()
    small = checkpoint.compact(content, {"root": "data/kitti"})
    assert set(small) == {"config", "model"}
    assert small["config"]["data"] == {"root": "data/kitti", "classes": ["Car"]}
    assert content["config"]["data"]["root"] == "/home/me/kitti"
    checkpoint.load_model(detector.model, small["model"], "small")
    for name, value in detector.model.state_dict().items():
        assert value.dtype == content["model"][name].dtype
        torch.testing.assert_close(value, content["model"][name], rtol=1e-3, atol=1e-6)


def test_what_half_precision_does_not_hold_is_refused() -> None:
    content = {"config": {}, "model": {"a": torch.ones(2), "scale": torch.tensor([1e6])}}
    with pytest.raises(ValueError, match="too large for half precision: scale"):
        checkpoint.compact(content)


def test_it_finds_the_cars_of_a_simulated_street() -> None:
    pytest.importorskip("open3d")
    from pcdet_ext.data.simulation import SpinningLidar, simulate_frame
    from pcdet_ext.data.simulation.kitti import calibration, labels_of

    detector = pcdet_ext.load(NAME, device="cpu")
    labelled = right = found = 0
    for seed in range(3):
        sensor = SpinningLidar()
        scene, scan = simulate_frame(90_000 + seed, 0, sensor)
        labels = kitti.boxed(labels_of(scene, scan, sensor, calibration()))
        near = (labels.location[:, 2] < 35) & (labels.occlusion <= 1) & (labels.truncation < 0.2)
        cars = labels.select(near & np.array([name == "Car" for name in labels.names], bool))
        truth = torch.from_numpy(np.asarray(kitti.labels_to_boxes(cars, calibration()).boxes))
        boxes = torch.from_numpy(np.asarray(detector.detect(scan.points, score_threshold=0.3).boxes))
        labelled += len(truth)
        found += len(boxes)
        right += int((iou_bev(truth, boxes).amax(1) > 0.5).sum()) if len(truth) and len(boxes) else 0
    assert labelled >= 5
    assert right >= 0.7 * labelled


def test_commands_take_the_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = np.random.default_rng(0).uniform([0, -20, -2, 0], [45, 20, 0, 1], (3000, 4)).astype(np.float32)
    cloud = tmp_path / "000000.bin"
    points.tofile(cloud)
    for given in (NAME, f"{NAME}.ckpt"):
        picture = tmp_path / f"{Path(given).name}.png"
        assert main(["visualize", given, str(cloud), "--device", "cpu", "--out", str(picture)]) == 0
        assert picture.stat().st_size > 1000


def test_the_code_of_its_page_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (root / "docs" / "models" / "demo_sim.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    np.random.default_rng(0).uniform([0, -20, -2, 0], [45, 20, 0, 1], (500, 4)).astype(np.float32).tofile("scan.bin")
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code
    for block in code:
        exec(compile(block, "demo_sim.md", "exec"), {})


def test_a_damaged_file_is_still_named_as_such(tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.packaged()[NAME].read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt: damaged"):
        pcdet_ext.load(cut)
