"""Simulated data: the same for the same seed, boxes where the points are, occlusion as the beams see it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.cli.command import main
from pcdet_ext.data import kitti
from pcdet_ext.data.simulation import Actor, Made, Scene, SpinningLidar, cars, shapes, simulate_frame, simulate_kitti
from pcdet_ext.data.simulation.kitti import calibration, labels_of
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.ops import points_in_boxes

pytest.importorskip("open3d", exc_type=ImportError)

SMALL = SpinningLidar(beams=32, azimuths=600)
EXACT = SpinningLidar(beams=64, azimuths=1200, range_noise=0.0, dropout=0.0)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_seed_gives_the_same_frames_whatever_runs_beside(tmp_path: Path) -> None:
    simulate_kitti(tmp_path / "a", 3, seed=4, workers=1, sensor=SMALL)
    simulate_kitti(tmp_path / "b", 5, seed=4, workers=2, sensor=SMALL)
    simulate_kitti(tmp_path / "c", 3, seed=5, workers=1, sensor=SMALL)
    a, b, c = (files(tmp_path / name) for name in "abc")
    frames = [name for name in a if name.startswith("training")]
    assert len(frames) == 9
    assert all(a[name] == b[name] for name in frames)
    assert all(a[name] != c[name] for name in frames if "velodyne" in name)


def test_points_of_an_actor_lie_in_its_box() -> None:
    for index in range(3):
        scene, scan = simulate_frame(11, index, SMALL)
        assert len(scan.points) > 5000
        shift = np.array([0, 0, SMALL.height, 0, 0, 0, 0])
        for number, actor in enumerate(scene.actors):
            points = torch.from_numpy(scan.points[scan.actor == number, :3].astype(np.float64))
            box = torch.from_numpy((actor.box - shift)[None])
            grown = box.clone()
            grown[:, 3:6] += 6 * SMALL.range_noise
            assert (points_in_boxes(points, grown) == 0).float().mean() > 0.99 or len(points) == 0, actor.name


def test_labels_hold_points_and_give_the_boxes_back(tmp_path: Path) -> None:
    simulate_kitti(tmp_path, 3, seed=2, workers=1, sensor=SMALL)
    seen = 0
    for frame in kitti.find_frames(tmp_path, "all"):
        calib = kitti.Calibration.read(frame.calibration)
        labels = kitti.read_labels(frame.labels)
        boxes = kitti.labels_to_boxes(labels, calib)
        points = torch.from_numpy(kitti.read_points(frame.points)[:, :3].copy())
        grown = torch.from_numpy(boxes.boxes.copy())
        grown[:, 3:6] += 0.2
        held = torch.stack([(points_in_boxes(points, box[None]) == 0).sum() for box in grown]) if len(grown) else []
        assert all(n > 0 for n in held)
        seen += len(boxes)
        again = kitti.boxes_to_labels(boxes.boxes, boxes.names, calib)
        real = labels.objects()
        np.testing.assert_allclose(again.location, real.location, atol=2e-3)
        np.testing.assert_allclose(again.bbox, real.bbox, atol=0.5)
    assert seen > 3


def car_at(x: float, y: float, heading: float = 0.0) -> Actor:
    mesh = cars.car("sedan", 4.0, 1.7, 1.5).moved(x, y, 0.0, heading)
    return Actor("Car", np.array([x, y, 0.75, 4.0, 1.7, 1.5, heading]), mesh)


def floor() -> Mesh:
    corners = np.array([[-90, -90, 0], [90, -90, 0], [90, 90, 0], [-90, 90, 0]], np.float32)
    return Mesh.of(corners, [(0, 1, 2), (0, 2, 3)], Material.ASPHALT)


def labels_for(actors: list[Actor], *walls: Mesh) -> kitti.Labels:
    scene = Scene(shapes.join([floor(), *walls]), tuple(actors))
    scan = EXACT.scan(scene, np.random.default_rng(0))
    return labels_of(scene, scan, EXACT, calibration())


def wall(x: float, y: float, width: float, height: float = 4.0) -> Mesh:
    return shapes.block(0.2, width, height, Material.WALL).moved(x, y, 0)


def test_a_car_in_the_open_is_fully_visible() -> None:
    labels = labels_for([car_at(15, 0)])
    assert labels.names == ("Car",)
    assert labels.occlusion.tolist() == [0]
    assert labels.truncation.tolist() == [0]
    box = kitti.labels_to_boxes(labels, calibration()).boxes[0]
    np.testing.assert_allclose(box, [15, 0, 0.75 - EXACT.height, 4.09, 1.79, 1.5, 0], atol=1e-3)


def test_a_wall_hides_a_car_or_half_of_it() -> None:
    hidden = labels_for([car_at(20, 0)], wall(10, 0, 8))
    assert hidden.names == (kitti.DONT_CARE,)
    half = labels_for([car_at(20, 0, np.pi / 2)], wall(10, -2.0, 4))
    assert half.names == ("Car",)
    assert half.occlusion.tolist()[0] in (1, 2)


def test_dont_care_comes_last_as_in_kitti() -> None:
    labels = labels_for([car_at(20, 0), car_at(30, 14)], wall(10, 0, 8))
    assert labels.names == ("Car", kitti.DONT_CARE)
    np.testing.assert_allclose(kitti.labels_to_boxes(labels, calibration()).boxes[0, :2], [30, 14], atol=1e-3)
    assert labels.rotation_y[1] == -10


def test_what_the_camera_does_not_see_has_no_label() -> None:
    assert len(labels_for([car_at(-15, 0), car_at(3, 20)])) == 0
    cut = labels_for([car_at(8, 7.4)])
    assert 0.05 < cut.truncation[0] < 0.9
    assert cut.bbox[0, 0] == 0  # the left border of the image


def test_range_noise_and_dropout_are_what_was_asked_for() -> None:
    around = shapes.join([wall(10, 0, 60, 20), wall(-10, 0, 60, 20)])
    scene = Scene(around, ())
    exact = EXACT.scan(scene, np.random.default_rng(1)).points
    np.testing.assert_allclose(np.abs(exact[:, 0]), 9.9, atol=1e-3)
    noisy = SpinningLidar(beams=64, azimuths=1200, range_noise=0.05, dropout=0.0).scan(scene, np.random.default_rng(1))
    ahead = noisy.points[np.abs(noisy.points[:, 1]) < 1]
    assert np.std(np.abs(ahead[:, 0])) == pytest.approx(0.05, rel=0.15)
    lossy = SpinningLidar(beams=64, azimuths=1200, range_noise=0.0, dropout=0.3).scan(scene, np.random.default_rng(1))
    assert len(lossy.points) / len(exact) == pytest.approx(0.7, abs=0.02)


def test_beams_descend_and_stay_in_range() -> None:
    angles = SpinningLidar().elevations()
    assert len(angles) == 64
    assert (np.diff(angles) < 0).all()
    assert angles[0] == 2.4
    assert angles[-1] == -23.6


@pytest.mark.parametrize("profile", sorted(cars.PROFILES))
def test_vehicles_have_exactly_their_size(profile: str) -> None:
    for mesh, size in (
        (cars.car(profile, 4.2, 1.8, 1.6), (4.2, 1.8, 1.6)),
        (shapes.truck(9, 2.5, 3.2), (9, 2.5, 3.2)),
    ):
        np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), size, rtol=1e-5)
        assert mesh.vertices[:, 2].min() == pytest.approx(0, abs=1e-6)


def test_an_interrupted_run_is_completed_and_a_finished_one_left(tmp_path: Path) -> None:
    simulate_kitti(tmp_path, 2, seed=3, workers=1, sensor=SMALL)
    whole = files(tmp_path)
    (tmp_path / "simulation.json").rename(tmp_path / "simulation.started.json")
    (tmp_path / "training/velodyne/000001.bin").unlink()
    with pytest.raises(FileExistsError, match="holds another simulation"):
        simulate_kitti(tmp_path, 1, seed=3, workers=1, sensor=SMALL)
    simulate_kitti(tmp_path, 2, seed=3, workers=1, sensor=SMALL)
    assert files(tmp_path) == whole
    stamp = (tmp_path / "training/velodyne/000001.bin").stat().st_mtime_ns
    simulate_kitti(tmp_path, 2, seed=3, workers=1, sensor=SMALL)
    assert (tmp_path / "training/velodyne/000001.bin").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="holds another simulation"):
        simulate_kitti(tmp_path, 2, seed=4, workers=1, sensor=SMALL)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", ["cut", "gone", "list"])
def test_what_is_cut_or_gone_is_made_again(tmp_path: Path, finished: bool, damage: str) -> None:
    request = {"frames": 2, "seed": 3, "workers": 1, "sensor": SMALL}
    simulate_kitti(tmp_path, **request)
    whole = files(tmp_path)
    if not finished:
        (tmp_path / "simulation.json").rename(tmp_path / "simulation.started.json")
    file = tmp_path / ("ImageSets/val.txt" if damage == "list" else "training/velodyne/000001.bin")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-160])
    else:
        file.unlink()
    made: list[int] = []

    def watch(pieces: Iterator[Made]) -> Iterator[Made]:
        for piece in pieces:
            made.append(piece.scans)
            yield piece

    simulate_kitti(tmp_path, progress=watch, **request)
    assert sum(made) == (damage != "list")
    assert files(tmp_path) == whole
    made.clear()
    simulate_kitti(tmp_path, progress=watch, **request)
    assert made == []


def test_an_interruption_while_the_list_is_written_costs_one_frame(tmp_path: Path) -> None:
    simulate_kitti(tmp_path, 2, seed=3, workers=1, sensor=SMALL)
    whole = files(tmp_path)
    (tmp_path / "simulation.json").rename(tmp_path / "simulation.started.json")
    written = tmp_path / "simulation.files.jsonl"
    written.write_text(written.read_text()[:-100])
    simulate_kitti(tmp_path, 2, seed=3, workers=1, sensor=SMALL)
    assert files(tmp_path) == whole


def test_ctrl_c_while_the_processes_begin_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pcdet_ext", "simulate", "--frames", "500", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:  # Python's own tracker of resources is the first of them
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    bar, _, line = output.decode().strip().rpartition("\n")
    assert line == "pcdet simulate: interrupted"
    assert "\n" not in bar
    assert not list((tmp_path / "out").rglob(".*"))


def test_recordings_in_the_same_layout_are_never_written_over(tmp_path: Path) -> None:
    for name in ("training/velodyne/000000.bin", "training/label_2/000000.txt", "ImageSets/train.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("recorded")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="no simulation of ours"):
        simulate_kitti(tmp_path, 1, workers=1, sensor=SMALL)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "0"], "frames and workers must be positive"),
        (["--frames", "1"], "not empty and no simulation of ours"),
    ],
)
def test_the_tool_names_what_is_wrong(root: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "holiday.jpg").write_text("mine")
    command = [sys.executable, str(root / "tools/simulate_data.py"), *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == {"holiday.jpg": b"mine"}


@pytest.mark.parametrize(
    ("layout", "frames"),
    [
        ("kitti --frames 2", 2),
        ("nuscenes --scenes 1 --frames 2", 11),
        ("waymo --scenes 1 --frames 2 --side-beams 4", 2),
    ],
)
def test_the_command_says_how_fast_it_was(
    layout: str, frames: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"simulate --format {layout} --beams 8 --azimuths 60 --workers 1 --out {tmp_path / 'out'}"
    assert main(options.split()) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        rf"{frames} frames in .* frames/s with 1 processes; ray-casting took \d+ ms of processor time", last
    )
