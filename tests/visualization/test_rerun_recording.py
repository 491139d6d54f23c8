"""Recordings for the viewer of Rerun: what is read back from the file is what the frames hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_drive import FRAMES, ToyDrive, boxes

from pcdet_ext.cli.command import main
from pcdet_ext.structures import Detections
from pcdet_ext.visualization import Forecast, Layers, MapLayer, OccupancyLayer, Plan, Scene
from pcdet_ext.visualization.rerun_recording import write_recording


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("data:\n  name: ToyDrive\n  classes: [Car, Bike]\n")
    return path


def rows(path: Path, entity: str) -> dict[int, dict[str, Any]]:
    """The components of an entity by frame, read by Rerun's own reader; empty lists where it was cleared."""
    chunk = pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed: pip install 'pcdet_ext[rerun]'")
    found: dict[int, dict[str, Any]] = {}
    for part in chunk.RrdReader(path).stream().to_chunks():
        if part.entity_path != f"/world/{entity}":
            continue
        batch = part.to_record_batch()
        read = [name for name in batch.schema.names if name == "frame" or ":" in name]
        for row in batch.select(read).to_pylist():
            named = {name.split(":")[-1]: value for name, value in row.items() if value is not None}
            found.setdefault(row["frame"], {}).update(named)
    return found


def test_a_drive_is_recorded(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'pcdet_ext[rerun]'")
    out = tmp_path / "drive.rrd"
    assert main(["visualize", str(toy), "--frames", f"0:{FRAMES}", "--rrd", str(out)]) == 0
    points, truth, tracks = (rows(out, name) for name in ("points", "truth/boxes", "truth/tracks"))
    assert sorted(points) == sorted(truth) == list(range(FRAMES))
    for i in range(FRAMES):
        np.testing.assert_allclose(points[i]["positions"], ToyDrive()[i].points[:, :3], atol=1e-6)
        own = boxes(i)
        np.testing.assert_allclose(truth[i]["centers"], own[:, :3], atol=1e-5)
        np.testing.assert_allclose(np.array(truth[i]["half_sizes"]) * 2, own[:, 3:6], atol=1e-5)
        turned = np.array(truth[i]["quaternions"])
        np.testing.assert_allclose(2 * np.arctan2(turned[:, 2], turned[:, 3]), own[:, 6], atol=1e-6)
        assert truth[i]["labels"] == ["Car 7", "Bike 9"][: len(own)]
    (first, second) = tracks[1]["strips"]
    assert (len(first), len(second)) == (2, 2)
    assert "strips" not in tracks[0]  # cleared: nothing has a path in the first frame


def test_detections_and_layers_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'pcdet_ext[rerun]'")
    mask = np.zeros((1, 4, 8), bool)
    mask[0, 1, 2:5] = True
    labels = np.full((2, 3, 4), 17)
    labels[1, 2, 3] = 1
    layers = Layers(
        forecasts=[Forecast("Car", np.arange(8.0).reshape(2, 2, 2), np.array([0.75, 0.25]), 0.6)],
        map=MapLayer(mask, (-8, -2, 8, 2), ("road",)),
        occupancy=OccupancyLayer(labels, (-1, -2, -3), (0.5, 0.5, 1), ("road", "car")),
        plans=[Plan(np.array([[0.0, 0], [5, 1]]))],
    )
    found = Detections(boxes(0), np.array([0.9, 0.6]), np.array([0, 1]), ("Car", "Bike"))
    out = tmp_path / "a.rrd"
    write_recording([Scene(np.zeros((0, 3), np.float32), None, found, layers=layers)], out)
    assert rows(out, "found/boxes")[0]["labels"] == ["Car 0.90", "Bike 0.60"]
    (arrow,) = rows(out, "found/velocities")[0]["vectors"]  # that of the bike is not known
    np.testing.assert_allclose(arrow, [8, 0, 0], atol=1e-5)
    assert rows(out, "found/forecasts")[0]["labels"] == ["Car 0.75", "Car 0.25"]
    np.testing.assert_allclose(rows(out, "plans")[0]["strips"], [[[0, 0, 0], [5, 1, 0]]])
    np.testing.assert_allclose(rows(out, "occupancy")[0]["centers"], [[-0.25, -0.75, 0.5]])
    road = rows(out, "map")[0]
    np.testing.assert_allclose([*road["centers"][0], *road["half_sizes"][0]], [-1, -0.5, 0, 3, 0.5, 0])
    assert "positions" not in rows(out, "points")[0]


def test_without_the_package_the_extra_is_named(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["visualize", str(toy), "--frame", "0", "--rrd", str(tmp_path / "a.rrd")]) == 1
    assert "a recording needs rerun-sdk: pip install 'pcdet_ext[rerun]'" in capsys.readouterr().err
    assert not (tmp_path / "a.rrd").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rrd", "a.html"], "--rrd: a recording is an .rrd file, got a.html"),
        (["--rrd", "a.rrd", "--out", "a.png"], "--rrd: takes the place of --out and --style"),
    ],
)
def test_what_is_no_recording_is_refused(
    toy: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", str(toy), "--frame", "0", *arguments]) == 2
    assert message in capsys.readouterr().err
