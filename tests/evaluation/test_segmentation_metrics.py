"""Intersection over union and panoptic quality of points, against plain sets of points."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.cli.command import main
from pcdet_ext.data import semantickitti
from pcdet_ext.evaluation.panoptic import PanopticCounts, match_segments
from pcdet_ext.evaluation.segmentation import SegmentationResult, confusion_matrix, intersection_over_union
from pcdet_ext.structures import Array

CLASSES = 4


def segments_of(labels: list[int], numbers: list[int], counted: list[bool]) -> dict[int, list[set[int]]]:
    """The segments of each class as sets of points."""
    found: dict[tuple[int, int], set[int]] = {}
    for point, key in enumerate(zip(labels, numbers, strict=True)):
        if counted[point] and key[0] >= 0:
            found.setdefault(key, set()).add(point)
    return {c: [s for (label, _), s in found.items() if label == c] for c in range(CLASSES)}


def brute_force(truth: tuple[list[int], list[int]], found: tuple[list[int], list[int]], least: int) -> list[tuple]:
    """(sum of IoU, matched, wrong, missed) of each class by comparing every pair of segments."""
    counted = [label >= 0 for label in truth[0]]
    sides = [segments_of(*side, counted) for side in (truth, found)]
    rows = []
    for c in range(CLASSES):
        pairs = [(a, b) for a in sides[0][c] for b in sides[1][c] if len(a & b) / len(a | b) > 0.5]
        missed = [a for a in sides[0][c] if all(a is not p for p, _ in pairs) and len(a) >= least]
        wrong = [b for b in sides[1][c] if all(b is not p for _, p in pairs) and len(b) >= least]
        rows.append((sum(len(a & b) / len(a | b) for a, b in pairs), len(pairs), len(wrong), len(missed)))
    return rows


def frame(points: int) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    labels = st.lists(st.integers(-1, CLASSES - 1), min_size=points, max_size=points)
    return st.tuples(labels, st.lists(st.integers(0, 2), min_size=points, max_size=points))


@given(st.integers(0, 40).flatmap(lambda n: st.tuples(frame(n), frame(n))), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_segments_are_matched_as_by_brute_force(sides: tuple, least: int) -> None:
    truth, found = sides
    arrays = [tuple(np.array(column, np.int64) for column in side) for side in sides]
    counts = match_segments(*arrays, CLASSES, least)
    rows = np.array(brute_force(truth, found, least))
    np.testing.assert_allclose(counts.overlap, rows[:, 0], atol=1e-12)
    np.testing.assert_array_equal(np.stack([counts.matched, counts.wrong, counts.missed], 1), rows[:, 1:])
    for c, (overlap, matched, wrong, missed) in enumerate(rows.tolist()):
        weight = matched + (wrong + missed) / 2
        expected = overlap / weight if weight else math.nan
        assert counts.quality()[c] == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 40).flatmap(lambda n: st.tuples(frame(n), frame(n))))
@settings(max_examples=100, deadline=None)
def test_intersection_over_union_as_by_sets(sides: tuple) -> None:
    truth, found = (np.array(side[0], np.int64) for side in sides)
    iou = intersection_over_union(confusion_matrix(truth, found, CLASSES))
    for c in range(CLASSES):
        counted = {i for i, label in enumerate(truth.tolist()) if label >= 0}
        own = {i for i in counted if truth[i] == c}
        other = {i for i in counted if found[i] == c}
        expected = len(own & other) / len(own | other) if own | other else math.nan
        assert iou[c] == pytest.approx(expected, nan_ok=True)


def test_labels_that_are_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match="found goes from 0 to 4, there are 4 classes"):
        confusion_matrix(np.array([0, 1]), np.array([0, 4]), CLASSES)
    with pytest.raises(ValueError, match=r"must be \[N\] both, got \[2\] and \[3\]"):
        confusion_matrix(np.zeros(2, np.int64), np.zeros(3, np.int64), CLASSES)
    with pytest.raises(ValueError, match="one entry per point"):
        match_segments((np.zeros(2), np.zeros(2)), (np.zeros(2), np.zeros(3)), CLASSES)


def counts_of(*rows: tuple[float, int, int, int]) -> PanopticCounts:
    columns = np.array(rows).T
    return PanopticCounts(columns[0], *(column.astype(np.int64) for column in columns[1:]))


def test_means_and_the_table() -> None:
    confusion = np.array([[8, 2, 0, 0], [0, 5, 0, 5], [0, 0, 0, 0]])
    panoptic = counts_of((1.6, 2, 1, 1), (0.0, 0, 0, 0), (0.0, 0, 0, 0))
    result = SegmentationResult.of(["car", "road", "tree"], ["car"], confusion, panoptic)
    iou = [0.8, 5 / 12]
    assert result.values["mIoU"] == pytest.approx(np.mean(iou))
    assert result.values["accuracy"] == pytest.approx(13 / 20)
    assert result.values["PQ"] == pytest.approx(1.6 / 3)  # of the class that has segments
    assert result.values["PQ†"] == pytest.approx((1.6 / 3 + 5 / 12) / 2)
    assert result.values["SQ"] == pytest.approx(0.8)
    assert result.values["RQ"] == pytest.approx(2 / 3)
    assert result.score == result.values["PQ"]
    assert "IoU/tree" not in result.values
    assert "left out of the means: tree" in result.table()
    assert "car        80.00   53.33   80.00   66.67          10" in result.table()
    zero = SegmentationResult.of(["car", "road", "tree"], ["car"], confusion, panoptic, published=True)
    assert zero.values["mIoU"] == pytest.approx(sum(iou) / 3)
    assert zero.values["PQ"] == pytest.approx(1.6 / 9)
    assert "counted as 0: tree" in zero.table()
    assert zero.values["accuracy"] == pytest.approx(13 / 15)  # the five points without a class are left out
    assert SegmentationResult.of(["car", "road", "tree"], [], confusion).score == pytest.approx(np.mean(iou))


def write_side(root: Path, kind: str, ids: Array, instances: Array) -> None:
    semantickitti.write_labels(root / "sequences" / "08" / kind / "000000.label", ids, instances)


def accuracy_of_the_api(truth: Array, found: Array) -> float:
    """Accuracy of classes from 1, 0 ignored, as semantic-kitti-api defines it: tp / (tp + fp) over counted classes."""
    counted = truth > 0
    right = sum(int(((truth == c) & (found == c) & counted).sum()) for c in range(1, 20))
    wrong = sum(int(((truth != c) & (found == c) & counted).sum()) for c in range(1, 20))
    return right / (right + wrong)


def test_files_of_any_code_base_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.repeat([10, 252, 40, 60, 0], [60, 60, 100, 20, 10])
    instances = np.repeat([1, 2, 0, 0, 0], [60, 60, 100, 20, 10])
    write_side(tmp_path / "truth", "labels", ids, instances)
    write_side(tmp_path / "found", "predictions", np.where(ids == 252, 10, ids), instances)
    command = ["evaluate", "semantickitti", "--ground-truth", str(tmp_path / "truth"), "--results"]
    assert main([*command, str(tmp_path / "found"), "panoptic=true", "--json", str(tmp_path / "a.json")]) == 0
    assert "PQ†: 100.00" in capsys.readouterr().out
    merged = np.where(ids == 60, 40, ids)  # lane markings found as road, which they are: one segment, not two
    write_side(tmp_path / "found", "predictions", merged, instances)
    result = semantickitti.semantickitti(tmp_path / "truth", tmp_path / "found", panoptic=True)
    assert (result.values["PQ"], result.values["mIoU"]) == (1.0, 1.0)
    published = semantickitti.semantickitti(tmp_path / "truth", tmp_path / "found", panoptic=True, published=True)
    assert published.values["PQ/road"] == pytest.approx(100 / 120)
    assert published.values["mIoU"] == pytest.approx(2 / 19)
    write_side(tmp_path / "found", "predictions", merged[:-1], instances[:-1])
    assert main([*command, str(tmp_path / "found")]) == 1
    assert "000000.label: 249 labels for the 250 points" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "truth")]) == 2
    assert "no results" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "found"), "--classes", "cra"]) != 0


def test_the_published_accuracy_leaves_out_points_without_a_class(tmp_path: Path) -> None:
    ids, instances = np.repeat([10, 40, 0], [100, 140, 10]), np.zeros(250, np.int64)
    found = ids.copy()
    found[:30], found[30:40], found[245:] = 0, 40, 10  # no class, a wrong one, and one where the truth is ignored
    write_side(tmp_path / "truth", "labels", ids, instances)
    write_side(tmp_path / "found", "predictions", found, instances)
    classes = np.zeros(41, np.int64)
    classes[[10, 40]] = 1, 9
    given = tmp_path / "truth", tmp_path / "found"
    published = semantickitti.semantickitti(*given, published=True).values["accuracy"]
    assert published == pytest.approx(accuracy_of_the_api(classes[ids], classes[found])) == pytest.approx(200 / 210)
    assert semantickitti.semantickitti(*given).values["accuracy"] == pytest.approx(200 / 240)
