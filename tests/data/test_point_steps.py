"""Steps that choose among the points of a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data.augment.points import (
    FAR,
    BlockDropout,
    IntensityDropout,
    NewestSweeps,
    PointDropout,
    PointJitter,
    PointSampling,
    of_newest_sweeps,
    sampled_rows,
)
from pcdet_ext.data.augment.steps import AUGMENTATIONS
from pcdet_ext.structures import Sample, Targets

COLUMNS = ("x", "y", "z", "timestamp")


@settings(max_examples=60, deadline=None)
@given(near=st.integers(0, 30), far=st.integers(0, 30), number=st.integers(1, 120), seed=st.integers(0, 5))
def test_as_many_points_as_were_asked_for(near: int, far: int, number: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distance = np.concatenate([rng.uniform(0, FAR - 1, near), rng.uniform(FAR + 1, 90, far)])
    points = np.column_stack([distance, np.zeros((near + far, 2))]).astype(np.float32)
    rows = sampled_rows(points, number, rng)
    total = near + far
    assert len(rows) == (number if total else 0)
    counts = Counter(rows.tolist())
    if total and number >= total:  # everything is there, and nothing too often before all is there twice
        assert set(counts) == set(range(total))
        assert number > 2 * total or max(counts.values()) <= 2
    else:
        assert all(count == 1 for count in counts.values())
    if far < number <= total:
        assert set(range(near, total)) <= set(counts)


def test_rows_are_in_a_random_order() -> None:
    points = np.zeros((200, 3), np.float32)
    first, second = (sampled_rows(points, 200, np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(first, np.arange(200))
    assert not np.array_equal(first, second)


@given(count=st.integers(1, 6), sweeps=st.integers(0, 5), seed=st.integers(0, 9))
def test_points_of_the_newest_sweeps_stay(count: int, sweeps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sweep = rng.permutation(np.repeat(np.arange(sweeps), 4))
    ages = (0.05 * sweep + rng.uniform(-0.004, 0.004, len(sweep))).astype(np.float32)  # as clocks have it
    np.testing.assert_array_equal(of_newest_sweeps(ages, count), sweep < count)


def test_steps_keep_labels_with_their_points() -> None:
    points = np.column_stack([np.arange(6), np.zeros((6, 2)), [0, 0.1, 0, 0.2, 0.1, 0]]).astype(np.float32)
    sample = Sample(points, COLUMNS, "f", Targets(point_labels=np.arange(6)))
    newest = NewestSweeps(1)(sample, np.random.default_rng(0))
    assert newest.points[:, 0].tolist() == [0, 2, 5]
    assert newest.targets.point_labels.tolist() == [0, 2, 5]
    more = PointSampling(9)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(more.points[:, 0], more.targets.point_labels)
    with pytest.raises(ValueError, match="needs the column timestamp"):
        NewestSweeps(1)(sample.replace(point_features=("x", "y", "z", "ring")), np.random.default_rng(0))


@pytest.mark.parametrize(("name", "key"), [("PointSampling", "number"), ("NewestSweeps", "count")])
def test_wrong_settings_are_refused(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must (be at least 1|lie in .1, )"):
        AUGMENTATIONS.build(Node({"name": name, key: 0}))


def cloud(count: int = 2000) -> Sample:
    points = np.random.default_rng(3).uniform(-20, 20, (count, 4)).astype(np.float32)
    return Sample(points, ("x", "y", "z", "intensity"), "0")


def test_jitter_moves_points_a_little_and_leaves_the_rest() -> None:
    before = cloud()
    after = PointJitter(sigma=0.02, clip=0.03)(before, np.random.default_rng(0))
    offset = after.points[:, :3] - before.points[:, :3]
    assert np.abs(offset).max() <= 0.03 + 1e-5
    assert 0.015 < offset.std() < 0.02
    np.testing.assert_array_equal(after.points[:, 3], before.points[:, 3])


def test_dropout_leaves_out_a_share_below_its_most() -> None:
    shares = [1 - len(PointDropout(0.3)(cloud(), np.random.default_rng(i)).points) / 2000 for i in range(60)]
    assert max(shares) < 0.34
    assert 0.1 < np.mean(shares) < 0.2


def test_block_dropout_leaves_out_all_points_of_a_rectangle_and_no_others() -> None:
    step, areas = BlockDropout(probability=0.5, share=(0.05, 0.2)), []
    for seed in range(80):
        before = cloud()
        after = step(before, np.random.default_rng(seed))
        gone = np.array(sorted(set(map(tuple, before.points.tolist())) - set(map(tuple, after.points.tolist()))))
        if not len(gone):
            continue
        low, high = gone[:, :2].min(axis=0), gone[:, :2].max(axis=0)
        inside = ((after.points[:, :2] >= low) & (after.points[:, :2] <= high)).all(axis=1)
        assert not inside.any()
        areas.append(np.prod(high - low) / 40**2)
    assert 25 <= len(areas) <= 55
    assert 0.02 < min(areas) < max(areas) < 0.21


def test_intensity_is_lost_in_whole_cells() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-20, 20, (4000, 2)), rng.uniform(-2, 1, 4000), rng.uniform(0.1, 1, 4000)])
    before = Sample(points.astype(np.float32), ("x", "y", "z", "intensity"), "a")
    shares = []
    for seed in range(30):
        after = IntensityDropout(share=0.6, cell=5.0)(before, np.random.default_rng(seed)).points
        lost = after[:, 3] == 0
        np.testing.assert_array_equal(after[:, :3], before.points[:, :3])
        np.testing.assert_array_equal(after[~lost], before.points[~lost])
        shares.append(lost.mean())
        # The nearest neighbour of a point is in its cell or at its edge: hardly ever is one lost and the other not.
        mixed = [
            lost[np.argsort(np.hypot(*(points[:, :2] - points[k, :2]).T))[1]] != lost[k] for k in range(0, 4000, 40)
        ]
        assert np.mean(mixed) < 0.2
    assert min(shares) < 0.15
    assert 0.4 < max(shares) < 0.75
    bare = Sample(points[:, :3].astype(np.float32), ("x", "y", "z"), "a")
    assert IntensityDropout()(bare, rng) is bare


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointJitter(sigma=-1), "sigma and clip"),
        (lambda: PointDropout(1.0), "most must lie"),
        (lambda: BlockDropout(probability=2.0), "probability"),
        (lambda: IntensityDropout(share=1.5), "share must lie"),
        (lambda: IntensityDropout(cell=0.0), "cell be above 0"),
        (lambda: BlockDropout(share=(0.5, 0.1)), "share must be"),
    ],
)
def test_steps_refuse_what_makes_no_sense(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
