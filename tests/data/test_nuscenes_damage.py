"""What is said of damaged nuScenes releases, and what is left out when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from nuscenes_release import Release, dataset, make_release, prepared

from pcdet_ext.data.index import index_path, read_index
from pcdet_ext.data.nuscenes import NuScenesFrames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError


def test_a_scene_without_files_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_release(("scene-0061", "scene-0553"))
    made.scans = {file: scan for file, scan in made.scans.items() if "scene-0553" not in file}
    frames = NuScenesFrames(made.write(tmp_path)).find("train")
    assert {frame.scene for frame in frames} == {"scene-0061"}
    assert "1 scenes of train have no files here, as scene-0553" in caplog.text


def test_a_scene_that_lacks_some_files_is_damaged(tmp_path: Path) -> None:
    made = make_release(("scene-0061", "scene-0553"))
    del made.scans[made.row("sample_data", "scene-0553-data-0")["filename"]]
    root = made.write(tmp_path)
    with pytest.raises(DataError, match=r"no such file \(sample_data scene-0553-data-0\)"):
        prepare(NuScenesFrames(root), ["train"], progress=False)
    (summary,) = prepare(NuScenesFrames(root, max_sweeps=1), ["train"], on_error="skip", progress=False)
    assert (summary.frames, len(summary.skipped)) == (5, 1)


@pytest.mark.parametrize("count", [0, 60])
def test_a_sweep_of_which_points_are_lost_is_damaged(release: Release, tmp_path: Path, count: int) -> None:
    root = prepared(release, tmp_path)
    file = root / release.row("sample_data", "scene-0061-data-7")["filename"]
    file.write_bytes(file.read_bytes()[: count * 20])
    with pytest.raises(DataError, match=rf"{count} points where the index has 61; changed\? \(.* scene-0061-data-7\)"):
        dataset(root)[2]
    assert len(dataset(root, max_sweeps=3)[2].points)  # the ninth and tenth scan alone
    if not count:
        with pytest.raises(DataError, match=r"empty, it has 0 bytes \(sample_data scene-0061-data-7\)"):
            prepare(NuScenesFrames(root), ["train"], [], progress=False)


def broken_sweep(made: Release) -> None:
    del made.scans[made.row("sample_data", "scene-0061-data-3")["filename"]]


def short_scan(made: Release) -> None:
    file = made.row("sample_data", "scene-0061-data-5")["filename"]
    made.scans[file] = made.scans[file].ravel()[:-1]


def unknown_token(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-3")["prev"] = "gone"


def nan_box(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["translation"][0] = float("nan")


def flat_box(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["size"][0] = 0


def zero_rotation(made: Release) -> None:
    made.row("ego_pose", "scene-0061-data-5-pose")["rotation"] = [0, 0, 0, 0]


def chain_in_a_circle(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-3")["prev"] = "scene-0061-data-3"


def key_frame_of_no_time(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-10")["timestamp"] = 0


def sample_of_no_time(made: Release) -> None:
    made.row("sample", "scene-0061-2")["timestamp"] = float("nan")


def annotation_without_size(made: Release) -> None:
    del made.row("sample_annotation", "scene-0061-instance-0-1")["size"]


def text_for_a_count(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["num_lidar_pts"] = "5"


def negative_count(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["num_lidar_pts"] = -5


def unknown_instance(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["instance_token"] = "gone"


def pose_without_rotation(made: Release) -> None:
    del made.row("ego_pose", "scene-0061-data-5-pose")["rotation"]


DAMAGED = [
    (broken_sweep, r"data-3|\.pcd\.bin: no such file \(sample_data scene-0061-data-3\)"),
    (short_scan, r"\.pcd\.bin: .*cut short.* \(sample_data scene-0061-data-5\)"),
    (unknown_token, r"sample scene-0061-1: .*sample_data\.json: scene-0061-data-3: prev 'gone' is not there"),
    (nan_box, r"sample_annotation\.json: scene-0061-instance-0-1: translation is not finite"),
    (flat_box, r"sample_annotation\.json: scene-0061-instance-0-1: size must be positive"),
    (zero_rotation, r"ego_pose\.json: scene-0061-data-5-pose: a rotation of zeros"),
    (chain_in_a_circle, r"sample_data\.json: scene-0061-data-3: prev 'scene-0061-data-3' is not older"),
    (key_frame_of_no_time, r"sample scene-0061-2: .*sample\.json: its timestamp is .* its key frame 0\.000 s"),
    (sample_of_no_time, r"sample\.json: row 2 \(scene-0061-2\): timestamp is nan"),
    (annotation_without_size, r"sample_annotation\.json: row 1 \(scene-0061-instance-0-1\) lacks 'size'"),
    (text_for_a_count, r"sample_annotation\.json: row 1 \(scene-0061-instance-0-1\) is wrong"),
    (negative_count, r"row 1 \(scene-0061-instance-0-1\): num_lidar_pts is -5"),
    (unknown_instance, r"row 1 \(scene-0061-instance-0-1\): instance_token 'gone' is not in instance\.json"),
    (pose_without_rotation, r"ego_pose\.json: row 5 \(scene-0061-data-5-pose\) lacks 'rotation'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_what_is_damaged_is_named_and_can_be_left_out(
    release: Release, tmp_path: Path, damage: object, message: str
) -> None:
    damage(release)
    root = release.write(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare(NuScenesFrames(root), ["train"], progress=False)
    (summary,) = prepare(NuScenesFrames(root), ["train"], on_error="skip", progress=False)
    assert summary.frames + len(summary.skipped) == 3
    assert 1 <= len(summary.skipped) <= 2
    assert read_index(index_path(root / "pcdet_ext", "train"))[0].frame_id == "scene-0061-0"


def test_a_sweep_that_is_lost_later_is_skipped_when_asked(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    (root / release.row("sample_data", "scene-0061-data-7")["filename"]).unlink()
    with pytest.raises(DataError, match=r"no such file \(sample_data scene-0061-data-7\)"):
        dataset(root)[2]
    found = dataset(root, on_error="skip")
    assert len(found[2].points) == 0
    assert found.counts["skipped frames"] == 1


def test_categories_of_other_names_are_no_silent_absence(release: Release, tmp_path: Path) -> None:
    for row in release.tables["category"]:
        row["name"] = row["name"].replace(".", "/")
    with pytest.raises(
        DataError, match=r"category\.json: 24 of 24 objects are of categories that nuScenes does not have"
    ):
        NuScenesFrames(release.write(tmp_path)).find("train")


@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance"])
def test_a_missing_table_is_named(release: Release, tmp_path: Path, table: str) -> None:
    root = release.write(tmp_path)
    (root / "v1.0-mini" / f"{table}.json").unlink()
    with pytest.raises(DataError, match=rf"{table}\.json|no tables"):
        NuScenesFrames(root).find("train")
