"""Waymo detection metrics against a brute-force matching with SciPy, and rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pcdet_ext.evaluation.compiled import assign
from pcdet_ext.evaluation.waymo import evaluate
from pcdet_ext.evaluation.waymo_objects import Config, Objects, benchmark_cutoffs
from pcdet_ext.evaluation.waymo_result import average_precision
from pcdet_ext.ops import iou_3d


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    place = np.column_stack([rng.uniform(0, 8, (count, 2)), np.zeros(count)])
    size = rng.uniform([3, 1.5, 1.4], [5, 2.2, 2], (count, 3))
    return np.column_stack([place, size, rng.uniform(-4, 4, count)]).astype(np.float32)


def both(rng: np.random.Generator, frames: int, count: int) -> tuple[Objects, Objects]:
    """Ground truth, and predictions that are near copies of it and others."""
    truth = boxes(rng, count)
    found = np.concatenate([truth + rng.normal(0, 0.1, truth.shape).astype(np.float32), truth, boxes(rng, count)])
    frame, kind = rng.integers(0, frames, count), rng.integers(1, 3, count)
    tripled = np.tile(frame, 3), np.tile(kind, 3)
    score = (rng.integers(0, 20, 3 * count) / 20).astype(np.float32)
    zones = rng.random(3 * count) < 0.2
    predictions = Objects.predictions(*tripled, found, score, zones)
    return Objects.ground_truth(frame, kind, truth, rng.integers(1, 3, count)), predictions


def brute_counts(
    truth: Objects, found: Objects, kind: int, threshold: float, cutoff: float
) -> tuple[int, int, list[int]]:
    true, false, missed = 0, 0, [0, 0]
    for frame in np.unique(np.concatenate([truth.frame, found.frame])):
        a = found.select((found.frame == frame) & (found.type == kind) & (found.score >= np.float32(cutoff)))
        b = truth.select((truth.frame == frame) & (truth.type == kind))
        iou = iou_3d(*(torch.from_numpy(o.boxes.astype(np.float64)) for o in (a, b))).numpy().astype(np.float32)
        weight = np.where(iou >= np.float32(threshold), np.rint(iou * np.float32(1e6)), 0)
        pairs = [
            (i, j) for i, j in zip(*linear_sum_assignment(-weight), strict=True) if iou[i, j] >= np.float32(threshold)
        ]
        true += len(pairs)
        matched = [i for i, _ in pairs]
        false += sum(1 for i in range(len(a)) if i not in matched and not a.in_no_label_zone[i])
        left = [j for j in range(len(b)) if j not in [j for _, j in pairs]]
        for level in (1, 2):
            missed[level - 1] += sum(1 for j in left if b.difficulty[j] <= level)
    return true, false, missed


@given(st.integers(0, 10**6), st.integers(0, 14))
@settings(max_examples=12, deadline=None)
def test_counts_equal_brute_force(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = both(rng, frames=2, count=count)
    curves = evaluate(truth, found, Config(breakdowns=("OBJECT_TYPE",))).curves
    for name, kind, threshold in (("VEHICLE", 1, 0.7), ("PEDESTRIAN", 2, 0.5)):
        one, two = (curves[f"OBJECT_TYPE_TYPE_{name}_LEVEL_{level}"] for level in (1, 2))
        for k in (0, 30, 50, 77, 100):
            true, false, missed = brute_counts(truth, found, kind, threshold, benchmark_cutoffs()[k])
            assert (one.true_positives[k], one.false_positives[k]) == (true, false)
            assert [one.false_negatives[k], two.false_negatives[k]] == missed


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_assignments_are_the_best(rows: int, columns: int, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 5, (rows, columns)).astype(np.float64)
    chosen = assign(weights)
    made = np.flatnonzero(chosen >= 0)
    assert len(made) == len(set(chosen[made])) == min(rows, columns)
    best = linear_sum_assignment(weights, maximize=True)
    assert weights[made, chosen[made]].sum() == weights[best].sum()


def test_perfect_predictions_have_everything() -> None:
    truth, _ = both(np.random.default_rng(0), 3, 20)
    found = Objects.predictions(truth.frame, truth.type, truth.boxes, np.full(len(truth), 0.5, np.float32))
    curve = evaluate(truth, found).curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2"]
    assert (curve.ap, curve.aph) == (1.0, pytest.approx(1.0, abs=1e-6))


def test_a_heading_that_is_opposite_counts_for_ap_alone() -> None:
    truth = Objects.ground_truth(
        np.zeros(1), np.ones(1, np.int64), np.array([[0, 0, 0, 4, 2, 1.5, 0]], np.float32), np.ones(1)
    )
    turned = truth.boxes + np.array([0, 0, 0, 0, 0, 0, np.pi], np.float32)
    found = Objects.predictions(truth.frame, truth.type, turned, np.ones(1, np.float32))
    curve = evaluate(truth, found).curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"]
    assert (curve.ap, round(curve.aph, 5)) == (1.0, 0.0)


def test_nothing_on_a_side_is_no_error() -> None:
    truth, found = both(np.random.default_rng(1), 2, 5)
    none_found, none_there = found.select(np.zeros(len(found), bool)), truth.select(np.zeros(len(truth), bool))
    for sides in ((truth, none_found), (none_there, found), (none_there, none_found)):
        assert set(evaluate(*sides).values.values()) == {0.0}


def test_numbers_that_are_not_finite_are_refused() -> None:
    truth, found = both(np.random.default_rng(2), 2, 5)
    found.boxes[0, 0] = np.nan
    with pytest.raises(ValueError, match="boxes and scores of the predictions must be finite"):
        evaluate(truth, found)


def test_steep_ends_of_a_curve_count_little() -> None:
    """One point at recall 0.5 and precision 1: the area up to there; one at recall 0: nothing."""
    assert average_precision(np.array([0.5], np.float32), np.array([1.0], np.float32)) == pytest.approx(0.5)
    assert average_precision(np.array([0.0], np.float32), np.array([1.0], np.float32)) == 0


def test_pairs_that_face_elsewhere_are_left_out_of_all_counts() -> None:
    """Three vehicles, each found: the same way, across and the other way; then nothing else matches what is left."""
    boxes = np.array([[10 * i, 0, 0, 4, 4, 1.5, 0] for i in range(3)], np.float32)
    turned = boxes + np.array([[0] * 6 + [turn] for turn in (0, np.pi / 2, np.pi)], np.float32)
    frame, kind = np.zeros(3, np.int64), np.ones(3, np.int64)
    truth = Objects.ground_truth(frame, kind, boxes, np.ones(3, np.int64))
    found = Objects.predictions(frame, kind, turned, np.ones(3, np.float32))
    for limit, left, heading in ((-1.0, 3, 1.5), (0.25, 2, 1.5), (0.75, 1, 1.0)):
        config = Config(breakdowns=("OBJECT_TYPE",), min_heading_accuracy=limit)
        curve = evaluate(truth, found, config).curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"]
        assert (curve.true_positives[-1], curve.false_positives[-1], curve.false_negatives[-1]) == (left, 0, 0)
        assert curve.heading[-1] == pytest.approx(heading, abs=1e-6)


def test_low_precision_counts_as_none_and_wide_gaps_may_be_crossed() -> None:
    """One of two vehicles is found with score 0.9, the other and three false ones with 0.1."""
    boxes = np.array([[10 * i, 0, 0, 4, 2, 1.5, 0] for i in range(5)], np.float32)
    frame, kind = np.zeros(5, np.int64), np.ones(5, np.int64)
    truth = Objects.ground_truth(frame[:2], kind[:2], boxes[:2], np.ones(2, np.int64))
    found = Objects.predictions(frame, kind, boxes, np.array([0.9, *[0.1] * 4], np.float32))

    def ap(**settings: float) -> float:
        config = Config(breakdowns=("OBJECT_TYPE",), **settings)
        return evaluate(truth, found, config).curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"].ap

    # From recall 0.5 (precision 1) to 1 (precision 0.4): 0.4 up to the last step, which is one trapezoid.
    assert ap() == pytest.approx(0.5 + 0.45 * 0.4 + 0.05 * 0.7, abs=1e-5)
    assert ap(recall_step=1.0) == pytest.approx(0.5 + 0.5 * 0.7, abs=1e-5)
    assert ap(min_precision=0.5) == pytest.approx(0.5 + 0.05 * 0.5, abs=1e-5)
