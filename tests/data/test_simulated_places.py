"""Simulated runs for place recognition: one street, seen again in other lanes, seasons and traffic, and from above."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pcdet_ext.cli.command import main
from pcdet_ext.data.places import Frame, PlaceFrames, read_frames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation import AerialLidar, EvenLidar, simulate_places
from pcdet_ext.data.simulation.revisits import Passage, Street

open3d = pytest.importorskip("open3d", exc_type=ImportError)

GROUND, AERIAL = (
    EvenLidar(beams=24, azimuths=180, range_noise=0.0),
    AerialLidar(beams=32, azimuths=120, range_noise=0.0),
)
FRAMES, RUNS = 4, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("places")
    return simulate_places(out, 2, FRAMES, RUNS, 5, 0.5, workers=1, sensor=GROUND, aerial=AERIAL)


def in_world(root: Path, frame: Frame) -> np.ndarray:
    points = np.fromfile(root / frame.cloud, np.float32).reshape(-1, 4)[:, :3].astype(np.float64)
    pose = frame.pose()
    return points @ pose[:3, :3].T + pose[:3, 3]


def test_runs_of_a_street_stay_in_one_split(made: Path) -> None:
    frames = read_frames(made)
    assert len(frames) == 2 * FRAMES * RUNS
    streets = {split: {f.run.split("/")[0] for f in frames if f.split == split} for split in ("train", "val")}
    assert len(streets["train"]) == len(streets["val"]) == 1
    assert streets["train"] != streets["val"]
    summaries = prepare(PlaceFrames(made), progress=False)
    assert [s.frames for s in summaries] == [FRAMES * RUNS] * 2


def test_runs_go_there_and_back_in_two_seasons_and_above(made: Path) -> None:
    runs = {f.run.split("/")[1]: f for f in read_frames(made)}
    assert sorted(runs) == [
        "00_along_summer",
        "01_against_summer",
        "02_along_winter",
        "03_against_winter",
        "04_aerial_summer",
    ]
    there, back = runs["00_along_summer"].heading, runs["01_against_summer"].heading
    assert there is not None
    assert back is not None
    assert np.cos(there - back) < -0.9
    assert {f.view for f in runs.values()} == {"ground", "aerial"}


def test_runs_meet_the_same_buildings_and_ground(made: Path) -> None:
    """Points above eye level that are no plants are on what stands: most have a neighbour in another run."""
    frames = [f for f in read_frames(made) if f.run.startswith("street_000")]
    clouds = {f.run: in_world(made, f) for f in frames if f.cloud.endswith("0002.bin")}
    aerial = next(c for run, c in clouds.items() if "aerial" in run)
    tree = cKDTree(aerial)
    for run, cloud in clouds.items():
        near = cloud[np.hypot(*(cloud[:, :2] - aerial[:, :2].mean(0)).T) < 15]
        distance = tree.query(near)[0]
        assert np.median(distance) < 0.7, run  # circles of an aerial turn are 1.6 m apart


def test_streets_stay_and_plants_and_traffic_change() -> None:
    street = Street(0, 0, 100.0)
    again = Street(0, 0, 100.0)
    for a, b in zip(street.permanent.static, again.permanent.static, strict=True):
        np.testing.assert_array_equal(a.vertices, b.vertices)
    assert street.plants == again.plants
    assert street.plants
    for plant in street.plants:
        assert len(plant.mesh("winter").triangles) < len(plant.mesh("summer").triangles)
    first, second = (Passage(street, street.plan(number), 2, GROUND, AERIAL) for number in (0, 1))  # both in summer
    assert [v.radius for v in first.world.bodies] != [v.radius for v in second.world.bodies]  # other vehicles drive
    assert len(first.world.standing.material) != len(second.world.standing.material)  # and others are parked


def test_the_same_seed_gives_the_same_runs(made: Path, tmp_path: Path) -> None:
    simulate_places(tmp_path, 2, FRAMES, RUNS, 5, 0.5, workers=1, sensor=GROUND, aerial=AERIAL)
    assert (tmp_path / "frames.csv").read_bytes() == (made / "frames.csv").read_bytes()
    for frame in read_frames(made)[::7]:
        assert (tmp_path / frame.cloud).read_bytes() == (made / frame.cloud).read_bytes()


def test_aerial_clouds_see_roofs_and_not_walls_alone(made: Path) -> None:
    frame = next(f for f in read_frames(made) if f.view == "aerial")
    cloud = np.fromfile(made / frame.cloud, np.float32).reshape(-1, 4)
    assert np.abs(np.median(cloud[:, 2]) + GROUND.height) < 1.0  # the ground is where a car's sensor sees it
    assert np.hypot(cloud[:, 0], cloud[:, 1]).max() < AERIAL.radius + 5


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "places")
    small = ["--beams", "8", "--azimuths", "30", "--workers", "1"]
    command = ["simulate", "--format", "places", "--out", out, "--scenes", "1", "--frames", "2", "--runs", "2", *small]
    assert main(command) == 0
    assert main(["simulate", "--format", "kitti", "--out", out, "--frames", "2", "--runs", "2"]) == 2
    assert "--runs is for places, not for kitti" in capsys.readouterr().err
    assert main(["simulate", "--format", "places", "--out", out, "--frames", "2", "--runs", "1"]) == 2
    assert "runs must lie in [2, 100]" in capsys.readouterr().err
    assert main(["prepare", "places", "--root", out, "--splits", "train", "--quiet"]) == 0
    assert "train: 2 runs (street_000/00_along_summer 2, street_000/01_against_summer 2)" in capsys.readouterr().out
