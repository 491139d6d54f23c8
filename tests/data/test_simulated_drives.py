"""Drives: things keep apart and keep their sizes; the nuScenes layout holds what was simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pcdet_ext.data.simulation import Drive, EvenLidar, drive, simulate_nuscenes
from pcdet_ext.data.simulation.labelling import count_points
from pcdet_ext.ops import iou_bev, points_in_boxes

open3d = pytest.importorskip("open3d", exc_type=ImportError)

SMALL = EvenLidar(beams=16, azimuths=300)
EXACT = EvenLidar(beams=16, azimuths=300, range_noise=0.0)
DRIVEN = ("Car", "Van", "Truck", "Bus", "Trailer", "Motorcycle", "Cyclist", "Excavator")
Table = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def drives() -> list[Drive]:
    return [drive(np.random.default_rng([7, index]), 9.0) for index in range(3)]


def test_vehicles_never_run_into_each_other(drives: list[Drive]) -> None:
    for street in drives:
        driven = [i for i, t in enumerate(street.tracks) if t.name in DRIVEN]
        for time in np.arange(0, 9, 0.5):
            boxes = street.boxes(time)[driven]
            ego = street.ego_pose(time)
            own = [*ego[:3, 3], 4.6, 1.9, 1.6, np.arctan2(ego[1, 0], ego[0, 0])]
            there = torch.from_numpy(np.vstack([own, boxes[np.isfinite(boxes).all(1)]])).float()
            overlap = iou_bev(there, there).fill_diagonal_(0)
            assert overlap.max() < 0.02, time


def test_vehicles_move_where_they_head(drives: list[Drive]) -> None:
    moved = 0
    for street in drives:
        for time in (1.0, 4.0, 8.0):
            places, velocities = street.places(time), street.velocities(time)
            for number, track in enumerate(street.tracks):
                speed = np.hypot(*velocities[number, :2])
                if speed > 1:
                    ahead = [np.cos(places[number, 3]), np.sin(places[number, 3])]
                    assert velocities[number, :2] @ ahead > 0.97 * speed, track.name
                    moved += 1
    assert moved > 50


def test_a_drive_has_traffic_that_stops_and_goes_and_turns(drives: list[Drive]) -> None:
    more = [*drives, *(drive(np.random.default_rng([8, index]), 9.0) for index in range(3))]
    names = {t.name for street in more for t in street.tracks}
    assert names == {*DRIVEN, "Pedestrian", "Barrier", "Cone", "Sign"}
    speeds = [
        street.velocities(time)[i, :2] for street in more for time in (0, 4, 8) for i in range(len(street.tracks))
    ]
    fast = np.hypot(*np.array(speeds).T)
    assert fast.max() < 14
    headings = [t.places[np.isfinite(t.places[:, 3]), 3] for street in more for t in street.tracks]
    assert max(np.ptp(h) for h in headings if len(h)) > 0.9  # somebody turns at a crossing: no street bends as much
    steps = [np.hypot(*np.diff(t.places[:, :2], axis=0).T) for street in more for t in street.tracks]
    moved = [step[np.isfinite(step)] for step in steps if np.isfinite(step).any()]
    stopped = [step for step in moved if step.min() < 0.01 and step.max() > 0.6]  # faster than anybody walks
    assert stopped


def test_the_ego_vehicle_stands_on_the_ground(drives: list[Drive]) -> None:
    for street in drives:
        for time in np.arange(0, 9, 1.5):
            pose = street.ego_pose(time)
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
            assert pose[2, 3] == pytest.approx(float(street.ground.height(*pose[:2, 3])), abs=0.02)
            assert pose[2, 2] > 0.998


def test_counted_points_are_those_of_the_operation() -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [np.arange(6) * 8.0, rng.normal(0, 3, (6, 2)), rng.uniform(1, 5, (6, 3)), rng.uniform(-4, 4, 6)]
    )
    points = rng.uniform([-4, -8, -5], [46, 8, 5], (4000, 3))
    owner = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes)).numpy()
    missing = np.vstack([boxes, np.full(7, np.nan)])
    assert count_points(points, missing).tolist() == [*np.bincount(owner[owner >= 0], minlength=6), 0]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nuscenes")
    return simulate_nuscenes(out, scenes=2, frames=2, seed=3, val_fraction=0.5, workers=1, sensor=EXACT)


def table(root: Path, name: str) -> Table:
    rows = json.loads((root / "v1.0-mini" / f"{name}.json").read_text())
    assert len({row["token"] for row in rows}) == len(rows)
    return {row["token"]: row for row in rows}


def test_every_token_leads_to_a_row(released: Path) -> None:
    names = ["attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"]
    names += ["sample_annotation", "sample_data", "scene", "sensor", "visibility"]
    tables = {name: table(released, name) for name in names}
    assert (len(tables["category"]), len(tables["attribute"]), len(tables["visibility"])) == (23, 8, 4)
    assert (len(tables["scene"]), len(tables["sample"]), len(tables["sample_data"])) == (2, 4, 22)
    followed = 0
    for name, rows in tables.items():
        for row in rows.values():
            for key, value in row.items():
                target = key.removesuffix("_token").removesuffix("_tokens")
                target = {"prev": name, "next": name}.get(key, target)
                for prefix, what in (("first_", None), ("last_", None)):
                    target = target.removeprefix(prefix) if what is None else what
                target = "sample_annotation" if target == "annotation" else target
                if target == key or target not in tables:
                    continue
                for one in [value] if isinstance(value, str) else value:
                    assert one in tables[target] or (key in ("prev", "next") and one == ""), (name, key)
                    followed += 1
    assert followed > 300


def test_chains_go_forward_and_back(released: Path) -> None:
    for name, time in (("sample", "timestamp"), ("sample_data", "timestamp")):
        rows = table(released, name)
        for row in rows.values():
            if row["next"]:
                assert rows[row["next"]]["prev"] == row["token"]
                assert rows[row["next"]][time] - row[time] == (500_000 if name == "sample" else 50_000)
    annotations = table(released, "sample_annotation")
    for instance in table(released, "instance").values():
        chain, current = [], instance["first_annotation_token"]
        while current:
            chain.append(annotations[current])
            current = chain[-1]["next"]
        assert len(chain) == instance["nbr_annotations"]
        assert chain[-1]["token"] == instance["last_annotation_token"]
        assert all(row["size"] == chain[0]["size"] for row in chain)
        assert chain[0]["num_lidar_pts"] > 0
        assert chain[-1]["num_lidar_pts"] > 0


def global_points(root: Path, data: dict[str, Any]) -> np.ndarray:
    """x, y, z in global coordinates, the other columns as they are."""
    points = np.fromfile(root / data["filename"], "<f4").reshape(-1, 5).astype(np.float64)
    for name in ("calibrated_sensor", "ego_pose"):
        row = table(root, name)[data[f"{name}_token"]]
        turn = Rotation.from_quat(row["rotation"], scalar_first=True)
        points[:, :3] = turn.apply(points[:, :3]) + row["translation"]
    return points


def test_points_in_boxes_are_counted(released: Path) -> None:
    keys = {d["sample_token"]: d for d in table(released, "sample_data").values() if d["is_key_frame"]}
    counted = 0
    for token, data in keys.items():
        points = global_points(released, data)
        rows = [a for a in table(released, "sample_annotation").values() if a["sample_token"] == token]
        for row in rows:
            turn = Rotation.from_quat(row["rotation"], scalar_first=True)
            local = turn.inv().apply(points[:, :3] - row["translation"])
            width, length, height = row["size"]
            inside = (np.abs(local) <= np.array([length, width, height]) / 2 + 1e-5).all(1).sum()
            assert abs(int(inside) - row["num_lidar_pts"]) <= 1
            counted += int(inside)
    assert counted > 500


@pytest.mark.parametrize("scene", [0, 1])
def test_points_of_all_scans_lie_on_one_street(released: Path, scene: int) -> None:
    """Every point, taken to the street by the poses in the tables, lies on a mesh of the drive at its time."""
    street = drive(np.random.default_rng([3, scene]), 0.5)
    own = list(table(released, "scene"))[scene]
    samples = {t for t, row in table(released, "sample").items() if row["scene_token"] == own}
    scans = [d for d in table(released, "sample_data").values() if d["sample_token"] in samples]
    scans.sort(key=lambda d: d["timestamp"])
    first = table(released, "ego_pose")[scans[0]["ego_pose_token"]]
    shift = np.array(first["translation"]) - street.ego_pose(0.0)[:3, 3]
    for step in (0, 3, 10):
        points = global_points(released, scans[step])
        distance = distance_to(street, step * 0.05, points[:, :3] - shift)
        assert len(points) > 2000
        assert np.quantile(distance, 0.99) < 2e-3
        assert distance.max() < 0.05  # Embree is less exact where a beam runs along a leaf
        assert set(np.unique(points[:, 4])) <= set(range(16))
        assert (points[:, 3] == np.round(points[:, 3])).all()
        assert points[:, 3].max() <= 255


def distance_to(street: Drive, time: float, points: np.ndarray) -> np.ndarray:
    """Metres from each point to the nearest surface."""
    world = open3d.t.geometry.RaycastingScene()
    placed = zip(street.tracks, street.places(time), strict=True)
    meshes = [track.mesh.moved(*place) for track, place in placed if np.isfinite(place).all()]
    for mesh in [street.static, *meshes]:
        world.add_triangles(open3d.core.Tensor(mesh.vertices), open3d.core.Tensor(mesh.triangles.astype(np.uint32)))
    return world.compute_distance(open3d.core.Tensor(points.astype(np.float32))).numpy()


def test_splits_are_the_official_ones_while_they_suffice(released: Path, tmp_path: Path) -> None:
    assert (released / "splits/train.txt").read_text() == "scene-0061\n"
    assert (released / "splits/val.txt").read_text() == "scene-0103\n"
    simulate_nuscenes(tmp_path, 4, 1, val_fraction=0.75, workers=1, sensor=EvenLidar(beams=4, azimuths=40))
    names = [(tmp_path / f"splits/{split}.txt").read_text().split() for split in ("train", "val")]
    assert sorted(names[0] + names[1]) == ["sim-0000", "sim-0001", "sim-0002", "sim-0003"]
    assert json.loads((tmp_path / "v1.0-mini/splits.json").read_text()) == {"train": names[0], "val": names[1]}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_scenes_are_the_same_for_any_number_of_workers_and_after_an_interruption(tmp_path: Path) -> None:
    request = {"scenes": 2, "frames": 2, "seed": 5, "sensor": SMALL}
    simulate_nuscenes(tmp_path / "a", workers=1, **request)
    simulate_nuscenes(tmp_path / "b", workers=2, **request)
    whole = files(tmp_path / "a")
    assert files(tmp_path / "b") == whole
    (tmp_path / "a/simulation.json").rename(tmp_path / "a/simulation.started.json")
    next((tmp_path / "a/sweeps/LIDAR_TOP").iterdir()).unlink()
    simulate_nuscenes(tmp_path / "a", workers=1, **request)
    assert files(tmp_path / "a") == whole
    lost = tmp_path / "a/v1.0-mini/sample.json"
    lost.write_bytes(lost.read_bytes()[:-20])  # in a finished folder
    simulate_nuscenes(tmp_path / "a", workers=1, **request)
    assert files(tmp_path / "a") == whole
    with pytest.raises(FileExistsError, match="holds another simulation"):
        simulate_nuscenes(tmp_path / "a", workers=1, **(request | {"seed": 6}))


@pytest.mark.parametrize(("scenes", "fraction", "held_out"), [(2, 0.2, 1), (1, 0.2, 0), (3, 0.0, 0), (10, 0.25, 2)])
def test_one_scene_at_least_is_held_out_where_there_are_two(
    tmp_path: Path, scenes: int, fraction: float, held_out: int
) -> None:
    sensor = EvenLidar(beams=2, azimuths=20)
    simulate_nuscenes(tmp_path, scenes, 1, val_fraction=fraction, workers=1, sensor=sensor)
    assert len((tmp_path / "splits" / "val.txt").read_text().split()) == held_out
