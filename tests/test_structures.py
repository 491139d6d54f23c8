"""The objects that flow: shape checks, dense maps, groups and segments there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.structures import Detections, Groups, PointBatch, Sample, Segments, SparseVoxels, Targets, rows_of


def test_targets_refuse_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="boxes must be"):
        Targets.of_names(np.zeros((2, 8), np.float32), ("Car", "Car"))
    with pytest.raises(ValueError, match="2 boxes but 1 names"):
        Targets.of_names(np.zeros((2, 7), np.float32), ("Car",))
    with pytest.raises(ValueError, match="difficulty"):
        Targets.of_names(np.zeros((1, 7), np.float32), ("Car",), difficulty=np.zeros(2))


def test_targets_of_some_classes_are_numbered_by_them() -> None:
    boxes = np.arange(36, dtype=np.float32).reshape(4, 9)
    targets = Targets.of_names(boxes, ("Van", "Car", "Van", "Bus"), track_ids=np.arange(4))
    assert targets.names == ("Van", "Car", "Van", "Bus")
    chosen = targets.of_classes(["Car", "Tram", "Van"])
    assert (chosen.names, chosen.labels.tolist()) == (("Van", "Car", "Van"), [2, 0, 2])
    assert chosen.track_ids.tolist() == [0, 1, 2]
    assert len(targets.of_classes([])) == 0
    assert len(Targets.of_names(boxes[:0], ()).of_classes(["Car"])) == 0


def test_samples_hold_points_columns_and_point_labels_together() -> None:
    points = np.arange(8, dtype=np.float32).reshape(2, 4)
    with pytest.raises(ValueError, match=r"points must be \[N, 3\], got \[2, 4\]"):
        Sample(points, ("x", "y", "z"), "f")
    with pytest.raises(ValueError, match="2 points but 3 point labels"):
        Sample(points, ("x", "y", "z", "ring"), "f", Targets(point_labels=np.zeros(3, np.int64)))
    sample = Sample(points, ("x", "y", "z", "ring"), "f", Targets(point_labels=np.array([5, 6])))
    for keep in (np.array([False, True]), np.array([1])):
        chosen = sample.select_points(keep)
        assert (chosen.points.tolist(), chosen.targets.point_labels.tolist()) == ([[4, 5, 6, 7]], [6])


def test_targets_select_keeps_columns_together() -> None:
    names = ("a", "b", "c")
    boxes = Targets.of_names(np.arange(21, dtype=np.float32).reshape(3, 7), names, difficulty=np.array([0, 1, 2]))
    for keep in (np.array([True, False, True]), np.array([0, 2])):
        chosen = boxes.select(keep)
        assert chosen.names == ("a", "c")
        assert chosen.difficulty.tolist() == [0, 2]
        assert chosen.boxes[:, 0].tolist() == [0.0, 14.0]


def test_point_batch_from_clouds_of_different_size() -> None:
    batch = PointBatch.from_points([torch.ones(3, 4), torch.zeros(0, 4), torch.full((2, 4), 2.0)])
    assert batch.batch_index.tolist() == [0, 0, 0, 2, 2]
    assert batch.batch_size == 3
    assert batch.to("cpu").points.shape == (5, 4)
    with pytest.raises(ValueError, match="at least one"):
        PointBatch.from_points([])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_dense_equals_a_plain_loop(seed: int, batch_size: int) -> None:
    rng = np.random.default_rng(seed)
    grid = tuple(int(n) for n in rng.integers(1, 5, 3))
    cells = int(np.prod(grid)) * batch_size
    flat = rng.permutation(cells)[: rng.integers(0, cells + 1)]
    coords = np.stack(np.unravel_index(flat, (batch_size, *grid)), 1).astype(np.int32).reshape(-1, 4)
    features = rng.normal(size=(len(coords), 2))
    dense = SparseVoxels(torch.from_numpy(features), torch.from_numpy(coords), grid, batch_size).dense()
    expected = np.zeros((batch_size, 2, *grid))
    for (b, z, y, x), feature in zip(coords, features, strict=True):
        expected[b, :, z, y, x] = feature
    np.testing.assert_array_equal(dense.numpy(), expected)


def test_plans_are_made_once_and_shared_by_other_features() -> None:
    voxels = SparseVoxels(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int32), (1, 1, 1), 1)
    made = []
    for v in (voxels, voxels.with_features(torch.ones(2, 5))):
        assert v.plan("order", lambda v: made.append(1) or len(v)) == 2
    assert made == [1]
    with pytest.raises(ValueError, match="coords must be"):
        SparseVoxels(torch.zeros(2, 3), torch.zeros(2, 3), (1, 1, 1), 1)
    with pytest.raises(ValueError, match="features must be"):
        SparseVoxels(torch.zeros(1, 3), torch.zeros(2, 4), (1, 1, 1), 1)


def test_groups_and_segments_there_and_back() -> None:
    x = torch.arange(10.0).view(5, 2)
    groups = Groups(torch.tensor([[4, 2, 0], [1, 3, 3]]), torch.tensor([2, 3, 1, 4, 0]))
    torch.testing.assert_close(groups.scatter(groups.gather(x)), x)
    order = torch.tensor([3, 0, 4, 1, 2])
    segments = Segments(order, order.argsort(), torch.tensor([0, 2, 5]))
    torch.testing.assert_close(segments.scatter(segments.gather(x)), x)


def test_detections_views() -> None:
    found = Detections(torch.zeros(3, 7), torch.tensor([0.9, 0.2, 0.5]), torch.tensor([1, 0, 1]), ("Car", "Van"))
    assert found.names == ["Van", "Car", "Van"]
    assert found.above(0.5).names == ["Van", "Van"]
    arrays = found.numpy()
    assert isinstance(arrays.boxes, np.ndarray)
    assert arrays.numpy() is arrays
    assert arrays.above(0.5).to("cpu").scores.tolist() == found.above(0.5).scores.tolist()
    with pytest.raises(ValueError, match="3 boxes, 2 scores"):
        Detections(torch.zeros(3, 7), torch.zeros(2), torch.zeros(3), ("Car",))


def test_track_ids_stay_with_their_detections() -> None:
    ids = torch.tensor([7, 8, 9])
    found = Detections(torch.zeros(3, 7), torch.tensor([0.9, 0.2, 0.5]), torch.zeros(3), ("Car",), track_ids=ids)
    assert found.above(0.5).numpy().track_ids.tolist() == [7, 9]
    assert found.numpy().to("cpu").track_ids.tolist() == [7, 8, 9]
    assert Detections(torch.zeros(3, 7), torch.zeros(3), torch.zeros(3), ("Car",)).select([1]).track_ids is None
    with pytest.raises(ValueError, match="3 boxes, 2 track_ids"):
        Detections(torch.zeros(3, 7), torch.zeros(3), torch.zeros(3), ("Car",), track_ids=ids[:2])


@pytest.mark.parametrize("values", [np.arange(12).reshape(4, 3), np.arange(12).reshape(3, 4).T, np.arange(4)])
def test_rows_are_those_that_indexing_gives(values: np.ndarray) -> None:
    for keep in (np.array([True, False, True, True]), np.array([3, 0, 0]), np.array([-1]), np.zeros(0, np.int64)):
        chosen = rows_of(values, keep)
        np.testing.assert_array_equal(chosen, values[keep])
        assert not np.shares_memory(chosen, values)
    for wrong in (np.array([4]), np.array([True]), np.ones(5, bool)):
        with pytest.raises(IndexError):
            rows_of(values, wrong)
