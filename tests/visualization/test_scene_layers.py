"""What heads and labels tell beside boxes, in pictures: maps, occupied cells, predicted and planned paths, tracks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from page_reader import read_page
from PIL import Image
from toy_drive import FRAMES, ToyDrive, boxes

from pcdet_ext.cli.command import main
from pcdet_ext.scenes import EgoPlan, Forecasts, MapLayers, OccupancyGrid, PlannedPath
from pcdet_ext.structures import Detections, PointLabels, Predictions, Targets
from pcdet_ext.visualization import Forecast, Layers, MapLayer, OccupancyLayer, Plan, Scene, draw_bev
from pcdet_ext.visualization.animation import write_animation
from pcdet_ext.visualization.frames import frame_scenes
from pcdet_ext.visualization.layers import FORECAST_COLOUR, PLAN_COLOUR
from pcdet_ext.visualization.levels import POINT_COLOURS
from pcdet_ext.visualization.seen import labelled_layers, seen, with_seen

NOTHING = np.zeros((0, 3), np.float32)


def predictions() -> Predictions:
    """What five heads found of one frame: a car at (10, 4), which goes ahead or turns."""
    found = Detections(torch.tensor([[10.0, 4, 0, 4, 2, 1.5, 0]]), torch.tensor([0.8]), torch.tensor([0]), ("Car",))
    paths = torch.tensor([[[[12.0, 4], [14, 4]], [[12, 5], [13, 7]]]])
    probabilities = torch.zeros(1, 4, 8)
    probabilities[0, 3, 7] = 0.9
    labels = torch.full((4, 4, 2), 1, dtype=torch.uint8)
    labels[0, 3, 1] = 0
    return Predictions(
        {
            "boxes": found,
            "motion": Forecasts(paths, torch.log(torch.tensor([[3.0, 1.0]])), "boxes"),
            "map": MapLayers(probabilities, ("road",), (-4.0, 4.0, 1.0), (-2.0, 2.0, 1.0)),
            "occupancy": OccupancyGrid(labels, ("car", "free"), (-40.0, 40.0, 20.0), (-40.0, 40.0, 20.0)),
            "plan": PlannedPath(torch.tensor([[2.0, 0], [4, 1]])),
        }
    )


def test_what_all_heads_found_is_shown() -> None:
    found = seen(predictions())
    assert found.boxes.names == ["Car"]
    (forecast,) = found.layers.forecasts
    assert (forecast.name, round(forecast.score, 3)) == ("Car", 0.8)
    np.testing.assert_allclose(forecast.paths[1], [[10, 4], [12, 5], [13, 7]])  # from where the car is
    np.testing.assert_allclose(forecast.probabilities, [0.75, 0.25])
    assert found.layers.map.extent == (-4, -2, 4, 2)
    assert np.argwhere(found.layers.map.masks).tolist() == [[0, 3, 7]]
    grid = found.layers.occupancy
    assert (grid.low, grid.class_names) == ((-40, -40, -1), ("car",))
    np.testing.assert_allclose(grid.cell, (20, 20, 3.2))
    assert grid.cells().tolist() == [[0, 3, 1, 0]]
    np.testing.assert_allclose(found.layers.plans[0].path, [[0, 0], [2, 0], [4, 1]])
    drawn = with_seen(Scene(NOTHING), found)
    assert len(drawn.above(0.7).layers.forecasts) == 1
    assert len(drawn.above(0.9).layers.forecasts) == 0


def test_one_head_alone_is_shown() -> None:
    assert seen(PlannedPath(np.ones((2, 2)))).layers.plans[0].found
    labels = PointLabels(np.zeros(3, int), np.ones(3), ("road",))
    assert seen(labels).labels is not None
    assert seen(labels).boxes is None
    with pytest.raises(ValueError, match="the boxes of the head 'boxes', which found none"):
        seen(Forecasts(np.zeros((1, 2, 3, 2)), np.zeros((1, 2)), "boxes"))


def test_forecasts_are_of_the_head_that_they_name() -> None:
    """Two heads find as many boxes; with another number of boxes left, the forecasts belong to nothing."""
    given = predictions()
    other = Detections(torch.tensor([[-7.0, 1, 0, 1, 1, 2, 0]]), torch.tensor([0.3]), torch.tensor([0]), ("Walker",))
    both = Predictions({"walkers": other, **given.heads})
    (forecast,) = seen(both).layers.forecasts
    assert (forecast.name, forecast.paths[0, 0].tolist()) == ("Car", [10, 4])
    kept = both.above(0.5)
    assert [len(kept[name]) for name in ("walkers", "boxes", "motion")] == [0, 1, 1]
    assert [len(both.above(0.9)[name]) for name in ("boxes", "motion")] == [0, 0]
    assert both.above(0.9)["plan"] is both["plan"]
    with pytest.raises(ValueError, match="1 forecasts for the 0 boxes of the head 'boxes'"):
        seen(Predictions({**both.heads, "boxes": given["boxes"].above(0.9)}))


def test_what_is_labelled_is_shown_beside_what_was_found() -> None:
    targets = Targets(
        boxes=np.array([[10.0, 4, 0, 4, 2, 1.5, 0], [20, 4, 0, 4, 2, 1.5, 0]]),
        labels=np.array([0, 0]),
        class_names=("Car",),
        futures=np.array([[[1.0, 0], [1, 1], [9, 9]], [[5.0, 5]] * 3]),
        future_mask=np.array([[1, 1, 0], [0, 1, 1]]),
        occupancy=np.where(np.arange(32).reshape(4, 4, 2) == 5, 4, 17),
        map_masks=np.ones((6, 2, 2), np.uint8),
        plan=EgoPlan(np.array([[1.0, 0], [2, 1], [7, 7]]), np.array([True, True, False]), np.zeros(10)),
    )
    layers = labelled_layers(targets, Layers())
    (forecast,) = layers.forecasts  # of the second object not even the first step is known
    assert forecast.score is None
    np.testing.assert_allclose(forecast.paths, [[[10, 4], [11, 4], [12, 5]]])
    (plan,) = layers.plans
    assert not plan.found
    np.testing.assert_allclose(plan.path, [[0, 0], [1, 0], [3, 1]])
    assert layers.occupancy.cells().tolist() == [[0, 2, 1, 4]]
    assert layers.occupancy.class_names[4] == "car"
    np.testing.assert_allclose(layers.occupancy.cell, (20, 20, 3.2))
    assert (layers.map.class_names[0], layers.map.extent) == ("drivable_area", (-50, -50, 50, 50))
    scopes = (-10.0, 10.0, 5.0), (-20.0, 20.0, 10.0)
    placed = labelled_layers(targets.replace(map_grid=scopes, occupancy_grid=scopes), Layers())
    assert placed.map.extent == (-10, -20, 10, 20)
    assert placed.occupancy.low == (-10, -20, -1)
    np.testing.assert_allclose(placed.occupancy.cell, (5, 10, 3.2))
    both = labelled_layers(targets, seen(predictions()).layers)
    assert both.occupancy.class_names == ("car",)  # found ones hide labelled ones
    assert both.map.class_names == ("road",)
    assert [plan.found for plan in both.plans] == [False, True]


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def near(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(row, column) of pixels of about a colour, outside of the legend."""
    rows, columns = np.nonzero(np.abs(picture[..., :3].astype(int) - colour).max(-1) < 12)
    shown = (columns < 0.75 * picture.shape[1]) | (rows > 0.5 * picture.shape[0])
    return np.stack([rows[shown], columns[shown]], 1)


def test_the_map_from_above_shows_layers_where_they_are(tmp_path: Path) -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks[0, 0, 0] = True  # the lowest x and y: the lower left corner
    labels = np.full((2, 2, 1), 17)
    labels[0, 1, 0] = 1  # the lowest x and the highest y: the upper left corner
    layers = Layers(
        forecasts=[Forecast("Car", np.array([[[0.0, -8], [8, -8]]]), None, 0.9)],
        map=MapLayer(masks, (-10, -10, 10, 10), ("road",)),
        occupancy=OccupancyLayer(labels, (-2, 6, -1), (1, 1, 1), ("a", "b")),
        plans=[Plan(np.array([[0.0, 0], [8, 0]]))],
    )
    draw_bev(Scene(np.zeros((1, 3), np.float32), layers=layers), tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    height, width = picture.shape[:2]
    blend = 0.55 * rgb("#10141a")
    road = near(picture, blend + 0.45 * rgb(POINT_COLOURS[0])).mean(0)
    cell = near(picture, blend + 0.45 * rgb(POINT_COLOURS[1])).mean(0)
    forecast, plan = (near(picture, rgb(colour)).mean(0) for colour in (FORECAST_COLOUR, PLAN_COLOUR))
    assert road[0] > 0.8 * height
    assert road[1] < 0.2 * width
    assert cell[0] < 0.25 * height
    assert plan[0] == pytest.approx(height / 2, abs=0.06 * height)
    assert plan[1] > 0.6 * width
    assert forecast[0] > plan[0] + 0.3 * height


def test_an_animation_shows_every_frame(tmp_path: Path) -> None:
    write_animation(frame_scenes(ToyDrive(), range(3), "val", before=10, after=0), tmp_path / "a.gif", 120)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.format, animation.n_frames, animation.info["loop"]) == ("GIF", 3, 0)
        frames = []
        for i in range(3):
            animation.seek(i)
            assert animation.info["duration"] == 120
            frames.append(np.asarray(animation.convert("RGB")))
    assert frames[0].shape == frames[1].shape == frames[2].shape
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    with pytest.raises(ValueError, match="at least one frame"):
        write_animation(iter(()), tmp_path / "b.gif")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("data:\n  name: ToyDrive\n  classes: [Car, Bike]\n")
    return path


def write_results(path: Path, track: int, shift: float) -> Path:
    moved = [boxes(i)[0] + np.array([shift, *[0] * 8]) for i in range(2)]
    path.write_text(json.dumps({f"a00{i}c": [[track, 0.9, *moved[i].tolist()]] for i in range(2)}))
    return path


def test_tracks_are_drawn_with_and_without_other_results(toy: Path, tmp_path: Path) -> None:
    tracks = write_results(tmp_path / "tracks.json", 31, 0.0)
    results = write_results(tmp_path / "results.json", -1, 1.0)
    page = tmp_path / "a.html"
    command = ["visualize", str(toy), "--frames", f"0:{FRAMES}", "--tracks", str(tracks), "--out"]
    assert main([*command, str(page)]) == 0
    data = read_page(page)[0]
    first, second = data["frames"][:2]
    assert [(t["id"], len(t["path"])) for t in second["tracks"] if t["found"]] == [(31, 2)]
    assert [t for t in first["tracks"] if t["found"]] == []
    assert [box[13] for box in second["boxes"] if box[11]] == [31]  # what is tracked is what was found
    assert main([*command, str(page), "--results", str(results)]) == 0
    second = read_page(page)[0]["frames"][1]
    (box,) = [box for box in second["boxes"] if box[11]]
    assert (round(box[0] - float(boxes(1)[0, 0]), 2), box[13]) == (1.0, -1)
    assert [t["id"] for t in second["tracks"] if t["found"]] == [31]
    assert main([*command, str(tmp_path / "a.gif")]) == 0
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == FRAMES


def test_results_without_track_ids_are_no_tracks() -> None:
    found = {"a000c": Detections(boxes(0), np.ones(2), np.zeros(2, int), ("Car",))}
    with pytest.raises(ValueError, match="frame a000c: its tracks have no track ids; `pcdet track` writes"):
        list(frame_scenes(ToyDrive(), [0], "val", tracks=found))


def test_tracks_of_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", "a.bin", "--tracks", "t.json", "--out", str(tmp_path / "a.html")]) == 2
    assert "--tracks: is for frames of a data set" in capsys.readouterr().err
