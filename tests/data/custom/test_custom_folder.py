"""A folder of one's own data, from its files to samples: every kind of cloud, splits, sweeps, and what is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from custom_folder import COLUMNS, NAMES, make_folder, make_scene, write_cloud

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.data.custom import CustomDataset, CustomFrames, write_labels
from pcdet_ext.data.custom.clouds import find_columns
from pcdet_ext.data.custom.layout import Settings, find_files, frames_of_split, natural
from pcdet_ext.data.custom.motion import motion_notes
from pcdet_ext.data.formats import build_dataset, read_frame_files
from pcdet_ext.data.objects import read_objects
from pcdet_ext.data.points import read_point_file
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError
from pcdet_ext.models.detector import build_detector

KINDS = (".bin", ".npy", ".pcd", ".ply", ".las", ".laz", ".feather")
RANGE = (-10, -10, -3, 10, 10, 2)


def prepared(root: Path, splits: tuple[str, ...] = ("train", "val"), **options: Any) -> CustomFrames:
    source = CustomFrames(root)
    prepare(source, splits, progress=False, **options)
    return source


def dataset(root: Path, split: str = "train", **options: Any) -> CustomDataset:
    options = {"intensity_scale": 255.0, "point_features": COLUMNS} | options
    return CustomDataset(root=root, classes=("Fork lift", "Person"), point_cloud_range=RANGE, split=split, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_clouds_of_every_kind_give_the_same_samples(tmp_path: Path, kind: str) -> None:
    if kind in (".las", ".laz"):
        pytest.importorskip("laspy")
    if kind == ".laz":
        pytest.importorskip("lazrs")
    root = make_folder(tmp_path, 8, kind)
    prepared(root)
    found = {s.frame_id: s for split in ("train", "val") for s in dataset(root, split)}
    assert sorted(found) == [f"{i:03d}" for i in range(8)]
    for i, (_, sample) in enumerate(sorted(found.items())):
        points, boxes = make_scene(np.random.default_rng(i))
        np.testing.assert_allclose(
            sample.points[:, :3], points[:, :3], atol=1e-6 if kind not in (".las", ".laz") else 2e-6
        )
        np.testing.assert_allclose(sample.points[:, 3], points[:, 3] / 255, rtol=1e-6)
        assert sample.targets is not None
        np.testing.assert_array_equal(sample.targets.boxes, boxes)
        assert sample.targets.names == NAMES
        assert (np.asarray(sample.targets.num_points) >= 50).all()


def test_kinds_may_be_mixed_in_one_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 6, ".pcd")
    points, _ = make_scene(np.random.default_rng(0))
    (root / "points" / "000.pcd").unlink()
    write_cloud(root / "points" / "000.bin", points)
    (root / "dataset.yaml").write_text("point_features: [x, y, z, intensity]\nintensity_scale: 255\n")
    prepared(root, ("all",), database=[])
    np.testing.assert_array_equal(dataset(root, "all")[0].points[:, :3], points[:, :3])


def sized(folder: Path, points: list[int], columns: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for i, count in enumerate(points):
        paths.append(folder / f"{i}.bin")
        np.zeros((count, columns), "<f4").tofile(paths[-1])
    return paths


def test_columns_of_bin_files_are_found_by_size_or_asked_for(tmp_path: Path) -> None:
    four = sized(tmp_path / "four", [101, 103, 107], 4)
    assert find_columns(four, Settings()).headless == ("x", "y", "z", "intensity")
    three = sized(tmp_path / "three", [101, 103, 107], 3)
    assert find_columns(three, Settings()).features == ("x", "y", "z")
    with pytest.raises(
        DataError, match=r"which columns .* may be 3 or 4 or 6 or 8; name them in dataset\.yaml, for instance"
    ):
        find_columns(sized(tmp_path / "twelve", [12, 36], 4), Settings())
    with pytest.raises(DataError, match=r"which columns .* may be 5; name them in dataset\.yaml"):
        find_columns(sized(tmp_path / "five", [101, 103, 107], 5), Settings())
    with pytest.raises(DataError, match="no number of columns from 3 to 8 fits"):
        find_columns(sized(tmp_path / "cut", [101, 103], 1), Settings())
    five = find_columns(
        sized(tmp_path / "stated", [7], 5), Settings(point_features=["x", "y", "z", "intensity", "ring"])
    )
    assert five.read(tmp_path / "stated" / "0.bin").shape == (7, 5)


@pytest.mark.parametrize("kind", [".bin", ".npy", ".pcd"])
def test_clouds_of_different_width(tmp_path: Path, kind: str) -> None:
    root = make_folder(tmp_path, 8, kind, settings="point_features: [x, y, z, intensity]\n")
    path = root / "points" / f"003{kind}"
    points, _ = make_scene(np.random.default_rng(3))
    match kind:
        case ".bin":
            points[:, :3].astype("<f4").tofile(path)
        case ".npy":
            np.save(path, points[:, :3])
        case ".pcd":
            path.write_text(path.read_text().replace("intensity", "normal"))
    with pytest.raises(DataError, match=rf"003\{kind}.*(columns|column for 'intensity')"):
        prepared(root, ("all",), database=[])
    found = prepare(CustomFrames(root), ("all",), database=[], on_error="skip", progress=False)[0]
    assert found.frames == 7
    assert len(found.skipped) == 1


def test_some_clouds_without_intensity(tmp_path: Path) -> None:
    points, _ = make_scene(np.random.default_rng(0))
    write_cloud(tmp_path / "a.pcd", points)
    np.save(tmp_path / "b.npy", points[:, :3])
    with pytest.raises(DataError, match=r"b\.npy: has no intensity, but a\.pcd has"):
        find_columns([tmp_path / "a.pcd", tmp_path / "b.npy"], Settings())


WRONG = {
    "labels": (lambda root: (root / "labels/004.txt").write_text("1 2 3\n"), r"labels/004\.txt:1: .*columns"),
    "nan": (lambda root: (root / "labels/004.txt").write_text("1 2 nan 1 1 1 0 Person\n"), r"004\.txt:1: .*finite"),
    "size": (lambda root: (root / "labels/004.txt").write_text("1 2 3 1 0 1 0 Person\n"), r"004\.txt:1: .*positive"),
    "degrees": (lambda root: (root / "labels/004.txt").write_text("1 2 3 1 1 1 90 Person\n"), r"004\.txt:1: .*degrees"),
    "no label": (lambda root: (root / "labels/004.txt").unlink(), r"points/004\.pcd: has no label file .*empty \.txt"),
    "no cloud": (lambda root: (root / "points/004.pcd").unlink(), r"labels/004\.txt: frame '004' has no point cloud"),
    "cut cloud": (lambda root: (root / "points/004.pcd").write_text("VERSION 0.7\n"), r"004\.pcd: damaged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_or_left_out_and_counted(tmp_path: Path, wrong: str) -> None:
    root = make_folder(tmp_path, 6)
    change, message = WRONG[wrong]
    change(root)
    with pytest.raises(DataError, match=message):
        prepared(root, ("all",), database=[])
    found = prepare(CustomFrames(root), ("all",), database=[], on_error="skip", progress=False)[0]
    assert (found.frames, len(found.skipped)) == (5, 1)


def test_unknown_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 6, settings="classes: [Fork lift, Persons]\n")
    with pytest.raises(DataError, match=r"000\.txt:2: unknown class 'Person'; did you mean 'Persons'"):
        prepared(root, ("all",))


def test_two_files_for_one_frame(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 2)
    (root / "labels" / "001.json").write_text("[]")
    with pytest.raises(DataError, match=r"001\.txt: frame '001' has another file, 001\.json"):
        CustomFrames(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intensity_scal: 255", r"dataset\.yaml:1.*did you mean 'intensity_scale'"),
        ("point_features: [intensity, x, y, z]", r"dataset\.yaml.*x, y, z and then"),
        ("heading_unit: turns", r"dataset\.yaml:1.*heading_unit"),
        ("max_sweeps: 0", r"max_sweeps must lie in \[1, 400\]"),
        ("intensity_scale: 0", "must be positive"),
        ("max_sweeps: 2", r"dataset\.yaml: max_sweeps: .* needs their poses"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, message: str) -> None:
    root = make_folder(tmp_path, 3, settings=f"{text}\n")
    with pytest.raises((ConfigError, DataError), match=message):
        CustomFrames(root)


def test_no_data_here_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"points is missing, which holds the clouds .* beside labels/FRAME\.txt"):
        CustomFrames(tmp_path)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "a.e57").write_text("")
    with pytest.raises(DataError, match=r"holds no point cloud .*\.e57"):
        CustomFrames(tmp_path)


def empty_files(root: Path, names: list[str]) -> Path:
    for name in names:
        for path in (root / "points" / f"{name}.pcd", root / "labels" / f"{name}.txt"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    return root


def test_the_made_split_keeps_frames_where_they_are(tmp_path: Path) -> None:
    few = [str(i) for i in range(200)]
    folder = find_files(empty_files(tmp_path, few))
    train, val = (frames_of_split(folder, split, 0.2) for split in ("train", "val"))
    assert sorted([*train, *val]) == sorted(few)
    assert 0.1 < len(val) / 200 < 0.3
    assert train == sorted(train, key=int)  # 9 before 10
    more = find_files(empty_files(tmp_path, [str(i) for i in range(200, 260)]))
    assert set(val) <= set(frames_of_split(more, "val", 0.2))
    assert set(train) <= set(frames_of_split(more, "train", 0.2))
    assert frames_of_split(folder, "all", 0.2) == sorted(few, key=int)
    with pytest.raises(DataError, match="split 'vall' is none of the made ones; did you mean 'val'"):
        frames_of_split(folder, "vall", 0.2)


def test_whole_sequences_are_held_back(tmp_path: Path) -> None:
    names = [f"drive_{d}/{i}" for d in range(7) for i in range(3)]
    folder = find_files(empty_files(tmp_path, names))
    sides = {split: {n.split("/")[0] for n in frames_of_split(folder, split, 0.2)} for split in ("train", "val")}
    assert sides["train"]
    assert sides["val"]
    assert not sides["train"] & sides["val"]


def test_two_frames_make_a_split_and_one_does_not(tmp_path: Path) -> None:
    folder = find_files(empty_files(tmp_path, ["a", "b"]))
    assert len(frames_of_split(folder, "train", 0.2)) == len(frames_of_split(folder, "val", 0.2)) == 1
    with pytest.raises(DataError, match="one frame alone"):
        frames_of_split(find_files(empty_files(tmp_path / "one", ["a"])), "val", 0.2)


def test_lists_of_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 6)
    lists = root / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("003\n001\n")
    (lists / "val.txt").write_text("000\n")
    (lists / "test.txt").write_text("005\n")
    (root / "labels" / "005.txt").unlink()
    prepared(root, ("train", "val", "test"))
    assert dataset(root).frames.frame_ids == ["003", "001"]
    assert not dataset(root, "test").frames.labelled
    assert run("prepare", "custom", "--root", root, "--splits", "train", "val", "test", "--quiet") == 0
    text = capsys.readouterr().out
    assert "in none of the splits train, val, test, and not looked at: 2 frames" in text
    assert "suspicious" not in text
    (lists / "val.txt").write_text("000\n\n000\n")
    with pytest.raises(DataError, match=r"val\.txt:3: frame '000' stands in line 1 already"):
        prepared(root, ("val",))
    (lists / "val.txt").write_text("999\n")
    with pytest.raises(DataError, match="frame '999' has no point cloud"):
        prepared(root, ("val",))
    with pytest.raises(DataError, match=r"trian\.txt: no such split; did you mean 'train'"):
        prepared(root, ("trian",))


def turned(angle: float, x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[0, 3] = x
    return pose


def sweep_folder(root: Path, file: str, timestamps: bool) -> dict[str, np.ndarray]:
    """Frames 8 to 11 of a sensor that moves and turns, in which one point of the world is seen from there."""
    poses = {str(i): turned(0.3 * i, 2.0 * i) for i in range(8, 12)}
    world = np.array([20.0, 3.0, 1.0, 1.0])
    for i, (name, pose) in enumerate(poses.items()):
        seen = (np.linalg.inv(pose) @ world)[:3]
        write_cloud(root / "points" / f"{name}.npy", np.array([[*seen, i]], np.float32))
        write_labels(root / "labels" / f"{name}.txt", np.array([[*seen, 2, 2, 2, 0]], np.float32), ["Person"])
    match file:
        case "poses.json":
            (root / file).write_text(json.dumps({name: pose.tolist() for name, pose in poses.items()}))
        case "poses.txt":
            lines = [f"{name} {' '.join(map(repr, pose[:3].ravel().tolist()))}" for name, pose in poses.items()]
            (root / file).write_text("\n".join(lines))
        case "poses.txt without frames":
            lines = [" ".join(map(repr, pose.ravel().tolist())) for pose in poses.values()]
            (root / "poses.txt").write_text("\n".join(lines))
    if timestamps:  # frame 11 is the first
        (root / "timestamps.txt").write_text("8 100.0\n9 100.5\n10 100.75\n11 99\n")
    (root / "dataset.yaml").write_text("max_sweeps: 3\n")
    return poses


@pytest.mark.parametrize("file", ["poses.json", "poses.txt", "poses.txt without frames"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_earlier_frames_are_joined(tmp_path: Path, file: str, timestamps: bool) -> None:
    poses = sweep_folder(tmp_path, file, timestamps)
    prepared(tmp_path, ("all",), database=["all"])
    features = (*COLUMNS, "timestamp")
    frames = CustomDataset(
        root=tmp_path, classes=("Person",), point_cloud_range=(-90, -90, -9, 90, 90, 9), split="all",
        max_sweeps=3, point_features=features,
    )  # fmt: skip
    samples = {s.frame_id: s for s in frames}
    ages = {"8": [0], "9": [0, 0.1], "10": [0, 0.1, 0.2], "11": [0, 0.1, 0.2]}
    if timestamps:
        ages = {"11": [0], "8": [0, 1], "9": [0, 0.5, 1.5], "10": [0, 0.25, 0.75]}
    world = np.array([20.0, 3.0, 1.0, 1.0])
    for name, pose in poses.items():
        points = samples[name].points
        np.testing.assert_allclose(points[:, 4], ages[name], atol=1e-5)
        seen = (np.linalg.inv(pose) @ world)[:3]
        np.testing.assert_allclose(points[:, :3], np.tile(seen, (len(points), 1)), atol=1e-4)
        assert samples[name].sequence_id == tmp_path.name
    objects = read_objects(tmp_path / "pcdet_ext" / "database_all")["Person"]
    assert sum(len(objects.points_of(i)) for i in range(len(objects))) == sum(map(len, ages.values()))
    assert frames.frames[2].num_points == 1
    with pytest.raises(ConfigError, match=r"max_sweeps: must lie in \[1, 3\].*got 4"):
        CustomDataset(root=tmp_path, classes=("Person",), point_cloud_range=RANGE, split="all", max_sweeps=4)


def test_sequences_are_not_joined(tmp_path: Path) -> None:
    names = ["a/0", "a/1", "b/0", "b/1"]
    for name in names:
        write_cloud(tmp_path / "points" / f"{name}.npy", np.ones((2, 4), np.float32))
        write_labels(tmp_path / "labels" / f"{name}.txt", np.ones((1, 7), np.float32), ["Person"])
    (tmp_path / "poses.json").write_text(json.dumps({name: np.eye(4).tolist() for name in names}))
    (tmp_path / "dataset.yaml").write_text("max_sweeps: 6\n")
    assert CustomFrames(tmp_path).earlier == {"a/0": [], "a/1": ["a/0"], "b/0": [], "b/1": ["b/0"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8 1 0 0", r"poses\.txt:1: must be the frame and 12 or 16 numbers"),
        ("8 1 0 0 0 0 1 0 0 0 0 1 x", r"poses\.txt:1: 'x' is not a number"),
        ("8 2 0 0 0 0 1 0 0 0 0 1 0", r"pose of '8': is no rotation"),
        ("8 1 0 0 0 0 1 0 0 0 0 -1 0", r"pose of '8': is no rotation"),
        ("1 0 0 0 0 1 0 0 0 0 1 0", r"has 1 lines for 4 frames"),
        ("8 1 0 0 0 0 1 0 0 0 0 1 0\n8 1 0 0 0 0 1 0 0 0 0 1 0", r"poses\.txt:2: frame '8' stands in an earlier line"),
    ],
)
def test_wrong_poses(tmp_path: Path, text: str, message: str) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    (tmp_path / "poses.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        CustomFrames(tmp_path)


def test_a_frame_without_a_pose(tmp_path: Path) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    (tmp_path / "poses.txt").write_text("8 1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(DataError, match=r"poses\.txt: has no pose for frame '9'"):
        prepared(tmp_path, ("all",), database=[])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("8 1\n9 2\n10 2\n11 3", r"timestamps\.txt: frames '9' and '10' have the same time 2; .*cannot be joined"),
        ("8 1e6\n9 1.1e6\n10 1.2e6\n11 1.3e6", r"timestamps\.txt: there are 100000 seconds .* microseconds"),
        ("8 1000\n9 1100\n10 1200\n11 1300", r"timestamps\.txt: there are 100 seconds .* milliseconds"),
        ("8 1e18\n9 1.1e18\n10 1.2e18\n11 1.3e18", r"timestamps\.txt: there are 1e\+17 seconds"),
        ("8 1_0\n9 11\n10 12\n11 13", r"timestamps\.txt:1: '1_0' is not a number"),
    ],
)
def test_times_that_give_no_ages(tmp_path: Path, times: str, message: str) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    (tmp_path / "timestamps.txt").write_text(times)
    with pytest.raises(DataError, match=message):
        CustomFrames(tmp_path)


def test_strange_poses_and_times_are_told(tmp_path: Path) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    with (tmp_path / "poses.txt").open("a") as file:
        file.write("\n80 1 0 0 0 0 1 0 0 0 0 1 0\n")
    (tmp_path / "timestamps.txt").write_text("8 0.4\n9 0.3\n10 0.2\n11 0.1\n99 7\n")
    source = CustomFrames(tmp_path)
    notes = motion_notes(source.motion, source.folder.frame_ids)
    assert [re.sub(r"^.*/", "", note) for note in notes] == [
        "poses.txt: names 1 frames that are not here, as '80'",
        "timestamps.txt: names 1 frames that are not here, as '99'",
        "timestamps.txt: frame '9' is earlier than '8', whose name comes before; frames are joined in the order of "
        "their times",
    ]


def test_a_pose_of_numbers_without_end(tmp_path: Path) -> None:
    sweep_folder(tmp_path, "poses.json", False)
    (tmp_path / "poses.json").write_text(json.dumps({"8": [10**400, *[0] * 11]}))
    with pytest.raises(DataError, match=r"poses\.json: frame '8': must be 12 or 16 finite numbers"):
        CustomFrames(tmp_path)


@pytest.mark.parametrize("folder", ["points", "labels"])
def test_names_of_files_that_are_not_utf8(tmp_path: Path, folder: str) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    suffix = b".npy" if folder == "points" else b".txt"
    Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/caf\xe9" + suffix)).touch()
    with pytest.raises(DataError, match=f"{folder}/caf.*the name of this file is not UTF-8"):
        CustomFrames(tmp_path)


def test_earlier_clouds_are_read_for_objects_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_folder(tmp_path, "poses.txt", False)
    read: list[str] = []
    monkeypatch.setattr(
        "pcdet_ext.data.custom.clouds.read_point_file",
        lambda path, *a, real=read_point_file: (read.append(Path(path).stem), real(path, *a))[1],
    )
    for database, most in (([], 1), (["all"], 3)):
        source = CustomFrames(tmp_path)
        read.clear()
        prepare(source, splits=("all",), database=database, progress=False)
        assert max(read.count(name) for name in ("8", "9", "10", "11")) == most


def test_natural_order() -> None:
    assert sorted(["a10", "a9", "a", "b1", "10", "9", "a9b2"], key=natural) == [
        "9",
        "10",
        "a",
        "a9",
        "a9b2",
        "a10",
        "b1",
    ]
    assert sorted(["²", "2", "٣"], key=natural) == ["2", "٣", "²"]  # digits of other scripts, and what is none


def run(*arguments: str | Path) -> int:
    return main([str(a) for a in arguments])


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


def test_other_splits_and_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", 4)
    out = tmp_path / "prepared"
    assert run("prepare", "custom", "--root", root, "--out", out, "--splits", "all", "--quiet") == 0
    content = yaml.safe_load((out / "config.yaml").read_text())
    assert content["data"]["index"] == str(out)
    assert content["data"]["split"] == content["test"]["split"] == "all"
    assert content["data"]["augment"][0]["name"] == "RandomFlip"  # no objects were cut out
    settings = config.load(out / "config.yaml")
    assert len(build_dataset(settings["data"], "train", training=True)) == 4
    assert len(build_dataset(settings["data"], "all", training=False)) == 4


def test_velocities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 4, settings="")
    path = root / "labels" / "001.txt"
    path.unlink()
    box = [3, 0, 0, 2, 2, 2, 0]
    objects = [{"class": "Person", "box": box, "velocity": [1, 2], "track_id": 5}, {"class": "Person", "box": box}]
    path.with_suffix(".json").write_text(json.dumps(objects))
    assert run("prepare", "custom", "--root", root, "--splits", "all", "--quiet") == 0
    assert "velocities are not used" in capsys.readouterr().out
    (root / "dataset.yaml").write_text("velocity: true\n")
    prepared(root, ("all",), database=["all"])
    sample = dataset(root, "all", intensity_scale=1.0)[1]
    assert sample.targets is not None
    np.testing.assert_array_equal(np.asarray(sample.targets.boxes)[:, 7:], [[1, 2], [0, 0]])
    np.testing.assert_array_equal(sample.targets.track_ids, [5, -1])
    pasting = [{"name": "GroundTruthSampling", "groups": {"Person": 9}, "min_points": 0}]
    augmented = dataset(root, "all", intensity_scale=1.0, training=True, augment=pasting, velocity=False)[0]
    assert augmented.targets is not None
    assert len(augmented.targets) > 3
    assert np.asarray(augmented.targets.boxes).shape[1] == 7


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
