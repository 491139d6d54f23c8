"""Tracking of KITTI results through the command line, with the benchmark's own metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.tracking import kitti_files

FRAMES = 6


def row(frame: int, k: int) -> tuple[str, str]:
    """A car and a pedestrian that move: what stands before the type, and from the type on."""
    name = ("Car", "Pedestrian")[k % 2]
    left, ahead = 100 + 150 * k + 4 * frame, 12 + 6 * k + 0.4 * frame
    box = f"{left:.2f} 150.00 {left + 60:.2f} 230.00"
    return name, f"{name} 0 0 -1.57 {box} 1.50 1.60 3.90 {-4 + 3 * k} 1.70 {ahead:.2f} -1.57"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One sequence of the benchmark, and detections of it in three forms."""
    labels = tmp_path / "training" / "label_02"
    labels.mkdir(parents=True)
    (labels.parent / "evaluate_tracking.seqmap.training").write_text(f"0003 empty 000000 {FRAMES:06d}\n")
    truth, whole = [], []
    for form in ("whole", "folders/0003", "flat"):
        (tmp_path / form).mkdir(parents=True)
    for frame in range(FRAMES):
        rows = [row(frame, k)[1] for k in range(3) if (frame, k) != (2, 1)]
        truth += [f"{frame} {k} {row(frame, k)[1]}" for k in range(3)]
        whole += [f"{frame} -1 {text} 0.9" for text in rows]
        content = "".join(f"{text} 0.9\n" for text in rows)
        (tmp_path / "folders" / "0003" / f"{frame:06d}.txt").write_text(content)
        (tmp_path / "flat" / f"0003_{frame:06d}.txt").write_text(content)
    (labels / "0003.txt").write_text("\n".join(truth) + "\n")
    (tmp_path / "whole" / "0003.txt").write_text("\n".join(whole) + "\n")
    return tmp_path


def arguments(folder: Path, form: str, *more: str) -> list[str]:
    data, out = folder / "training", folder / "tracks"
    return ["track", str(folder / form), "--data", str(data), "--out", str(out), *more]


@pytest.mark.parametrize("tracker", ["greedy", "kalman"])
def test_tracks_are_written_and_measured(folder: Path, tracker: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = folder / "out.json"
    outputs = []
    for form in ("whole", "folders", "flat"):
        assert main(arguments(folder, form, "--tracker", tracker, "--json", str(numbers))) == 0
        assert "HOTA" in capsys.readouterr().out
        outputs.append((folder / "tracks" / "0003.txt").read_text())
    assert outputs[0] == outputs[1] == outputs[2]
    lines = [line.split() for line in outputs[0].splitlines()]
    assert len(lines) == 3 * FRAMES - 1
    tracks = {(fields[2], fields[6]): fields[1] for fields in lines}  # by class and left edge of the box
    for k in range(3):
        own = {tracks[row(f, k)[0], f"{100 + 150 * k + 4 * f:.4f}"] for f in range(FRAMES) if (f, k) != (2, 1)}
        assert len(own) == 1
    car = json.loads(numbers.read_text())["COMBINED_SEQ"]["car"]
    assert car["CLEAR"]["IDSW"] == 0
    assert car["HOTA"]["mean"]["HOTA"] == pytest.approx(1)


def test_boxes_stand_as_the_camera_sees_them(folder: Path) -> None:
    frames = kitti_files.read_detections(folder / "flat", folder / "training")["0003"]
    still = kitti_files._still(frames[0])
    assert still.box[0] == pytest.approx([12, 4, -0.95, 3.9, 1.6, 1.5, 0], abs=1e-3)
    assert np.isnan(still.velocity).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 -1 Car 0 0", "expected 18 columns, with a score, got 5"),
        ("9 -1 " + row(0, 0)[1] + " 0.9", "frame 9 is not in the sequence, which has 6 frames"),
        ("0 -1 " + row(0, 0)[1] + " good", "'good' is not a number"),
    ],
)
def test_damaged_lines_are_named(folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "whole" / "0003.txt").write_text(f"\n{line}\n")
    assert main(arguments(folder, "whole")) == 1
    assert f"0003.txt:2: {message}" in capsys.readouterr().err


def test_what_does_not_work_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, "training")) == 2
    assert "has neither 0003.txt nor 0003/000000.txt nor 0003_000000.txt" in capsys.readouterr().err
    assert main(arguments(folder, "whole", "--tracker", "trajectory", "network=x")) == 2
    assert "needs the points of every frame" in capsys.readouterr().err
    assert main(arguments(folder, "whole", "limits.car=3")) == 2
    assert "no class is named 'car'" in capsys.readouterr().err
    same = [part.replace("/tracks", "/whole") for part in arguments(folder, "whole")]
    assert main(same) == 2
    assert "holds what this command reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("birth_score=0.9",), "override 'birth_score=0.9': birth_score: no detection in {} has a score above 0.9"),
        (("birth_score=1.5",), "has a score above 1.5, so nothing would be tracked; the highest is 0.9"),
        (("--tracker", "kalman", "score_threshold=7"), "score_threshold: no detection in {} has a score at or above 7"),
    ],
)
def test_thresholds_above_all_scores_are_named(
    folder: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "whole", *more)) == 2
    assert message.format(folder / "whole") in capsys.readouterr().err
    assert not (folder / "tracks").exists()
    assert main(arguments(folder, "whole", "--tracker", "kalman", "score_threshold=0.9")) == 0
