"""The picture page in a real browser: boxes are where they should be, and switches do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import NO_BROWSER, Browser, browser, find_browser
from toy_drive import FRAMES, ToyDrive

from pcdet_ext.structures import Detections, Targets
from pcdet_ext.visualization import Forecast, Layers, MapLayer, OccupancyLayer, Plan, Scene, write_page
from pcdet_ext.visualization.frames import frame_scenes
from pcdet_ext.visualization.layers import FORECAST_COLOUR, PLAN_COLOUR
from pcdet_ext.visualization.levels import POINT_COLOURS
from pcdet_ext.visualization.page import COLOURS
from pcdet_ext.visualization.scene import box_corners

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NO_BROWSER)
WIDE, SMALL = (1400, 900), (800, 600)
# Two cars, of which one is found, and a detection where nothing is.
TRUTH = np.array([[14.0, 5, -1, 4, 2, 1.5, 0.4], [22, -7, -1, 4.4, 1.8, 1.6, -0.8]], np.float32)
FOUND = np.array([[14.2, 5.1, -1, 4, 2, 1.5, 0.4], [12, -6, -1, 4.2, 1.9, 1.6, 2.0]], np.float32)
SCORES = np.array([0.9, 0.5], np.float32)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(str(PROGRAM), tmp_path_factory.mktemp("profile")) as running:
        yield running


def scene() -> Scene:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(0, 40, 300), rng.uniform(-20, 20, 300), rng.normal(-1.7, 0.02, 300)])
    points[:2] = TRUTH[:, :3]
    points = np.column_stack([points, rng.random(300)]).astype(np.float32)
    found = Detections(FOUND, SCORES, np.array([0, 0]), ("Car",))
    truth = Targets.of_names(TRUTH, ("Car", "Car"))
    return Scene(points, truth, found, "<b>one</b>", ("x", "y", "z", "intensity"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "scene.html"
    write_page(scene(), path)
    return path


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def near(picture: np.ndarray, colour: str, tolerance: int = 24) -> np.ndarray:
    """bool [height, width]: where a picture has about this colour."""
    return (np.abs(picture.astype(int) - rgb(colour)) <= tolerance).all(-1)


def pixels_of(tab: Browser, places: np.ndarray) -> np.ndarray:
    """Columns and rows [N, 2] of places [N, 3], by a camera that looks at a target (a plain look-at, in float64)."""
    camera = tab.run("viewer.camera")
    width, height = tab.run("[viewer.canvas.clientWidth, viewer.canvas.clientHeight]")
    target, azimuth, elevation = np.array(camera["target"]), camera["azimuth"], camera["elevation"]
    back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    local = (places - target - camera["distance"] * back) @ np.stack([right, np.cross(back, right), -back], 1)
    focal = height / 2 / np.tan(np.pi / 8)
    return np.stack([width / 2 + focal * local[:, 0] / local[:, 2], height / 2 - focal * local[:, 1] / local[:, 2]], 1)


def reached(mask: np.ndarray, places: np.ndarray) -> list[bool]:
    """Whether there is a pixel of a mask within three pixels of each place."""
    rows, columns = np.nonzero(mask)
    away = np.hypot(columns[None] - places[:, :1], rows[None] - places[:, 1:])
    return [bool(row.min(initial=np.inf) < 3) for row in away]


@pytest.mark.parametrize("view", ["bird's eye", "behind the car", "from the left"])
def test_boxes_are_where_boxes_are(tab: Browser, page: Path, view: str) -> None:
    tab.open(page, WIDE, f"view={view}&without=rings,labels")
    picture = tab.picture()[: tab.run("viewer.canvas.clientHeight"), : tab.run("viewer.canvas.clientWidth")]
    for box, name in [(FOUND[0], "matched"), (FOUND[1], "false"), (TRUTH[1], "missed")]:
        corners = pixels_of(tab, box_corners(box[None].astype(np.float64))[0])
        mask = near(picture, COLOURS[name])
        assert all(reached(mask, corners)), (view, name)
        # and nowhere else: all that has the colour of a box is within the rectangle around its corners (or both
        # boxes' that were matched)
        if name != "matched":
            rows, columns = np.nonzero(mask)
            assert columns.min() > corners[:, 0].min() - 4
            assert columns.max() < corners[:, 0].max() + 4
            assert rows.min() > corners[:, 1].min() - 4
            assert rows.max() < corners[:, 1].max() + 4


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_slider_hides_what_scores_less(tab: Browser, page: Path, theme: str) -> None:
    tab.open(page, SMALL, f"theme={theme}&without=rings,labels")
    found = near(tab.picture(), COLOURS["false"])
    assert found[:, :580].sum() > 100
    tab.slide("#score", 0.7)
    assert 0.65 < float(tab.text("#score-value")) < 0.75
    assert near(tab.picture(), COLOURS["false"])[:, :580].sum() == 0
    assert (tab.text("#count-found"), tab.text("#count-matched"), tab.text("#count-missed")) == ("1", "1", "1")
    tab.slide("#score", 0.99)  # then the labelled box that had been found is missed
    assert (tab.text("#count-found"), tab.text("#count-matched"), tab.text("#count-missed")) == ("0", "0", "2")
    tab.slide("#score", 0.1)
    assert near(tab.picture(), COLOURS["false"])[:, :580].sum() == found[:, :580].sum()


@pytest.mark.parametrize("size", [WIDE, SMALL, (420, 700)])
def test_the_page_fills_the_window(tab: Browser, page: Path, size: tuple[int, int]) -> None:
    tab.open(page, size)
    width, height = size
    view, panel, bar = (
        tab.run(f"(r => [r.left, r.top, r.right, r.bottom])(document.querySelector('{name}').getBoundingClientRect())")
        for name in ("#view", "#panel", "#bar")
    )
    assert view[:2] == [0, 0]
    assert view[2:] == [panel[0], bar[1]]
    assert panel[2:] == [width, bar[1]]
    assert bar[2:] == [width, height]
    score = tab.run(
        "(r => [r.left, r.right, r.bottom])(document.querySelector('#score-value').getBoundingClientRect())"
    )
    assert score[0] > 0
    assert score[1] <= width
    assert score[2] <= height
    assert tab.run("document.documentElement.scrollHeight") == height
    tab.click("#close")
    assert tab.run("document.querySelector('#view').getBoundingClientRect().right") == width


def test_a_box_under_the_pointer_says_what_it_is(tab: Browser, page: Path) -> None:
    tab.open(page, WIDE, "view=bird's eye")
    x, y = pixels_of(tab, FOUND[:1, :3].astype(np.float64))[0]
    tab.pointer(x, y, "mouseMoved")
    assert tab.text("#hover").split("\n") == [
        "Car 0.90",
        "detection, matched",
        "4.00 × 2.00 × 1.50 m",
        "15.1 m away",
    ]
    assert not tab.run("document.getElementById('hover').hidden")
    tab.pointer(5, 400, "mouseMoved")
    assert tab.run("document.getElementById('hover').hidden")


def test_titles_are_no_markup(tab: Browser, page: Path) -> None:
    tab.open(page, SMALL)
    assert tab.text("#title") == "<b>one</b>"
    assert tab.run("document.title") == "<b>one</b>"
    assert "300 points" in tab.text("#note")


def test_points_are_coloured_by_what_is_chosen(tab: Browser, page: Path) -> None:
    tab.open(page, SMALL, "view=bird's eye&without=rings,labels")
    assert tab.run("[...document.querySelector('#points-by').options].map(o => o.value)") == [
        "height",
        "intensity",
        "range",
    ]
    pictures = []
    for name in ("height", "intensity", "range"):
        tab.run(f"viewer.setPointsBy('{name}')")
        pictures.append(tab.picture()[60:540, :570])
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    # By range, points far off are bright yellow and near ones dark violet.
    tab.run("viewer.hide('hidden', 'found', true), viewer.hide('hidden', 'truth', true)")
    picture = tab.picture()
    points = scene().points[:, :3].astype(np.float64)
    away = np.hypot(points[:, 0], points[:, 1])
    places = pixels_of(tab, points[np.argsort(away)])
    last = [p for p in places[-10:] if 0 < p[0] < 570 and 60 < p[1] < 540]
    assert all(reached(near(picture, "#fde725", 40), np.array(last)))


def test_labels_do_not_lie_over_each_other(tab: Browser, tmp_path: Path) -> None:
    row = np.repeat(FOUND[:1], 6, 0)
    row[:, 0] += np.linspace(0, 0.5, 6)
    found = Detections(row, np.full(6, 0.5, np.float32), np.zeros(6, int), ("Car",), track_ids=np.arange(6))
    write_page(Scene(np.zeros((0, 3), np.float32), None, found), tmp_path / "a.html")
    tab.open(tmp_path / "a.html", SMALL)
    script = "viewer.drawLabels(), drawn"
    tab.run("drawn = [], CanvasRenderingContext2D.prototype.fillText = (text, x, y) => drawn.push([text, x, y])")
    drawn = tab.run(script)
    assert 1 <= len(drawn) < 6
    assert drawn[0][0] == "Car #0 0.50"  # the nearest
    places = np.array([place for _, *place in drawn])
    assert all(np.abs(a - b)[1] >= 13 for i, a in enumerate(places) for b in places[:i])


def test_a_class_is_hidden_by_its_switch(tab: Browser, page: Path) -> None:
    tab.open(page, SMALL, "boxes=class&without=rings,labels")
    red = "#d62728"
    assert near(tab.picture()[:, :580], red).sum() > 100
    tab.click("#show-class-0")
    assert near(tab.picture()[:, :580], red).sum() == 0
    assert tab.text("#count-found") == "0"


def test_dragging_turns_and_the_wheel_comes_nearer(tab: Browser, page: Path) -> None:
    tab.open(page, SMALL)
    before = tab.run("viewer.camera")
    tab.pointer(300, 300, "mousePressed", button="left")
    tab.pointer(340, 320, "mouseMoved", button="left")
    tab.pointer(340, 320, "mouseReleased", button="left")
    after = tab.run("viewer.camera")
    assert after["azimuth"] < before["azimuth"]
    assert after["elevation"] > before["elevation"]
    tab.send("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=-200)
    tab.wait(f"viewer.camera.distance < {after['distance']}")


def test_a_drive_is_played(tab: Browser, tmp_path: Path) -> None:
    write_page(frame_scenes(ToyDrive(), range(FRAMES), "val", before=10, after=0), tmp_path / "drive.html")
    tab.open(tmp_path / "drive.html", SMALL, "frame=1&theme=light&boxes=track")
    assert tab.text("#title") == "a001c (val 1)"
    assert tab.text("#frame-value") == "2 of 6"
    first = tab.picture()
    tab.slide("#frame", 1.0)
    assert tab.text("#title") == "b005c (val 5)"
    assert not np.array_equal(first, tab.picture())
    tab.click("#play")
    tab.wait("viewer.state.frame === 2")
    tab.click("#play")
    assert tab.text("#play") == "play"


def test_layers_are_seen_until_they_are_switched_off(tab: Browser, tmp_path: Path) -> None:
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 4:, 4:] = True
    labels = np.full((4, 4, 2), 17)
    labels[1, 1, 0] = 1
    layers = Layers(
        forecasts=[Forecast("Car", np.array([[[14.0, 5], [20, 9]]]), None, 0.9)],
        map=MapLayer(masks, (0, -16, 32, 16), ("road",)),
        occupancy=OccupancyLayer(labels, (0, -16, -2), (4, 4, 2), ("a", "b")),
        plans=[Plan(np.array([[0.0, 0], [10, 1], [20, 4]]))],
    )
    write_page(Scene(np.zeros((0, 3), np.float32), None, scene().detections, layers=layers), tmp_path / "a.html")
    tab.open(tmp_path / "a.html", SMALL, "view=bird's eye&without=rings,labels&boxes=class")
    ground = np.array([0x10, 0x14, 0x1A])
    blended = "#" + "".join(f"{round(v):02x}" for v in 0.55 * ground + 0.45 * rgb(POINT_COLOURS[0]))
    where = {  # what it is, its colour, and a place in its middle
        "forecasts": (FORECAST_COLOUR, [17, 7, 0]),
        "map": (blended, [18, 1.5, 0]),
        "occupancy": (POINT_COLOURS[1], [6, -10, 0]),
        "plan": (PLAN_COLOUR, [10, 1, 0]),
    }
    pictures = {"all": tab.picture()[:540, :580]}
    for name in where:
        tab.click(f"#show-{name}")
        pictures[name] = tab.picture()[:540, :580]
        tab.click(f"#show-{name}")
    for name, (colour, place) in where.items():
        (at,) = pixels_of(tab, np.array([place], float))
        assert reached(near(pictures["all"], colour), at[None]) == [True], name
        assert near(pictures[name], colour).sum() == 0, name
    tab.slide("#score", 0.97)  # the forecast goes with its object
    assert near(tab.picture()[:, :580], FORECAST_COLOUR).sum() == 0


def test_labelled_objects_leave_trails(tab: Browser, tmp_path: Path) -> None:
    (third,) = frame_scenes(ToyDrive(), [3], "val", before=10, after=0)
    write_page(third, tmp_path / "a.html")
    tab.open(tmp_path / "a.html", SMALL, "view=bird's eye&without=rings,labels,velocity")
    shown = tab.picture()[:540, :580].astype(int)
    tab.click("#show-tracks")
    trails = np.abs(shown - tab.picture()[:540, :580]).max(-1) > 8
    for track in third.truth_tracks:
        if np.ptp(track.positions, axis=0).max() > 1:  # one that stands still has none to see
            middles = (track.positions[1:] + track.positions[:-1]) / 2
            assert all(reached(trails, pixels_of(tab, middles)))
    assert max(np.ptp(track.positions, axis=0).max() for track in third.truth_tracks) > 5
