"""Rotated average precision: by hand, against a slow independent computation, and its options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import box as rectangle

from pcdet_ext.evaluation.rotated import RotatedEvaluator, evaluate, usual_overlap
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Sample, Targets

Array = np.ndarray
NAMES = ("Truck", "Person")


def detections(boxes: Array, scores: Array, labels: Array) -> Detections:
    return Detections(boxes, scores, labels, NAMES)


def slow_iou(a: Array, b: Array, in_3d: bool) -> float:
    """Intersection over union by polygons."""
    shapes = [
        affinity.translate(
            affinity.rotate(rectangle(-x[3] / 2, -x[4] / 2, x[3] / 2, x[4] / 2), np.degrees(x[6])), *x[:2]
        )
        for x in (a, b)
    ]
    shared = shapes[0].intersection(shapes[1]).area
    volumes = [x[3] * x[4] for x in (a, b)]
    if in_3d:
        height = min(x[2] + x[5] / 2 for x in (a, b)) - max(x[2] - x[5] / 2 for x in (a, b))
        shared *= max(height, 0)
        volumes = [v * x[5] for v, x in zip(volumes, (a, b), strict=True)]
    return shared / (sum(volumes) - shared)


def slow_ap(truth: list[Array], found: list[Array], scores: list[Array], least: float, in_3d: bool) -> float:
    """AP40 by its definition: one detection after the other, and for each recall the best precision from there on."""
    queue = sorted(((s, f, d) for f, of in enumerate(scores) for d, s in enumerate(of)), key=lambda q: -q[0])
    free = [set(range(len(t))) for t in truth]
    total, hits, curve = sum(map(len, truth)), 0, []
    for i, (_, f, d) in enumerate(queue, 1):
        overlaps = {t: slow_iou(found[f][d], truth[f][t], in_3d) for t in free[f]}
        best = max(overlaps, key=lambda t: overlaps[t], default=None)
        if best is not None and overlaps[best] >= least:
            free[f].remove(best)
            hits += 1
        curve.append((hits / total, hits / i))
    points = [max((p for r, p in curve if r >= k / 40 - 1e-9), default=0.0) for k in range(1, 41)]
    return 100 * sum(points) / 40


def random_frames(rng: np.random.Generator) -> tuple[list[Array], list[Array], list[Array]]:
    truth, found, scores = [], [], []
    for _ in range(6):
        count = int(rng.integers(0, 6))
        low, high = np.array([[-8, -8, -1, 2, 2, 2, -3], [8, 8, 1, 5, 5, 5, 3]])
        boxes = rng.uniform(low, high, (count, 7))
        near = boxes[rng.random(count) < 0.8]
        near = np.concatenate([near, near[:1], boxes[:0]]) + rng.normal(0, 0.15, (len(near) + len(near[:1]), 7))
        truth.append(boxes)
        found.append(near)
        scores.append(rng.permutation(100)[: len(near)] / 100)
    return truth, found, scores


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_definition(seed: int) -> None:
    truth, found, scores = random_frames(np.random.default_rng(seed))
    targets = [Targets.of_names(t, ["Truck"] * len(t)) for t in truth]
    results = [detections(f, s, np.zeros(len(f), int)) for f, s in zip(found, scores, strict=True)]
    result = evaluate(targets, results, ["Truck"], {"Truck": 0.6})
    for metric in ("bev", "3d"):
        expected = slow_ap(truth, found, scores, 0.6, metric == "3d")
        assert 0 < expected < 100
        assert result.values[f"Truck {metric} AP40"] == pytest.approx(expected, abs=1e-9)
    assert result.score == result.values["Truck 3d AP40"]


BOX = np.array([[0, 0, 0, 4, 2, 2, 0.3], [10, 0, 0, 4, 2, 2, 0], [0, 10, 0, 4, 2, 2, 2]], np.float32)


def test_finding_everything_is_100_also_of_few_objects() -> None:
    truth = [Targets.of_names(BOX, ["Truck"] * 3)]
    result = evaluate(truth, [detections(BOX, np.array([0.5, 0.4, 0.3]), np.zeros(3, int))], NAMES)
    assert result.curves["Truck"]["3d"].ap == 100
    assert result.score == 100  # nobody labelled a Person
    assert "Person" in result.table()
    assert result.to_json()["classes"]["Person"]["3d"]["AP40"] is None
    assert [plot.name for plot in result.plots()] == ["Truck"]
    assert all(len(x) == len(y) == 40 for x, y in result.plots()[0].curves.values())


def test_by_hand() -> None:
    """The second of three detections is wrong: precision 1 up to recall 1/3, then 2/3 up to 2/3, then nothing."""
    truth = [Targets.of_names(BOX, ["Truck"] * 3)]
    boxes = np.concatenate([BOX[:1], BOX[:1], BOX[1:2]])  # found twice: the second time is wrong
    result = evaluate(truth, [detections(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int))], ["Truck"])
    assert result.curves["Truck"]["bev"].ap == pytest.approx(100 * (13 * 1 + 13 * 2 / 3) / 40)


def test_frames_without_objects_count_what_is_found_there() -> None:
    none = Targets.of_names(np.zeros((0, 7), np.float32), [])
    truth = Targets.of_names(BOX[:1], ["Truck"])
    one = detections(BOX[:1], np.array([0.5]), np.zeros(1, int))
    sure = detections(BOX[:1], np.array([0.9]), np.zeros(1, int))
    evaluator = RotatedEvaluator(["Truck"], lambda s: s.targets, lambda *_: Path(), ["a", "b"])
    assert evaluator.result() is None
    points = np.zeros((0, 3), np.float32)
    evaluator.add(Sample(points, ("x", "y", "z"), "a", none), sure)
    other = RotatedEvaluator(["Truck"], lambda s: s.targets, lambda *_: Path(), ["a", "b"])
    other.add(Sample(points, ("x", "y", "z"), "b", truth), one)
    evaluator.merge(other.state())
    result = evaluator.result()
    assert result is not None
    assert result.frames == 2
    assert result.score == pytest.approx(50)


def test_nothing_to_measure_says_so() -> None:
    none = Targets.of_names(np.zeros((0, 7), np.float32), [])
    result = evaluate([none], [detections(BOX, np.ones(3), np.zeros(3, int))], ["Truck"])
    assert result.score == 0
    assert "nothing to measure" in result.table()
    assert result.values == {}


def test_the_default_overlap_goes_by_the_length_of_the_class() -> None:
    long, short = BOX.copy(), BOX.copy()
    short[:, 3:5] = 1, 2.9
    assert usual_overlap(long) == 0.7
    assert usual_overlap(short) == 0.5
    short[:, 4] = 3.0  # the longer side counts, whichever it is
    assert usual_overlap(short) == 0.7


@pytest.mark.parametrize(
    ("overlap", "message"),
    [({"Truk": 0.5}, "did you mean 'Truck'"), ({"Truck": 0}, "above 0"), ({"Truck": 1.5}, "at most 1")],
)
def test_overlaps_that_do_not_fit(overlap: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotatedEvaluator(NAMES, lambda s: None, lambda *_: Path(), [], overlap)


def test_results_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    evaluator = RotatedEvaluator(NAMES, lambda s: None, lambda *_: Path(), ["drive/1", "2"])
    for name in ("drive/1.txt", "2.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    evaluator.check_folder(tmp_path)
    (tmp_path / "drive" / "2.txt").write_text("")
    with pytest.raises(DataError, match=r"drive/2\.txt: a result of another data set"):
        evaluator.check_folder(tmp_path)
