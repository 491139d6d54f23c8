"""`pcdet prepare custom`: its report, the configuration that it writes, and the evaluation of result files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from custom_folder import NAMES, dataset, make_folder, make_scene, prepared, run

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.data.custom import write_labels
from pcdet_ext.data.formats import build_dataset, read_frame_files
from pcdet_ext.data.points import read_point_file
from pcdet_ext.models.detector import build_detector


def test_prepare_reports_and_writes_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "my data", 10, settings="")
    (root / "points" / "notes.md").write_text("x")
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    text = capsys.readouterr().out
    for part in (
        "10 .pcd; columns x, y, z, intensity",
        "not read: 1 .md",
        "labelled frames: 10, 0 of them without a box",
        "0.70 (0.70 – 0.70)",
        "3.20 (3.20 – 3.20)",
        "the intensity goes to 255: `intensity_scale: 255`",
        "suggested point_cloud_range",
        "bottom_height -1.5",
    ):
        assert part in text
    path = root / "pcdet_ext" / "config.yaml"
    settings = config.load(path)
    boxes = np.concatenate([make_scene(np.random.default_rng(i))[1] for i in range(10)])
    low, high = np.array(settings["data"]["point_cloud_range"]).reshape(2, 3)
    assert (low < boxes[:, :3] - boxes[:, 3:6] / 2).all()
    assert (high > boxes[:, :3] + boxes[:, 3:6] / 2).all()
    sizes = {a["class_name"]: a["sizes"][0] for a in settings["model"]["head"]["anchors"]}
    assert sizes == {"Fork lift": [3.2, 1.4, 2.2], "Person": [0.7, 0.6, 1.8]}
    assert settings["test"]["metric"]["overlap"] == {"Person": 0.5, "Fork lift": 0.7}
    build_detector(settings)
    assert len(build_dataset(settings["data"], "train", training=True)[0].points) > 100


def test_an_edited_configuration_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 6)
    path = root / "pcdet_ext" / "config.yaml"
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    first = path.read_text()
    (root / "labels" / "003.txt").write_text("0 0 0 9 2 2 0 Truck\n")
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    second = path.read_text()
    assert "Truck" in second
    assert "Truck" not in first
    path.write_text(second.replace("Truck", "Lorry"))
    capsys.readouterr()
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    assert "config.yaml: was edited and stays as it is" in capsys.readouterr().out
    assert "Lorry" in path.read_text()


def test_the_report_says_what_is_suspicious(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 6, settings="classes: [Fork lift, Person, Dog]\n")
    for i in range(6):
        _, boxes = make_scene(np.random.default_rng(i))
        boxes[:, :2] += 30
        boxes[:, 3:5] = boxes[:, [4, 3]]
        write_labels(root / "labels" / f"{i:03d}.txt", boxes, NAMES)
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    text = capsys.readouterr().out
    assert "100% of the boxes of Person hold no point" in text
    assert "100% of the boxes of Fork lift are wider (dy) than long (dx)" in text
    assert "class 'Dog' of dataset.yaml has no box" in text


def test_coordinates_of_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 4, ".npy")
    points = np.load(root / "points" / "002.npy")
    np.save(root / "points" / "002.npy", points + np.array([500_000, 0, 0, 0], np.float32))
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    assert "are they of a map?" in capsys.readouterr().out


def test_boxes_far_from_all_others_do_not_count_for_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path, 4)
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    assert "far from all others" not in capsys.readouterr().out
    expected = config.load(root / "pcdet_ext" / "config.yaml")["data"]["point_cloud_range"]
    with (root / "labels" / "000.txt").open("a") as file:
        file.write("4e6 0 0 4 2 1.5 0 Person\n")
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    assert "suspicious: 1 boxes lie far from all others, and outside the suggested range" in capsys.readouterr().out
    found = config.load(root / "pcdet_ext" / "config.yaml")["data"]["point_cloud_range"]
    np.testing.assert_allclose(found, expected, atol=1)


def test_classes_of_the_same_letters_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 4)
    labels = root / "labels" / "000.txt"
    labels.write_text(labels.read_text().replace("Fork lift", "fork_lift"))
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    assert "suspicious: 'Fork lift' and 'fork_lift' are different classes" in capsys.readouterr().out


def test_the_intensity_scale_is_that_of_the_preparation(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 4)
    prepared(root, ("all",), database=[])
    with pytest.raises(ConfigError, match="intensity_scale: is 1, but the folder was prepared with 255"):
        dataset(root, "all", intensity_scale=1.0)


def test_single_frames_to_look_at(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 2)
    points, boxes = make_scene(np.random.default_rng(1))
    sample, found = read_frame_files(root / "points" / "001.pcd")
    np.testing.assert_allclose(sample.points[:, 3], points[:, 3] / 255, rtol=1e-6)
    assert sample.targets is not None
    np.testing.assert_array_equal(sample.targets.boxes, boxes)
    assert found is None
    write_labels(tmp_path / "results.txt", boxes[:1], ["Person"], np.array([0.5]))
    sample, found = read_frame_files(None, labels=root / "labels" / "001.txt", results=tmp_path / "results.txt")
    assert sample.targets is not None
    assert len(sample.targets) == 3
    assert found is not None
    assert found.names == ["Person"]


def test_evaluation_of_result_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "data", 3)
    results = tmp_path / "results"
    for i in range(3):
        _, boxes = make_scene(np.random.default_rng(i))
        write_labels(results / f"{i:03d}.txt", boxes, NAMES, np.ones(len(boxes)))
    command = ("evaluate", "custom", "--results", results, "--json", tmp_path / "ap.json")
    for truth in (root, root / "labels"):
        assert run(*command, "--ground-truth", truth, "overlap={Fork lift: 0.9}") == 0
        assert json.loads((tmp_path / "ap.json").read_text())["score"] == 100
        assert "0.90  100.00  100.00         3         3" in capsys.readouterr().out
    with (results / "000.txt").open("a") as file:
        file.write("1 2 3 4 5 6 0 Bus 0.5\n")
    assert run(*command, "--ground-truth", root) == 0
    assert "detections of classes that are not measured: 1 Bus" in capsys.readouterr().out
    assert json.loads((tmp_path / "ap.json").read_text())["unmeasured"] == {"Bus": 1}
    (results / "007.txt").write_text("")
    assert run(*command, "--ground-truth", root) == 1
    assert "results for frame '007'" in capsys.readouterr().err


def test_detectors_divide_the_intensity_as_in_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 4)
    assert run("prepare", "custom", "--root", root, "--quiet") == 0
    detector = pcdet_ext.build(root / "pcdet_ext" / "config.yaml", device="cpu")
    raw = read_point_file(root / "points" / "001.pcd").points
    read = detector._read(root / "points" / "001.pcd").numpy()
    np.testing.assert_allclose(read[:, 3], raw[:, 3] / 255, rtol=1e-6)
    np.testing.assert_array_equal(read[:, :3], raw[:, :3])
    np.testing.assert_array_equal(detector._read(raw).numpy(), read)
    assert raw[:, 3].max() > 200  # the caller's own array stays
