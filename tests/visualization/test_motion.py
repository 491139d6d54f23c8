"""What moves: sweeps by age, arrows of velocity, tracks, and the tour that plays frame after frame."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_drive import FRAMES, SWEEPS, ToyDrive, boxes
from toy_drive import info as toy_info

from pcdet_ext.structures import Detections, Sample, Targets
from pcdet_ext.visualization import Scene, Track, draw_bev
from pcdet_ext.visualization.ages import MOST_LEVELS, ages
from pcdet_ext.visualization.frames import Tracks, frame_scenes
from pcdet_ext.visualization.page import page_figure
from pcdet_ext.visualization.scene import SLOWEST_ARROW, velocity_arrows
from pcdet_ext.visualization.tour import PAGE_BYTES, tour_figure, write_tour

XYZT = ("x", "y", "z", "timestamp")


def cloud(times: np.ndarray, columns: tuple[str, ...] = XYZT) -> Scene:
    points = np.zeros((len(times), 4), np.float32)
    points[:, 0], points[:, 3] = np.arange(len(times)), times
    return Scene(points, point_features=columns)


def test_points_are_sorted_by_age() -> None:
    aged = ages(cloud(np.array([0.1, 0, 0.05, 0, 0.1], np.float32)))
    assert aged.level.tolist() == [2, 0, 1, 0, 2]
    assert aged.labels == ["now", "0.05 s ago", "0.1 s ago"]
    assert len(set(aged.colours)) == 3
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in aged.colours)


def test_frames_before_count_as_ages() -> None:
    aged = ages(cloud(np.array([0.0, -2, -1, -1]), ("x", "y", "z", "frame")))
    assert aged.level.tolist() == [0, 2, 1, 1]
    assert aged.labels == ["now", "1 frame ago", "2 frames ago"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 2, width=32), min_size=MOST_LEVELS + 1, unique_by=lambda v: round(v, 2)))
def test_many_ages_are_put_into_bins(times: list[float]) -> None:
    aged = ages(cloud(np.array(times)))
    assert len(aged.labels) == MOST_LEVELS
    width = max(round(t, 3) for t in times) / MOST_LEVELS
    np.testing.assert_allclose(aged.level, np.clip(np.array(times) / width - 0.5, 0, MOST_LEVELS - 1), atol=0.51)


def test_points_of_one_age_are_not_coloured_by_it() -> None:
    assert ages(cloud(np.full(4, 0.1))) is None
    assert ages(cloud(np.zeros(0))) is None
    assert ages(cloud(np.arange(4.0), ("x", "y", "z", "intensity"))) is None


def test_arrows_end_where_the_object_is_after_a_second() -> None:
    moving = np.array([[1.0, 2, 3, 4, 2, 1, 0.5, 6, -8]])
    still = moving * np.array([1, 1, 1, 1, 1, 1, 1, 0.01, 0.01])
    unknown = moving * np.array([1, 1, 1, 1, 1, 1, 1, np.nan, 1])
    arrows = velocity_arrows(np.concatenate([still, moving, unknown]))
    assert arrows.shape == (1, 3, 2, 3)
    np.testing.assert_allclose(arrows[0, 0], [[1, 2, 3], [7, -6, 3]])
    for barb in arrows[0, 1:]:
        np.testing.assert_allclose(barb[0], [7, -6, 3])
        back = (barb[1] - barb[0])[:2] @ [0.6, -0.8]
        assert -10 < back < 0  # against the way of the arrow
    left, right = ((barb[1] - barb[0])[:2] @ [0.8, 0.6] for barb in arrows[0, 1:])
    assert left * right < 0
    assert len(velocity_arrows(moving[:, :7])) == 0
    assert SLOWEST_ARROW < 1


def scene(number: int = 1) -> Scene:
    (found,) = frame_scenes(ToyDrive(), [number], "val", before=10, after=0)
    return found


def trace_names(figure: object) -> list[str]:
    return [trace.name for trace in figure.data]


def test_the_page_shows_ages_velocities_and_tracks() -> None:
    figure = page_figure(scene())
    names = ["now", "0.05 s ago", "0.1 s ago", "ground truth (2)", "velocity of ground truth (1)"]
    assert trace_names(figure) == [*names, "tracks of ground truth (2)"]
    by_age = figure.data[:SWEEPS]
    assert [len(trace.x) for trace in by_age] == [20] * SWEEPS
    assert len({trace.marker.color for trace in by_age}) == SWEEPS
    velocity, tracks = figure.data[-2:]
    assert len(velocity.x) == 3 * 3
    np.testing.assert_allclose(velocity.x[1] - velocity.x[0], 8, atol=1e-4)
    assert set(tracks.text) == {"Car 7", "Bike 9"}
    assert int(np.isnan(tracks.x).sum()) == 2


def test_boxes_without_a_velocity_are_drawn_without_an_arrow() -> None:
    one = Targets.of_names(boxes(0), ("Car", "Bike"))  # the velocity of the bike is NaN
    drawn = Scene(np.zeros((1, 3), np.float32), one, title="t").finite()
    assert (len(drawn.truth), drawn.title) == (2, "t")


def test_objects_without_an_identity_have_no_path() -> None:
    infos = [replace(toy_info(i), track_ids=np.array([7, -1])) for i in (0, 1)]
    sample = Sample(np.zeros((1, 3), np.float32), ("x", "y", "z"), "s", infos[0].targets())
    assert [track.track_id for track in Tracks(infos[0], infos).truth_tracks(sample)] == [7]


def test_detected_tracks_follow_the_score() -> None:
    tracks = [Track(i, "Car", np.arange(6.0).reshape(2, 3)) for i in (4, 5)]
    found = Detections(
        boxes(0), np.array([0.9, 0.4], np.float32), np.array([0, 0]), ("Car",), track_ids=np.array([4, 5])
    )
    figure = page_figure(Scene(np.zeros((1, 3), np.float32), None, found, found_tracks=tracks), 0.5)
    shown = [t.name for t in figure.data if t.visible is not False]
    assert shown == ["points", "Car (1)", "velocity of detections (1)", "tracks of detections (1)"]
    assert sum(name == "tracks of detections (2)" for name in trace_names(figure)) == 9  # at scores of 0 to 0.4


def near(path: Path, colour: str) -> int:
    from matplotlib.image import imread

    picture = imread(path)[..., :3] * 255
    return int((np.abs(picture - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) < 16).sum())


def test_the_map_shows_ages_arrows_and_tracks(tmp_path: Path) -> None:
    full = scene(3)
    draw_bev(full, tmp_path / "full.png")
    aged = ages(full)
    assert min(near(tmp_path / "full.png", colour) for colour in aged.colours) > 10
    boxes_only = Targets.of_names(full.truth.boxes[:, :7], full.truth.names)
    plain = Scene(full.points, boxes_only, title=full.title, point_features=full.point_features)
    draw_bev(plain, tmp_path / "plain.png")
    green = "#2ca02c"
    assert near(tmp_path / "full.png", green) > 1.3 * near(tmp_path / "plain.png", green)
    draw_bev(Scene(full.points, title=full.title), tmp_path / "height.png")
    assert near(tmp_path / "height.png", aged.colours[0]) < near(tmp_path / "full.png", aged.colours[0])


def toy_scenes() -> Iterator[Scene]:
    return frame_scenes(ToyDrive(), range(FRAMES), "val", before=10, after=0)


def test_the_tour_has_a_frame_for_each_scene() -> None:
    figure = tour_figure(toy_scenes(), FRAMES)
    assert trace_names(figure) == ["points", "ground truth", "tracks of ground truth"]
    assert len(figure.frames) == len(figure.layout.sliders[0].steps) == FRAMES
    for i, (frame, step) in enumerate(zip(figure.frames, figure.layout.sliders[0].steps, strict=True)):
        assert list(step.args[0]) == [frame.name]
        assert len(frame.data) == len(figure.data)
        sample = ToyDrive()[i]
        np.testing.assert_allclose(frame.data[0].x, sample.points[:, 0] * 100, atol=0.51)
        np.testing.assert_array_equal(np.unique(frame.data[0].marker.color), [0, 128, 255])
        assert sample.frame_id in frame.layout.title.text
        assert "60 points" in frame.layout.title.text
        moving = 1
        gaps = len(sample.targets) + moving
        assert int(np.isnan(frame.data[1].x).sum()) == gaps
    labels = [button.label for menu in figure.layout.updatemenus for button in menu.buttons]
    assert labels == ["play", "pause", "from above", "at an angle"]
    assert figure.data[0].marker.colorbar.title.text == "age"
    assert figure.data[0].marker.colorbar.ticktext[0] == "now"


def test_the_boxes_of_a_tour_have_all_their_edges() -> None:
    from pcdet_ext.visualization.scene import box_corners

    box = np.array([[3.0, 4, 1, 4, 2, 1.5, 0.7]])
    figure = tour_figure([Scene(np.zeros((1, 3), np.float32), Targets.of_names(box, ("Car",)))], 1)
    line = np.stack([figure.data[1][axis] for axis in "xyz"], 1) / 100
    corners = box_corners(box)[0]
    drawn = set()
    for a, b in pairwise(line):
        ends = [np.flatnonzero(np.abs(corners - end).max(1) < 1e-3) for end in (a, b)]
        if all(len(end) for end in ends):
            drawn.add(frozenset(int(end[0]) for end in ends))
    lengths = [np.linalg.norm(corners[min(edge)] - corners[max(edge)]) for edge in drawn]
    np.testing.assert_allclose(np.sort(lengths), np.repeat([1.5, 2, 4], 4), atol=1e-3)


def test_classes_have_one_trace_whichever_frame_has_them() -> None:
    def one(name: str | None) -> Scene:
        count = 0 if name is None else 1
        found = Detections(boxes(0)[:count, :7], np.ones(count), np.zeros(count, int), (name or "Car",))
        return Scene(np.zeros((1, 3), np.float32), None, found, str(name))

    figure = tour_figure([one(None), one("Bike"), one("Car")], 3)
    assert trace_names(figure) == ["points", "Car", "Bike"]
    filled = [[bool(np.isfinite(trace.x).any()) for trace in frame.data[1:]] for frame in figure.frames]
    assert filled == [[False, False], [False, True], [True, False]]
    assert figure.data[0].marker.colorbar.title.text == "height"


def crowd(count: int, points: int, objects: int) -> Iterator[Scene]:
    rng = np.random.default_rng(0)
    for i in range(count):
        rows = np.column_stack([rng.uniform(-50, 50, (objects, 2)), rng.uniform(1, 3, (objects, 7))])
        truth = Targets.of_names(rows, ("Car",) * objects)
        yield Scene(rng.normal(0, 30, (points, 3)).astype(np.float32), truth, title=str(i))


def test_a_long_tour_is_thinned_until_the_page_is_small_enough(tmp_path: Path) -> None:
    scenes = list(crowd(60, 40_000, 40))
    scenes[0] = Scene(scenes[0].points, scenes[0].truth, title="</script>")
    write_tour(iter(scenes), 60, tmp_path / "tour.html")
    text = (tmp_path / "tour.html").read_text(encoding="utf-8")
    assert 0.9 * PAGE_BYTES < len(text.encode()) < PAGE_BYTES
    assert "<script src=" not in text
    shown = {int(number) for number in re.findall(r"(\d+) of 40000 points, thinned evenly", text)}
    assert len(shown) == 1
    assert 1000 < shown.pop() < 40_000
    # Titles cannot end the script, and what is written is JSON that plotly reads.
    assert text.count("</script>") == text.count("<script")
    frames = json.loads(re.search(r"addFrames\([^,]*,\s*(\[.*?\])\s*\)", text, re.DOTALL)[1])
    assert len(frames) == 60
    assert frames[0]["layout"]["title"]["text"].startswith("</script><br>")


def test_more_frames_than_a_page_can_hold_are_refused() -> None:
    message = "frames are too many for one page; take every N-th of them with A:B:N"
    with pytest.raises(ValueError, match=f"100000 {message}"):
        tour_figure(iter(()), 100_000)
    with pytest.raises(ValueError, match=f"60 {message}"):
        tour_figure(crowd(60, 10, 800), 60)
