"""What a picture page holds: points, boxes and who found whom, tracks and layers, in less than 20 MB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import channel_in, points_in, read_page
from toy_drive import FRAMES, SWEEPS, ToyDrive, boxes

from pcdet_ext.structures import Detections, Targets
from pcdet_ext.visualization import Forecast, Layers, MapLayer, OccupancyLayer, Plan, Scene, Track, write_page
from pcdet_ext.visualization.frames import frame_scenes
from pcdet_ext.visualization.layers import rectangles
from pcdet_ext.visualization.page import MOST_DETECTIONS, PAGE_BYTES, page_data
from pcdet_ext.visualization.pairing import pair

SCORE, LABEL, FOUND, PARTNER, TRACK = 9, 10, 11, 12, 13
NOTHING = np.zeros((0, 3), np.float32)


def test_a_page_stands_alone_and_no_text_ends_its_script(tmp_path: Path) -> None:
    write_page(Scene(np.ones((3, 3), np.float32), title="</script><script>alert(1)"), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "src=" not in text
    assert "http" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert text.count("<script") == text.count("</script>") == 3
    assert read_page(tmp_path / "a.html")[0]["frames"][0]["title"] == "</script><script>alert(1)"
    assert len(text) < 100_000


def test_points_are_as_exact_as_a_picture_needs() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-90, 90, (500, 4)).astype(np.float32)
    points[:, 3] = np.linspace(0, 255, 500)
    points[7, :3] = 5000  # one far off: all others would be in one place
    data, blob = page_data([Scene(points, point_features=("x", "y", "z", "intensity"))])
    (frame,) = data["frames"]
    kept = np.delete(points, 7, 0)
    np.testing.assert_allclose(points_in(frame, blob), kept[:, :3], atol=0.002)
    assert frame["note"] == "499 points; 1 farther off than 1000 m are left out"
    assert [way["name"] for way in data["colourings"]] == ["height", "intensity", "range"]
    low, high = np.percentile(kept[:, 3], [2, 98])
    expected = np.clip((kept[:, 3] - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(channel_in(frame, blob, "intensity"), expected, atol=0.51)


def test_a_drive_has_its_ages_velocities_and_tracks() -> None:
    data, blob = page_data(frame_scenes(ToyDrive(), range(FRAMES), "val", before=10, after=0))
    assert len(data["frames"]) == FRAMES
    assert data["layers"] == ["rings", "labels", "velocity", "tracks"]
    assert [way["name"] for way in data["colourings"]] == ["age", "height", "range"]  # all intensities are equal
    assert data["colourings"][0]["ends"] == ["now", "0.1 s ago"]
    for number, frame in enumerate(data["frames"]):
        sample = ToyDrive()[number]
        np.testing.assert_allclose(points_in(frame, blob), sample.points[:, :3], atol=0.001)
        assert np.unique(channel_in(frame, blob, "age")).tolist() == [0, 128, 255]
        assert len(np.unique(sample.points[:, 4])) == SWEEPS
        assert frame["title"] == f"{sample.frame_id} (val {number})"
        rows = frame["boxes"]
        np.testing.assert_allclose([row[:7] for row in rows], boxes(number)[:, :7], atol=0.001)
        assert rows[0][7:9] == [8, 0]
        assert [row[TRACK] for row in rows] == [7, 9][: len(rows)]
        assert {row[FOUND] for row in rows} == {0}
        if len(rows) == 2:
            assert rows[1][7:9] == [None, None]  # the velocity of the bike is not known
    second = data["frames"][1]["tracks"]
    assert [(track["id"], track["found"], len(track["path"])) for track in second] == [(7, False, 2), (9, False, 2)]


def test_a_track_has_the_score_that_its_object_has_in_this_frame() -> None:
    tracks = [Track(i, "Car", np.arange(6.0).reshape(2, 3)) for i in (4, 5)]
    found = Detections(boxes(0), np.array([0.9, 0.4]), np.array([0, 0]), ("Car",), track_ids=np.array([4, 5]))
    (frame,) = page_data([Scene(NOTHING, None, found, found_tracks=tracks)])[0]["frames"]
    assert [(t["id"], t["found"], t["score"], t["label"]) for t in frame["tracks"]] == [
        (4, True, 0.9, 0),
        (5, True, 0.4, 0),
    ]


def row(x: float, y: float) -> list[float]:
    return [x, y, 0, 4, 2, 1.5, 0]


def test_the_page_says_who_found_whom() -> None:
    truth = Targets.of_names(np.array([row(0, 0), row(10, 0), row(20, 0)]), ("Car", "Car", "Tram"))
    found = Detections(
        np.array([row(0.5, 0), row(0.1, 0), row(10, 3), row(20, 0)]),
        np.array([0.9, 0.8, 0.7, 0.6]),
        np.array([0, 0, 0, 1]),
        ("Car", "Bike"),
    )
    data, _ = page_data([Scene(NOTHING, truth, found)])
    (frame,) = data["frames"]
    assert frame["matched"]
    assert [entry["name"] for entry in data["classes"]] == ["Car", "Bike", "Tram"]
    # The first detection is not the nearest, but scores more; the tram is of no class that is looked for.
    assert [box[PARTNER] for box in frame["boxes"]] == [3, -1, -2, 0, -1, -1, -1]
    assert [box[FOUND] for box in frame["boxes"]] == [0, 0, 0, 1, 1, 1, 1]
    assert data["box_colourings"] == ["match", "class"]
    alone, _ = page_data([Scene(NOTHING, None, found)])
    assert alone["box_colourings"] == ["class"]
    assert {box[PARTNER] for box in alone["frames"][0]["boxes"]} == {-2}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 1000), st.floats(0, 1))
def test_pairs_do_not_depend_on_what_scores_less(truths: int, founds: int, seed: int, score: float) -> None:
    rng = np.random.default_rng(seed)
    truth, found = (np.column_stack([rng.uniform(0, 6, (n, 2)), np.ones((n, 5))]) for n in (truths, founds))
    names, found_names = (rng.choice(["Car", "Bike"], n).tolist() for n in (truths, founds))
    scores = rng.random(founds)
    partner = pair(truth, names, found, found_names, scores)
    taken = partner[partner >= 0]
    assert len(set(taken.tolist())) == len(taken)
    for i in np.flatnonzero(partner >= 0):
        assert names[partner[i]] == found_names[i]
        assert np.hypot(*(truth[partner[i], :2] - found[i, :2])) <= 2
    kept = np.flatnonzero(scores >= score)
    alone = pair(truth, names, found[kept], [found_names[i] for i in kept], scores[kept])
    np.testing.assert_array_equal(alone, partner[kept])
    for i in np.flatnonzero(partner < 0):  # nothing that it may take is free when it chooses
        free = [
            k for k in range(truths) if names[k] == found_names[i] and np.hypot(*(truth[k, :2] - found[i, :2])) <= 2
        ]
        assert all(k in partner and scores[partner.tolist().index(k)] >= scores[i] for k in free)


def test_labelled_boxes_without_a_point_are_not_counted_as_missed() -> None:
    truth = Targets.of_names(np.array([row(0, 0), row(10, 0), row(20, 0)]), ("Car",) * 3)
    found = Detections(np.array([row(20, 1)]), np.array([0.9]), np.array([0]), ("Car",))
    points = np.array([[10.5, 0.5, 0.2], [50, 0, 0]], np.float32)  # one in the second box
    (frame,) = page_data([Scene(points, truth, found)])[0]["frames"]
    assert [box[PARTNER] for box in frame["boxes"]] == [-2, -1, 3, 2]  # what was found counts all the same


def test_boxes_without_a_class_are_drawn() -> None:
    data, _ = page_data([Scene(NOTHING, Targets(np.array([row(3, 4)])))])
    assert data["classes"] == [{"name": "object", "colour": "#d62728"}]


def test_scores_that_are_no_probabilities_have_their_own_slider() -> None:
    found = Detections(np.array([row(0, 0)] * 2), np.array([-1.5, 3.2]), np.array([0, 0]), ("Car",))
    scene = Scene(NOTHING, None, found)
    assert page_data([scene])[0]["scores"] == [-2, 4]
    assert [page_data([scene], score)[0]["score"] for score in (-np.inf, 0.5, np.inf)] == [-2, 0.5, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_detections_without_a_score_are_left_out_and_counted(bad: float) -> None:
    found = Detections(np.array([row(0, 0)] * 2), np.array([0.5, bad]), np.array([0, 0]), ("Car",))
    (frame,) = page_data([Scene(NOTHING, None, found, "a")])[0]["frames"]
    assert [box[SCORE] for box in frame["boxes"]] == [0.5]
    assert frame["title"] == "a (not finite, left out: 1 boxes)"


def test_of_too_many_detections_the_best_are_kept() -> None:
    count = MOST_DETECTIONS + 1000
    scores = np.random.default_rng(0).permutation(count) / count
    found = Detections(np.tile(row(0, 0), (count, 1)), scores, np.zeros(count, int), ("Car",))
    (frame,) = page_data([Scene(NOTHING, None, found)])[0]["frames"]
    assert len(frame["boxes"]) == MOST_DETECTIONS
    assert frame["note"] == f"0 points; detections below {1000 / count:.3g} are left out"


def crowd(count: int, points: int, objects: int) -> Iterator[Scene]:
    rng = np.random.default_rng(0)
    for i in range(count):
        rows = np.column_stack([rng.uniform(-50, 50, (objects, 2)), rng.uniform(1, 3, (objects, 7))])
        truth = Targets.of_names(rows, ("Car",) * objects)
        yield Scene(rng.normal(0, 30, (points, 3)).astype(np.float32), truth, title=str(i))


def test_a_long_drive_is_thinned_until_the_page_is_small_enough(tmp_path: Path) -> None:
    write_page(crowd(60, 60_000, 40), tmp_path / "drive.html")
    size = (tmp_path / "drive.html").stat().st_size
    assert 0.8 * PAGE_BYTES < size < PAGE_BYTES
    data, _ = read_page(tmp_path / "drive.html")
    notes = {frame["note"] for frame in data["frames"]}
    assert len(notes) == 1
    shown = int(re.fullmatch(r"(\d+) of 60000 points, thinned evenly", notes.pop())[1])
    assert 10_000 < shown < 60_000
    assert {frame["points"]["count"] for frame in data["frames"]} == {shown}


def test_more_frames_than_a_page_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdet_ext.visualization.page.PAGE_BYTES", 400_000)
    with pytest.raises(ValueError, match="60 frames are too many for one page; take every N-th of them with A:B:N"):
        page_data(crowd(60, 300, 60))
    with pytest.raises(ValueError, match="at least one frame"):
        page_data(iter(()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 1000), st.floats(0, 1))
def test_rectangles_cover_a_mask_exactly(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    covered = np.zeros(mask.shape, int)
    for x0, y0, x1, y1 in rectangles(mask):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        covered[y0:y1, x0:x1] += 1
    np.testing.assert_array_equal(covered, mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_only_cells_that_can_be_seen_are_kept(x: int, y: int, z: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 4, (x, y, z))
    cells = OccupancyLayer(labels, (0, 0, 0), (1, 1, 1), ("road", "car")).cells()

    def free(place: tuple[int, ...]) -> bool:
        inside = all(0 <= p < n for p, n in zip(place, labels.shape, strict=True))
        return not inside or labels[place] not in (0, 1)

    expected = []
    for place in np.ndindex(labels.shape):
        around = [tuple(np.array(place) + step * np.eye(3, dtype=int)[axis]) for axis in range(3) for step in (-1, 1)]
        if not free(place) and any(map(free, around)):
            expected.append([*place, labels[place]])
    assert cells.tolist() == expected


def test_layers_are_written_in_metres() -> None:
    mask = np.zeros((1, 4, 8), bool)
    mask[0, 1, 2:5] = True
    labels = np.full((2, 3, 4), 17)
    labels[1, 2, 3] = 1
    layers = Layers(
        forecasts=[Forecast("Car", np.zeros((2, 3, 2)), np.array([0.75, 0.25]), 0.6, 4)],
        map=MapLayer(mask, (-8, -2, 8, 2), ("road",), {"border": [np.array([[0.0, 1], [2, 3]])]}),
        occupancy=OccupancyLayer(labels, (-1, -2, -3), (0.5, 0.5, 1), ("road", "car")),
        plans=[Plan(np.array([[0.0, 0], [5, 1]]))],
    )
    truth = Targets.of_names(np.array([row(3, 4)]), ("Car",))
    data, blob = page_data([Scene(NOTHING, truth, layers=layers)])
    (frame,) = data["frames"]
    assert data["layers"] == ["rings", "labels", "forecasts", "map", "occupancy", "plan"]
    assert data["off"] == ["labels"]
    with_points = Scene(np.zeros((1, 3), np.float32), truth, layers=layers)
    assert page_data([with_points])[0]["off"] == ["occupancy", "labels"]  # cells would hide the points
    road, border = frame["map"]
    assert (road["name"], road["cells"], border["lines"]) == ("road", [[-4, -1, 2, 0]], [[[0, 1], [2, 3]]])
    (forecast,) = frame["forecasts"]
    assert (forecast["label"], forecast["found"], forecast["score"], forecast["track"]) == (0, True, 0.6, 4)
    assert forecast["probabilities"] == [0.75, 0.25]
    assert frame["plans"] == [{"found": True, "path": [[0, 0, -0.75], [5, 1, -0.75]]}]  # on the ground
    cells = frame["occupancy"]
    assert (cells["count"], cells["grid"], cells["size"]) == (1, [2, 3, 4], [0.5, 0.5, 1])
    assert np.frombuffer(blob, "<u2", 4, cells["at"]).tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(np.zeros((3, 4))), r"a planned path must have places \[T, 2 or 3\], got \[3, 4\]"),
        (lambda: Plan(np.full((3, 2), np.nan)), "a planned path has a number that is not finite"),
        (lambda: Forecast("Car", np.zeros((2, 3, 2)), np.ones(3)), "a Car has 2 paths, but probabilities"),
        (lambda: Forecast("Car", np.zeros((3, 2))), r"the forecast of a Car must have places"),
        (lambda: MapLayer(np.zeros((2, 3, 3), bool), class_names=("a",)), r"masks must be \[1, H, W\]"),
        (lambda: MapLayer(extent=(0, 0, -1, 1)), "the extent of a map must be"),
        (lambda: OccupancyLayer(np.zeros((2, 2)), (0, 0, 0), (1, 1, 1), ()), "labels must be integers"),
        (lambda: OccupancyLayer(np.zeros((1, 1, 1), int), (0, 0, 0), (1, 0, 1), ()), "cell positive"),
    ],
)
def test_layers_that_cannot_be_drawn_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
