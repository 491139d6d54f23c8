"""Training data of the graph tracker: which object a detection is, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.graph_data import Annotations, node_features, objects_of, prepared, windows

NAMES = ("barrier", "car", "pedestrian")


def still(rows: list[tuple[str, float, float]]) -> StillBoxes:
    """From (class, x, score)."""
    box = np.zeros((len(rows), 7))
    box[:, 3:6] = (4, 2, 1.5)
    box[:, 0] = [x for _, x, _ in rows]
    label = np.array([NAMES.index(name) for name, _, _ in rows], np.int64)
    return StillBoxes(box, np.full((len(rows), 2), np.nan), label, np.array([score for *_, score in rows]))


def annotations(rows: list[tuple[str, float]], following: list[float]) -> Annotations:
    boxes = prepared(still([(name, x, 1.0) for name, x in rows]), NAMES)
    places = np.column_stack([following, np.zeros(len(rows))])
    return Annotations(boxes, 10 + np.arange(len(rows)), places, ~np.isnan(places[:, 0]))


def test_other_classes_weak_and_overlapping_detections_go() -> None:
    found = still([("car", 0, 0.3), ("barrier", 0, 0.9), ("car", 0.5, 0.8), ("pedestrian", 0, 0.2)])
    assert prepared(found, NAMES).label.tolist() == [0, 0, 1]
    assert prepared(found, NAMES, threshold=0.3).score == pytest.approx([0.3, 0.8])
    assert prepared(found, NAMES, nms=0.1).score == pytest.approx([0.8, 0.2])


def test_features_have_width_before_length_and_a_velocity() -> None:
    features = node_features(prepared(still([("pedestrian", 3, 0.5)]), NAMES))
    assert features[0].tolist() == [3, 0, 0, 2, 4, 1.5, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.5]
    assert features.dtype == np.float32


@pytest.mark.parametrize(("by_overlap", "expected"), [(True, [10, -1, -1, 11]), (False, [10, 12, -1, 11])])
def test_detections_are_objects_of_their_class(by_overlap: bool, expected: list[int]) -> None:
    """Footprints have their width along the heading here: 2 m along x."""
    found = prepared(still([("car", 0.5, 1), ("car", 12, 1), ("pedestrian", 30, 1), ("car", 20, 1)]), NAMES)
    truth = annotations([("car", 0), ("car", 20), ("car", 14), ("car", 30)], [1.0, np.nan, 14.0, 30.0])
    objects, velocity, has_next = objects_of(node_features(found), truth, by_overlap)
    assert objects.tolist() == expected
    assert has_next.tolist() == [number in (10, 12) for number in expected]
    assert velocity[0].tolist() == [1, 0]


def test_the_best_total_decides() -> None:
    found = prepared(still([("car", 1.0, 1), ("car", -0.8, 1)]), NAMES)
    truth = annotations([("car", 0), ("car", 1.9)], [0.0, 1.9])
    assert objects_of(node_features(found), truth)[0].tolist() == [11, 10]
    assert objects_of(node_features(found.select(np.zeros(0, np.int64))), truth)[0].tolist() == []


def test_windows_have_annotations_in_every_frame() -> None:
    annotated = np.array([True, True, False, True, True, True])
    assert windows(annotated, 2).tolist() == [0, 3, 4]
    assert windows(annotated, 7).tolist() == []
    with pytest.raises(ValueError, match="length must be at least 1"):
        windows(annotated, 0)
