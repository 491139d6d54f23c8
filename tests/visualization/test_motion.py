"""What moves: sweeps by age, arrows of velocity, tracks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_drive import ToyDrive, boxes
from toy_drive import info as toy_info

from pcdet_ext.structures import Sample, Targets
from pcdet_ext.visualization import Scene, draw_bev
from pcdet_ext.visualization.ages import MOST_LEVELS, ages
from pcdet_ext.visualization.frames import Tracks, frame_scenes
from pcdet_ext.visualization.scene import SLOWEST_ARROW, velocity_arrows

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


def test_boxes_without_a_velocity_are_drawn_without_an_arrow() -> None:
    one = Targets.of_names(boxes(0), ("Car", "Bike"))  # the velocity of the bike is NaN
    drawn = Scene(np.zeros((1, 3), np.float32), one, title="t").finite()
    assert (len(drawn.truth), drawn.title) == (2, "t")


def test_objects_without_an_identity_have_no_path() -> None:
    infos = [replace(toy_info(i), track_ids=np.array([7, -1])) for i in (0, 1)]
    sample = Sample(np.zeros((1, 3), np.float32), ("x", "y", "z"), "s", infos[0].targets())
    assert [track.track_id for track in Tracks(infos[0], infos).truth_tracks(sample)] == [7]


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
