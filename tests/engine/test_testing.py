"""From detections to result rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError, Node, from_plain
from pcdet_ext.data import kitti
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.engine.testing import eval_config, measure
from pcdet_ext.engine.training import train
from pcdet_ext.files import DataError
from pcdet_ext.inference import Detector, boxes_of, build
from pcdet_ext.structures import Detections, PointLabels, Sample
from pcdet_ext.visualization.command import detect_in_sample, visualize, visualize_frames
from pcdet_ext.visualization.frames import frame_scenes

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
    with pytest.raises(DataError, match=r"nothing to measure, and nothing to write to .*ap\.json"):
        measure(path, split="test", json=tmp_path / "ap.json", device="cpu", overrides=["test.num_workers=0"])


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_frames_are_named_in_one_line_or_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    write_unlabelled_frames(tmp_path, 3)
    detector = build(root / "configs" / "kitti" / "demo.yaml", [f"data.root={tmp_path}"], device="cpu")
    path = tmp_path / "a.ckpt"
    checkpoint.write(path, {"config": detector.config.plain(), "model": detector.model.state_dict()})
    command = ["test", str(path), "--split", "test", "--device", "cpu", f"test.num_workers={workers}"]
    clouds = sorted((tmp_path / "testing" / "velodyne").iterdir())
    clouds[1].write_bytes(clouds[1].read_bytes()[:-5])
    assert main(command) == 1
    error = capsys.readouterr().err.rpartition("\r")[2].strip()  # after the progress bar
    assert error.startswith(f"pcdet test: {clouds[1]}: ")
    assert "\n" not in error
    assert main([*command, "seed=1"]) == 2
    assert "seed: a configuration has no such section; known: data" in capsys.readouterr().err
    assert main([*command, "data.on_error=skip"]) == 0
    assert "1 of 3 frames are damaged and were skipped" in capsys.readouterr().out
    for cloud in clouds:
        cloud.write_bytes(b"")
    assert main([*command, "data.on_error=skip"]) == 1
    assert "3 of 3 frames are damaged and were skipped, so that nothing is left" in capsys.readouterr().err


def test_pictures_read_columns_by_name_as_detection_does(root: Path, tmp_path: Path) -> None:
    detector = build(root / "configs" / "kitti" / "demo.yaml", device="cpu")
    path, cloud = tmp_path / "a.ckpt", tmp_path / "ring.pcd"
    checkpoint.write(path, {"config": detector.config.plain(), "model": detector.model.state_dict()})
    header = "FIELDS x y z ring\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 1\nHEIGHT 1\nPOINTS 1\nDATA ascii\n"
    cloud.write_text(header + "10 0 -1 7\n")
    with pytest.raises(DataError, match="intensity"):
        detector.detect(cloud)
    with pytest.raises(DataError, match="intensity"):
        visualize([cloud, path], out=tmp_path / "map.png", style="map", device="cpu")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert len(detector.detect(tmp_path / "empty.bin")) == 0
    for picture in ("empty.png", "empty.html"):
        visualize([tmp_path / "empty.bin", path], out=tmp_path / picture, device="cpu")
        assert (tmp_path / picture).stat().st_size > 0
    with pytest.raises(ValueError, match="columns of the points are those that the detector reads"):
        visualize([cloud, path], out=tmp_path / "map.png", device="cpu", features=["x", "y", "z"])


SEGMENTATION = {"name": "PointSegmentationHead", "point_classes": ["ground", "object"]}


def several_heads(root: Path, data: Path, path: Path, boxes: bool) -> Node:
    """A checkpoint of the demo's detector with its head twice beside one of points, or with the latter alone."""
    plain = build(root / "configs" / "kitti" / "demo.yaml", [f"data.root={data}"], device="cpu").config.plain()
    head = plain["model"].pop("head")
    if boxes:
        plain["model"]["heads"] = {"a": head, "b": head, "points": SEGMENTATION}
    else:
        plain["model"] |= {"head": SEGMENTATION, "bev_backbone": None}
    config = from_plain(plain, "test")
    checkpoint.write(path, {"config": plain, "model": Detector(config, "cpu").model.state_dict()})
    return config


def test_detectors_with_several_heads_are_measured_and_drawn(root: Path, tmp_path: Path) -> None:
    write_unlabelled_frames(tmp_path, 1)
    path, picture = tmp_path / "a.ckpt", tmp_path / "a.png"
    several_heads(root, tmp_path, path, boxes=True)
    measure(path, split="test", out=tmp_path / "results", device="cpu", overrides=["test.num_workers=0"])
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["000000.txt"]
    visualize([path, tmp_path / "testing" / "velodyne" / "000000.bin"], picture, device="cpu")
    assert picture.stat().st_size > 0
    options = {"overrides": [f"data.root={tmp_path}"], "split": "test", "device": "cpu"}
    assert visualize_frames(path, frame="0", out=tmp_path / "b.png", **options) == [tmp_path / "b.png"]
    with pytest.raises(ValueError, match=r"a\.ckpt and .*results both say what was found"):
        visualize_frames(path, frame="0", out=tmp_path / "b.png", results=tmp_path / "results", **options)


def test_frames_of_a_data_set_are_drawn_with_what_the_detector_finds_in_them(root: Path, tmp_path: Path) -> None:
    write_unlabelled_frames(tmp_path, 1)
    detector = build(root / "configs" / "kitti" / "demo.yaml", ["model.head.score_threshold=0"], device="cpu")
    dataset = kitti.KittiDataset(
        root=str(tmp_path),
        classes=detector.classes,
        point_cloud_range=detector.config["data"]["point_cloud_range"],
        split="test",
    )
    (scene,) = frame_scenes(dataset, [0], "test", partial(detect_in_sample, detector))
    found = detector.detect(dataset[0].points)
    assert len(found) > 0
    np.testing.assert_array_equal(scene.detections.boxes, found.boxes)
    assert (scene.detections.frame_id, scene.truth, scene.title) == ("000000", None, "000000 (test 0)")


def test_detectors_without_boxes_are_refused_where_boxes_are_measured(root: Path, tmp_path: Path) -> None:
    write_unlabelled_frames(tmp_path, 1)
    path, frame = tmp_path / "a.ckpt", tmp_path / "testing" / "velodyne" / "000000.bin"
    config = several_heads(root, tmp_path, path, boxes=False)
    with pytest.raises(ConfigError, match="no head of this detector finds boxes"):
        measure(path, split="test", device="cpu")
    visualize([path, frame], tmp_path / "a.png", device="cpu")  # by the classes of its points
    assert (tmp_path / "a.png").stat().st_size > 0
    with pytest.raises(ConfigError, match=r"finds boxes.*train\.evaluate_every=0"):
        train(config, tmp_path / "run", device="cpu")
    labels = Detections(np.zeros((1, 7)), np.ones(1), np.zeros(1, np.int64), ("Car",))
    assert boxes_of(labels) is labels
    with pytest.raises(ConfigError, match="no head of this detector finds boxes"):
        boxes_of(PointLabels(np.zeros(3, np.int64), np.ones(3), ("ground",)))


def test_data_without_point_labels_is_refused_before_the_training(root: Path, tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform([1, -5, -2, 0], [20, 5, 0, 1], (500, 4)).astype(np.float32)
    labels = kitti.boxes_to_labels(np.array([[10.0, 0, -1, 4, 2, 1.5, 0]]), ["Car"], CALIBRATION)
    for i in range(2):
        kitti.write_frame(tmp_path, f"{i:06d}", points, labels, CALIBRATION)
    (tmp_path / "ImageSets").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (tmp_path / "ImageSets" / f"{split}.txt").write_text("000000\n000001\n")
    prepare_kitti(tmp_path, splits=["train", "val"], progress=False)
    config = several_heads(root, tmp_path, tmp_path / "a.ckpt", boxes=True)
    with pytest.raises(ConfigError, match=r"'points' .* learns from point labels, and frame '00000[01]'"):
        train(config, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_wrong_settings_name_the_key() -> None:
    settings = Node({"test": Node({"splt": "val"}, "test", {"splt": "a.yaml:9"})})
    with pytest.raises(ConfigError, match=r"a\.yaml:9: test\.splt.*did you mean 'split'"):
        eval_config(settings)
    assert eval_config(Node({})).split == "val"
