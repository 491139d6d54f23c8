"""Frames of a data set: named by id or position, with tracks in their own coordinates, results and ages."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from page_reader import read_page
from toy_drive import BIKE_IN_WORLD, FRAMES, SEQUENCE_LENGTH, ToyDrive, boxes, car_in_world, pose

from pcdet_ext.cli.command import main
from pcdet_ext.config import load
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections
from pcdet_ext.visualization.ages import ages
from pcdet_ext.visualization.command import visualize_frames
from pcdet_ext.visualization.frames import Sequences, find_frames, frame_range, frame_scenes

IDS = ["000007", "000012", "ab12", "ab34", "17c", "2"]


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        ("000012", [1]),
        ("0", [0]),
        ("1", [1]),
        ("2", [5]),  # an id counts before a position
        ("5", [5]),
        ("00001", [1]),  # with a leading zero it is the start of an id
        ("ab3", [3]),
        ("17", [4]),  # there are not so many frames
        ("ab34, 0 ,ab34", [3, 0, 3]),
    ],
)
def test_frames_are_found_by_id_start_of_an_id_or_position(wanted: str, positions: list[int]) -> None:
    assert find_frames(IDS, wanted) == positions


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("ab", "frame 'ab' could be ab12, ab34; name more of it"),
        ("ab35", "there is no frame 'ab35'; the nearest id is 'ab3"),
        ("99", "there is no frame 99: positions go from 0 to 5, and no id starts with it"),
        ("1,,2", "frames must be ids or positions separated by commas"),
        ("", "frames must be ids or positions separated by commas"),
    ],
)
def test_frames_that_are_not_there_are_named(wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_frames(IDS, wanted)


def test_many_frames_of_one_start_are_not_all_listed() -> None:
    with pytest.raises(ValueError, match=r"could be f0, f1, f2, f3, f4 and 95 more; name more of it"):
        find_frames([f"f{i}" for i in range(100)], "f")


@pytest.mark.parametrize(
    ("text", "positions"),
    [("2:5", [2, 3, 4]), (":3", [0, 1, 2]), ("7:", [7, 8, 9]), ("1:10:4", [1, 5, 9]), ("::5", [0, 5])],
)
def test_a_range_is_half_open(text: str, positions: list[int]) -> None:
    assert list(frame_range(text, 10)) == positions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "must be A:B or A:B:STEP, got '3'"),
        ("-2:3", "must be A:B or A:B:STEP"),
        ("2:11", "frames 2:11: positions go from 0 to 9"),
        ("10:", "frames 10:: positions go from 0 to 9"),
        ("4:4", "frames 4:4: holds no frame"),
        ("0:4:0", "the step must be at least 1"),
    ],
)
def test_a_range_outside_the_split_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_range(text, 10)


def local(world: np.ndarray, number: int) -> np.ndarray:
    return (np.linalg.inv(pose(number)) @ [*world, 1.0])[:3]


def test_tracks_are_paths_in_the_coordinates_of_the_frame() -> None:
    (scene,) = frame_scenes(ToyDrive(), [1], "val")
    car, bike = scene.truth_tracks
    assert (car.track_id, car.name, bike.track_id, bike.name) == (7, "Car", 9, "Bike")
    np.testing.assert_allclose(car.positions, [local(car_in_world(i), 1) for i in range(SEQUENCE_LENGTH)], atol=1e-4)
    assert len(bike.positions) == SEQUENCE_LENGTH - 1  # it is missing in frame 2
    np.testing.assert_allclose(bike.positions, np.repeat(local(BIKE_IN_WORLD, 1)[None], 3, 0), atol=1e-4)
    assert scene.title == "a001c (val 1)"
    assert scene.found_tracks == []


def test_tracks_go_as_far_as_asked_and_only_over_one_sequence() -> None:
    def lengths(position: int, before: int | None, after: int | None) -> list[int]:
        (scene,) = frame_scenes(ToyDrive(), [position], "val", before=before, after=after)
        return [len(track.positions) for track in scene.truth_tracks]

    assert lengths(3, None, None) == [4, 3]
    assert lengths(3, 1, 0) == [2]  # of the bike only this frame is left, which is no path
    assert lengths(1, 0, 1) == [2]
    assert lengths(FRAMES - 1, None, None) == [2, 2]
    assert lengths(0, 10, 0) == []


def test_frames_of_a_sequence_need_not_lie_together_or_in_order() -> None:
    dataset = ToyDrive()
    shuffled = [3, 4, 1, 0, 5, 2]
    dataset.frames = [dataset.frames[i] for i in shuffled]
    order = Sequences(dataset.frames)
    assert [shuffled[i] for i in order.find("first")] == [0, 1, 2, 3]
    assert [shuffled[i] for i in order.find("s")] == [4, 5]
    assert [shuffled[i] for i in order.around(2, 1, 1)] == [0, 1, 2]
    untimed = [type(info)(**{**vars(info), "timestamp": None}) for info in dataset.frames]
    assert [shuffled[i] for i in Sequences(untimed).find("first")] == [3, 1, 0, 2]
    alone = [type(info)(**{**vars(info), "sequence_id": ""}) for info in dataset.frames]
    assert Sequences(alone).around(2, None, None) == []
    with pytest.raises(ValueError, match="belong to no sequence"):
        Sequences(alone).find("first")
    with pytest.raises(ValueError, match="sequence '' could be first, second; name more of it"):
        order.find("")


def test_frames_without_poses_have_no_tracks() -> None:
    dataset = ToyDrive()
    dataset.frames = [type(info)(**{**vars(info), "pose": None}) for info in dataset.frames]
    (scene,) = frame_scenes(dataset, [1], "val")
    assert list(scene.truth_tracks) == []


def results_file(path: Path) -> Path:
    """The car in frames 0 and 1, a doubtful second object in frame 1 alone, nothing in frame 2, no word on others."""
    rows = {f"a00{i}c": [[7, 0.9, *boxes(i)[0].tolist()]] for i in range(2)}
    rows["a001c"].append([8, 0.2, *boxes(1)[0].tolist()])
    path.write_text(json.dumps({**rows, "a002c": []}))
    return path


def test_results_are_shown_with_their_tracks(tmp_path: Path) -> None:
    dataset = ToyDrive()
    results = dataset.read_results(results_file(tmp_path / "results.json"))
    one, two, three = frame_scenes(dataset, [1, 2, 3], "val", results=results)
    assert one.detections.track_ids.tolist() == [7, 8]
    (track,) = one.found_tracks
    np.testing.assert_allclose(track.positions, [local(car_in_world(i), 1) for i in range(2)], atol=1e-4)
    assert len(one.above(0.95).found_tracks) == 0
    assert (len(two.detections), two.title) == (0, "a002c (val 2)")
    assert (three.detections, three.title) == (None, "a003c (val 3), no results for this frame")


def test_detections_are_computed_from_the_sample() -> None:
    def detect(sample: object) -> Detections:
        return Detections(sample.targets.boxes, np.full(2, 0.5), np.array([0, 1]), ("Car", "Bike"), sample.frame_id)

    (scene,) = frame_scenes(ToyDrive(), [0], "val", detect)
    np.testing.assert_array_equal(scene.detections.boxes, boxes(0))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("data:\n  name: ToyDrive\n  classes: [Car, Bike]\n")
    return path


def test_pictures_of_frames_have_their_ids(toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "pictures"
    assert visualize_frames(toy, frame="a001,5", out=out) == [out / "a001c.png", out / "b005c.png"]
    with caplog.at_level(logging.WARNING):
        visualize_frames(toy, frame="5", out=out)
    assert caplog.messages == [f"{out}: also holds pictures of other runs (1, as a001c.png)"]
    caplog.clear()
    visualize_frames(toy, frames="1:6:4", out=out)
    assert caplog.messages == []
    new = tmp_path / "new"
    assert visualize_frames(toy, sequence="second", out=new) == [new / "b004c.png", new / "b005c.png"]
    assert visualize_frames(toy, sequence="first", frames="2:3", out=new) == [new / "a002c.png"]
    assert visualize_frames(toy, frame="0", out=tmp_path / "one.html", style="page") == [tmp_path / "one.html"]


def test_results_of_other_frames_are_refused(toy: Path, tmp_path: Path) -> None:
    results = results_file(tmp_path / "results.json")
    visualize_frames(toy, frames="0:6", results=results, out=tmp_path / "tour.html")
    with pytest.raises(DataError, match=r"results\.json: has no results for frame b004c"):
        visualize_frames(toy, frame="4", results=results, out=tmp_path / "a.png")
    with pytest.raises(DataError, match=r"has no results for any of the 3 frames a003c, …"):
        visualize_frames(toy, frames="3:", results=results, out=tmp_path / "a.html")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("toy.yaml --frame a9 --out a.png", 2, "there is no frame 'a9'; the nearest id is 'a00"),
        ("toy.yaml --frame a00 --out a.png", 2, "frame 'a00' could be a000c, a001c, a002c, a003c; name more of it"),
        ("toy.yaml --frames 0:7 --out a.html", 2, "frames 0:7: positions go from 0 to 5"),
        (
            "toy.yaml --frames 0:2 --out a.png",
            2,
            "several frames need a folder, or an .html, .gif or .rrd file that plays them",
        ),
        ("toy.yaml --sequence third --out a.html", 2, "there is no sequence 'third'; the nearest of 2 is 'first'"),
        ("toy.yaml --sequence first --frames 0:5 --out a.html", 2, "frames 0:5: positions go from 0 to 3"),
        ("toy.yaml --frame 1,a001c --out pictures", 2, "would be the picture of a001c and of a001c"),
        ("toy.yaml --frame 0 --frames 0:2 --out a.png", 2, "give a range or a sequence; not both"),
        ("toy.yaml --split none --frame 0 --out a.png", 2, "there is no split 'none'"),
        ("toy.yaml data.colour=red --frame 0 --out a.png", 2, "colour"),
        ("toy.yaml other --frame 0 --out a.png", 2, "then changes a.b=c of its configuration"),
        ("toy.yaml --frame 0 --labels x.txt --out a.png", 2, "--labels is for single files"),
        ("none.yaml --frame 0 --out a.png", 2, "none.yaml: no such configuration file"),
        ("none.ckpt --frame 0 --out a.png", 2, "none.ckpt: no such checkpoint"),
        ("none.ckpt --frame 0 --results results.json --out a.png", 2, "both say what was found"),
        ("toy.yaml --frame 0 --score nan --out a.png", 2, "score must be a number"),
        ("some.bin --split val --out a.png", 2, "--split: name frames of it with --frame, --frames or"),
        ("some.bin --features x,y,intensity --out a.png", 2, "--features must be x,y,z and then different"),
        ("some.bin --features x,y,z,x --out a.png", 2, "--features must be x,y,z and then different"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.bin").write_bytes(np.zeros((3, 4), np.float32).tobytes())
    before = sorted(tmp_path.rglob("*"))
    assert main(["visualize", *arguments.split()]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_draws_a_tour_of_a_data_set(toy: Path, tmp_path: Path) -> None:
    assert main(["visualize", str(toy), "--frames", "0:3", "--out", str(tmp_path / "tour.html")]) == 0
    frames = read_page(tmp_path / "tour.html")[0]["frames"]
    assert [frame["title"] for frame in frames] == ["a000c (val 0)", "a001c (val 1)", "a002c (val 2)"]


def test_objects_that_stand_still_have_still_tracks_in_a_moving_frame(shared: Path, tmp_path: Path) -> None:
    root = shared / "golden" / "data" / "nuscenes"
    prepared = ["prepare", "nuscenes", "--root", str(root), "--out", str(tmp_path), "--splits", "mini_val"]
    assert main([*prepared, "--database", "--quiet"]) == 0
    settings = load("nuscenes/dsvt_pillar", [f"data.root={root}", f"data.index={tmp_path}"])
    dataset = build_dataset(settings["data"], "mini_val", training=False)
    driven = [info.pose[:2, 3] for info in dataset.frames]
    assert np.ptp(driven, axis=0).max() > 5  # metres: the tracks do not stand still for want of a way
    (scene,) = frame_scenes(dataset, [2], "mini_val")
    spread = {"barrier": 0.0, "traffic_cone": 0.0, "car": 0.0}
    for track in scene.truth_tracks:
        if track.name in spread:
            spread[track.name] = max(spread[track.name], float(np.ptp(track.positions, axis=0).max()))
    assert max(spread["barrier"], spread["traffic_cone"]) < 0.01
    assert spread["car"] > 5
    assert len(ages(scene).labels) == 10  # sweeps
    results = dataset.read_results(shared / "golden" / "data" / "nuscenes_submission_results.json")
    (shown,) = frame_scenes(dataset, [1], "mini_val", results=results)
    away = np.linalg.norm(shown.detections.boxes[:, None, :2] - shown.truth.boxes[None, :, :2], axis=2)
    assert (away.min(0) < 1.5).sum() > len(shown.truth) / 2
