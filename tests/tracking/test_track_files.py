"""Tracking of result files through the command line, and what is said about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.nuscenes_files import read_tracks
from pcdet_ext.files import DataError
from pcdet_ext.tracking.result_files import read_frames, write_submission


def detection(token: str, x: float, name: str = "car") -> dict[str, Any]:
    return {
        "sample_token": token,
        "translation": [x, 0, 0],
        "size": [2, 4, 1.5],
        "rotation": [1, 0, 0, 0],
        "velocity": [10, 0],
        "detection_name": name,
        "detection_score": 0.8,
        "attribute_name": "",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cars that drive for four frames, and their ground truth."""
    samples, truth, found = {}, {}, {}
    for i in (2, 0, 1, 3):  # files need not be in the order of time
        token = f"t{i}"
        samples[token] = {
            "scene": "s", "timestamp": 500_000 * i, "ego_translation": [0, 0, 0], "bicycle_racks": [],
        }  # fmt: skip
        found[token] = [detection(token, 5.0 * i), detection(token, -20 + 5.0 * i), detection(token, 1, "barrier")]
        truth[token] = [
            {**detection(token, box["translation"][0]), "tracking_name": "car", "tracking_id": str(k), "num_pts": 9}
            for k, box in enumerate(found[token][:2])
        ]
    (tmp_path / "gt.json").write_text(json.dumps({"samples": samples, "gt_boxes": truth}))
    (tmp_path / "found.json").write_text(json.dumps({"meta": {"use_lidar": True}, "results": found}))
    return tmp_path


def test_the_command_writes_a_submission_and_measures_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "found.json"), "--data", str(folder / "gt.json"), "--out", str(folder / "tracks.json")]
    assert main(["track", *arguments, "--tracker", "greedy", "--json", str(folder / "out.json")]) == 0
    assert "AMOTA" in capsys.readouterr().out
    assert json.loads((folder / "out.json").read_text())["amota"] == pytest.approx(1)
    content = json.loads((folder / "tracks.json").read_text())
    assert content["meta"] == {"use_lidar": True}
    tracks, tokens = read_tracks(folder / "tracks.json")
    assert len(tracks) == 8
    assert set(tracks.track.tolist()) == {"1", "2"}
    assert tokens == ("t0", "t1", "t2", "t3")
    assert main(["track", *arguments, "max_age=0", "assignment=wrong"]) == 2
    assert "assignment must be 'greedy' or 'optimal'" in capsys.readouterr().err


@pytest.mark.parametrize("same", ["found.json", "gt.json"])
def test_no_input_is_replaced(folder: Path, same: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / same).read_text()
    arguments = [str(folder / "found.json"), "--data", str(folder / "gt.json"), "--out"]
    assert main(["track", *arguments, str(folder / same)]) != 0
    assert main(["track", *arguments, str(folder / "tracks.json"), "--json", str(folder / "tracks.json")]) != 0
    assert capsys.readouterr().err.count("would replace a file that this command reads or writes") == 2
    assert (folder / same).read_text() == before
    assert not (folder / "tracks.json").exists()


def test_frames_of_the_released_tables_come_in_their_order(shared: Path) -> None:
    case = shared / "golden" / "eval_nuscenes_tracking" / "small"
    listed = read_frames(case / "gt.json", [])
    samples = json.loads((case / "gt.json").read_text())["samples"]
    assert read_frames(case / "tables", list(samples)) == listed
    assert sorted(listed, key=lambda frame: (frame.scene, frame.time)) == listed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": 1}, "expected the released tables, or JSON with 'samples' or 'frames'"),
        ({"samples": {"t": {"scene": "s"}}}, "sample t: needs a scene"),
        ({"samples": {"t": {"scene": "s", "timestamp": 10**400}}}, "sample t: needs a scene"),
        ({"frames": [{"token": "t", "timestamp": 10**400, "first": True}]}, "frame 0: needs token, timestamp"),
        ({"frames": [{"token": "t", "timestamp": True, "first": True}]}, "frame 0: needs token, timestamp"),
        ({"frames": [{"token": "t", "timestamp": float("nan"), "first": True}]}, "frame 0: needs token, timestamp"),
        (
            {"frames": [{"token": "t", "timestamp": i, "first": not i} for i in (0, 1)]},
            "frame 1: the token t is there twice",
        ),
        ({"frames": [{"token": "t", "timestamp": "now", "first": True}]}, "frame 0: needs token, timestamp"),
    ],
)
def test_damaged_lists_of_frames_are_named(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"frames\.json: {message}"):
        read_frames(tmp_path / "frames.json", [])


def test_results_must_be_about_the_frames(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((folder / "found.json").read_text())
    del content["results"]["t1"]
    (folder / "found.json").write_text(json.dumps(content))
    arguments = [str(folder / "found.json"), "--data", str(folder / "gt.json"), "--out", str(folder / "tracks.json")]
    assert main(["track", *arguments]) == 1
    assert "found.json: misses samples of the split, 1 in all, for example t1" in capsys.readouterr().err
    assert not (folder / "tracks.json").exists()


def test_numbers_that_are_not_finite_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    content = {"results": {"a": [{"velocity": [0.0, float("nan")]}]}}
    with pytest.raises(DataError, match=r"tracks.json: not written, results\.a\.0\.velocity\.1 is not finite"):
        write_submission(path, content)
    assert not path.exists()
