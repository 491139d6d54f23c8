"""Earlier clouds of a folder of one's own: poses and times, and what is said of wrong ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from custom_folder import COLUMNS, RANGE, dataset, make_folder, prepared, run, write_cloud

from pcdet_ext.config import ConfigError
from pcdet_ext.data.custom import CustomDataset, CustomFrames, write_labels
from pcdet_ext.data.custom.motion import motion_notes
from pcdet_ext.data.objects import read_objects
from pcdet_ext.data.points import read_point_file
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError


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
