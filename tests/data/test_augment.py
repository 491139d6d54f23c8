"""Augmentation: published cases, and the properties that every transform must have."""

from __future__ import annotations

import itertools
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcdet_ext.conformance.cases.openpcdet_data  # noqa: F401  (registers the runners)
from pcdet_ext.config import ConfigError, Node
from pcdet_ext.conformance.golden import run_case
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.objects import Objects
from pcdet_ext.structures import Sample, Targets

SHELLS = [
    augment.RandomFlip(["x", "y"], probability=0.7),
    augment.RandomRotation([-0.8, 0.8]),
    augment.RandomScaling([0.9, 1.1]),
    augment.RandomTranslation([0.5, 0.5, 0.5]),
    augment.PointShuffle(),
]


NO_BOXES = Targets.of_names(np.zeros((0, 7), np.float32), ())
COLUMNS = ("x", "y", "z", "intensity")


def scene(seed: int, columns: int = 7) -> Sample:
    """Boxes with points in and around them."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((4, columns), np.float32)
    boxes[:, :3] = rng.uniform(-20, 20, (4, 3))
    boxes[:, 3:6] = rng.uniform(1, 5, (4, 3))
    boxes[:, 6:] = rng.uniform(-3, 3, (4, columns - 6))
    points = np.repeat(boxes[:, :3], 50, axis=0) + rng.normal(0, 1.5, (200, 3))
    points = np.column_stack([points, rng.uniform(0, 1, 200)]).astype(np.float32)
    names = ("Car", "Van", "Car", "Cyclist")
    targets = Targets.of_names(boxes, names, difficulty=np.arange(4), num_points=np.arange(4))
    return Sample(points, COLUMNS, "s", targets, calibration="calibration")


def database(seed: int, counts: dict[str, int]) -> dict[str, Objects]:
    """Objects of some classes along a street, object i with i + 1 points; difficulty alternates 0, -1."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, count in counts.items():
        boxes = np.column_stack(
            [
                rng.uniform(0, 40, count),
                rng.uniform(-10, 10, count),
                np.full(count, -1.0),
                np.tile([4, 2, 1.5], (count, 1)),
            ]
        )
        boxes = np.column_stack([boxes, rng.uniform(-3, 3, count)]).astype(np.float32)
        offsets = np.cumsum(np.arange(count + 1))
        points = rng.uniform(-0.5, 0.5, (offsets[-1], 4)).astype(np.float32)
        found[name] = Objects(boxes, np.arange(count) % 2 * -1, offsets, points)
    return found


@pytest.mark.parametrize("name", ["augment_kitti", "augment_vel", "gt_sampling"])
def test_published_case(shared: Path, name: str) -> None:
    report = run_case(shared / "golden" / "openpcdet" / f"{name}.json")
    assert report.status == "pass", report.line()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda s: type(s).__name__)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_points_stay_in_their_boxes(shell: object, seed: int) -> None:
    sample = scene(seed)
    before = sample.points.copy(), sample.targets.boxes.copy()
    result = shell(sample, np.random.default_rng(seed))
    np.testing.assert_array_equal(sample.points, before[0])  # the input is left alone
    np.testing.assert_array_equal(sample.targets.boxes, before[1])
    inside = inside_boxes(sample.points, sample.targets.boxes)
    moved = inside_boxes(result.points, result.targets.boxes)
    assert np.abs(inside.sum(axis=1) - moved.sum(axis=1)).max() <= 1  # one may sit on a border
    assert (result.targets.names, result.frame_id) == (sample.targets.names, sample.frame_id)
    np.testing.assert_array_equal(np.sort(result.points[:, 3]), np.sort(sample.points[:, 3]))


@pytest.mark.parametrize("shell", SHELLS, ids=lambda s: type(s).__name__)
def test_the_generator_alone_decides(shell: object) -> None:
    results = [shell(scene(1), np.random.default_rng(s)) for s in (5, 5, 6)]
    np.testing.assert_array_equal(results[0].points, results[1].points)
    np.testing.assert_array_equal(results[0].targets.boxes, results[1].targets.boxes)
    others = [shell(scene(1), np.random.default_rng(s)).points for s in range(8)]
    assert any(not np.array_equal(results[0].points, other) for other in others)


@pytest.mark.parametrize(
    "move",
    [
        lambda s: augment.flip(s, "x"),
        lambda s: augment.flip(s, "y"),
        lambda s: augment.rotate(s, 0.7),
        lambda s: augment.scale(s, 1.2),
        lambda s: augment.translate(s, (1, 2, 3)),
    ],
)
def test_velocity_and_heading_follow_the_scene(move: object) -> None:
    """A box moved along its velocity, and a point ahead of it, go where the transform takes them."""
    sample = scene(3, columns=9)
    boxes = sample.targets.boxes
    later = boxes.copy()
    later[:, :2] += later[:, 7:]
    ahead = boxes.copy()
    ahead[:, 0] += np.cos(boxes[:, 6])
    ahead[:, 1] += np.sin(boxes[:, 6])
    now, then, front = (
        move(sample.replace(targets=sample.targets.replace(boxes=b))).targets.boxes for b in (boxes, later, ahead)
    )
    np.testing.assert_allclose(then[:, :2] - now[:, :2], now[:, 7:], atol=1e-5)
    step = front[:, :2] - now[:, :2]
    np.testing.assert_allclose(np.arctan2(step[:, 1], step[:, 0]), augment.wrap_angle(now[:, 6]), atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_an_unknown_velocity_stays_unknown_and_changes_nothing_else(seed: int) -> None:
    """Boxes of objects that were seen once have a velocity of NaN."""
    sample = scene(5, columns=9)
    boxes = sample.targets.boxes.copy()
    boxes[1, 7:] = np.nan
    unknown = sample.replace(targets=sample.targets.replace(boxes=boxes))
    for shell in SHELLS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = shell(unknown, np.random.default_rng(seed))
        expected = shell(sample, np.random.default_rng(seed))
        missing = np.isnan(result.targets.boxes)
        assert np.argwhere(missing).tolist() == [[1, 7], [1, 8]]
        np.testing.assert_array_equal(result.targets.boxes[~missing], expected.targets.boxes[~missing])
        np.testing.assert_array_equal(result.points, expected.points)


def test_moves_are_undone_by_their_inverse() -> None:
    sample = scene(4, columns=9)
    for there_and_back in (
        augment.flip(augment.flip(sample, "x"), "x"),
        augment.flip(augment.flip(sample, "y"), "y"),
        augment.rotate(augment.rotate(sample, 0.6), -0.6),
        augment.scale(augment.scale(sample, 2.0), 0.5),
        augment.translate(augment.translate(sample, (1, -2, 3)), (-1, 2, -3)),
    ):
        back = augment.wrap_headings(there_and_back)
        np.testing.assert_allclose(back.points, sample.points, atol=1e-5)
        np.testing.assert_allclose(back.targets.boxes, sample.targets.boxes, atol=1e-5)
        assert back.calibration is None  # a moved scene no longer fits its camera


def test_samples_without_labels_and_points_pass() -> None:
    empty = Sample(np.zeros((0, 4), np.float32), COLUMNS, "e", NO_BOXES)
    for shell, sample in itertools.product(SHELLS, (empty, scene(0).replace(targets=None))):
        result = shell(sample, np.random.default_rng(0))
        assert result.points.shape == sample.points.shape


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pasted_objects_collide_with_nothing(seed: int) -> None:
    polygons = pytest.importorskip("shapely.geometry")
    from pcdet_ext.data.geometry import footprints

    objects = database(seed, {"Car": 30, "Van": 30})
    sampling = augment.GroundTruthSampling({"Car": 12, "Van": 8}, objects, min_points=3, skip_difficulty=[-1])
    sample = scene(seed)
    result = sampling(sample, np.random.default_rng(seed))
    added = result.targets.select(np.arange(4, len(result.targets)))
    assert len(added) > 0
    shapes = [polygons.Polygon(corners) for corners in footprints(result.targets.boxes)]
    for i, j in itertools.combinations(range(len(shapes)), 2):
        if j >= 4:  # the scene's own boxes may overlap
            assert shapes[i].intersection(shapes[j]).area < 1e-6
    assert (added.num_points >= 3).all()
    assert (added.difficulty == 0).all()
    pasted = result.points[: added.num_points.sum()]
    starts = np.cumsum([0, *added.num_points])
    for box, start, end in zip(added.boxes, starts, starts[1:], strict=False):
        assert inside_boxes(pasted[start:end], box[None]).all()
        assert inside_boxes(result.points, box[None]).sum() == end - start  # scene points were removed there
    kept = result.points[len(pasted) :]
    np.testing.assert_array_equal(kept, sample.points[~inside_boxes(sample.points, added.boxes).any(axis=0)])


def test_two_objects_that_collide_are_both_left_out() -> None:
    objects = database(0, {"Car": 3})
    objects["Car"].boxes[:, :2] = [[100, 0], [101, 0], [120, 0]]
    sampling = augment.GroundTruthSampling({"Car": 3}, objects, min_points=0, skip_difficulty=[])
    result = sampling.paste(scene(0), {"Car": np.arange(3)})
    np.testing.assert_array_equal(result.targets.boxes[4:], objects["Car"].boxes[2:])


def test_whole_scene_limit_counts_what_is_there() -> None:
    objects = database(0, {"Car": 30, "Cyclist": 4})
    groups = {"Car": 5, "Cyclist": 1}
    assert augment.GroundTruthSampling(groups, objects).wanted(scene(0)) == groups
    limited = augment.GroundTruthSampling(groups, objects, limit_whole_scene=True)
    assert limited.wanted(scene(0)) == {"Car": 3, "Cyclist": 0}
    assert limited.wanted(scene(0).replace(targets=None)) == groups


def test_extra_width_clears_more_scene_points() -> None:
    objects = database(0, {"Car": 1})
    objects["Car"].boxes[0] = [50, 0, 0, 4, 2, 1.5, 0]
    beside = np.array([[50, 1.2, 0, 0]], np.float32)
    sample = Sample(beside, COLUMNS, "s", NO_BOXES)
    draw = {"Car": np.array([0])}
    near = augment.GroundTruthSampling({"Car": 1}, objects, min_points=0).paste(sample, draw)
    wide = augment.GroundTruthSampling({"Car": 1}, objects, min_points=0, extra_width=[0, 0.5, 0]).paste(sample, draw)
    assert (len(near.points), len(wide.points)) == (2, 1)
    np.testing.assert_array_equal(near.targets.boxes, wide.targets.boxes)


def test_groups_are_held_against_classes_and_database(caplog: pytest.LogCaptureFixture) -> None:
    objects = database(0, {"Car": 3, "Van": 2})
    with pytest.raises(ConfigError, match="'Carr' is no class of the data; did you mean 'Car'"):
        augment.GroundTruthSampling({"Carr": 3}, objects, classes=["Car"])
    with caplog.at_level(logging.WARNING):
        sampling = augment.GroundTruthSampling({"Car": 1, "Van": 1, "Cyclist": 2}, objects, classes=["Car", "Cyclist"])
    assert sampling.groups == {"Car": 1}
    assert "database has no Cyclist" in caplog.text


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "RandomFlip", "axes": ["z"]}, "axes must hold 'x' and 'y' only, got 'z'"),
        ({"name": "RandomFlip", "probability": 2}, r"probability must lie in \[0, 1\]"),
        ({"name": "RandomRotation", "angle_range": [1, -1]}, "angle_range must be a minimum and a maximum"),
        ({"name": "RandomScaling", "scale_range": [0, 1]}, "scale_range must be positive"),
        ({"name": "RandomTranslation", "std": [1, 1]}, "std must be three deviations"),
        ({"name": "RandomFlp"}, "did you mean 'RandomFlip'"),
    ],
)
def test_wrong_settings_are_named(node: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        augment.AUGMENTATIONS.build(Node(node))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_steps_made_without_a_configuration_take_finite_numbers_only(wrong: float) -> None:
    for make in (
        lambda: augment.RandomFlip(probability=wrong),
        lambda: augment.RandomRotation((wrong, 1.0)),
        lambda: augment.RandomScaling((0.5, wrong)),
        lambda: augment.RandomTranslation((0.0, wrong, 0.0)),
        lambda: augment.GroundTruthSampling({}, {}, margin=wrong),
        lambda: augment.GroundTruthSampling({}, {}, extra_width=(0.0, wrong, 0.0)),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_a_range_of_times_needs_objects_with_a_time() -> None:
    objects = database(0, {"Car": 3})
    with pytest.raises(ValueError, match="time_range needs points with a time, the database has only x, y, z, inten"):
        augment.GroundTruthSampling({"Car": 1}, objects, time_range=[0, 0.1])
    timed = {name: replace(found, point_features=("x", "y", "z", "timestamp")) for name, found in objects.items()}
    assert augment.GroundTruthSampling({"Car": 1}, timed, time_range=[0, 0.1]).time_range == (0, 0.1)


@pytest.mark.parametrize("number", [-1, 1.5, "abc"])
def test_groups_are_whole_numbers(number: object) -> None:
    with pytest.raises(ValueError, match="groups: 'Car' must be a whole number"):
        augment.GroundTruthSampling({"Car": number}, {})
