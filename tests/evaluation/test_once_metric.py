"""ONCE's metric: rules by hand, and random frames against its definition written plainly, with shapely's overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.evaluation.once import CLASSES, OVERLAPS, RANGES, Config, OnceResult, evaluate, pick_thresholds
from pcdet_ext.structures import Detections, Targets

CAR = [4.5, 1.9, 1.6]


def truth(*boxes: list[float], names: tuple[str, ...] = ()) -> Targets:
    return Targets.of_names(np.array(boxes, float).reshape(-1, 7), names or ("Car",) * len(boxes))


def found(*boxes: list[float], scores: list[float] | None = None, names: tuple[str, ...] = ()) -> Detections:
    names = names or ("Car",) * len(boxes)
    labels = np.array([CLASSES.index(name) for name in names], np.int64)
    given_scores = np.array(scores if scores is not None else np.linspace(0.9, 0.1, len(boxes)))
    return Detections(np.array(boxes, float).reshape(-1, 7), given_scores, labels, CLASSES)


def car(x: float, heading: float = 0.0, y: float = 0.0) -> list[float]:
    return [x, y, 0.0, *CAR, heading]


def ap(result: OnceResult, name: str = "Vehicle", distance: str = "overall") -> float:
    return result.values[f"AP {name}/{distance}"]


def test_half_of_what_is_labelled_gives_half_the_precision() -> None:
    assert ap(evaluate([truth(car(5), car(20))], [found(car(5))])) == pytest.approx(50)
    assert ap(evaluate([truth(car(5), car(20))], [found(car(5), car(20), car(40))])) == pytest.approx(100)
    assert ap(evaluate([truth(car(5), car(20))], [found(car(40), car(20), car(5))])) == pytest.approx(100 * 2 / 3)
    assert ap(evaluate([truth(car(5))], [found()])) == 0


def test_headings_must_agree_to_a_right_angle() -> None:
    back = [truth(car(5, 3.0))], [found(car(5, 3.0 - np.pi))]
    assert ap(evaluate(*back)) == 0
    assert ap(evaluate(*back, Config(heading=False))) == pytest.approx(100)
    assert ap(evaluate([truth(car(5, 3.1))], [found(car(5, 3.1 - 2 * np.pi))])) == pytest.approx(100)


def test_vehicles_count_together_unless_told_apart() -> None:
    frames = [truth(car(5), car(20), names=("Car", "Bus"))], [found(car(5), car(20), names=("Truck", "Bus"))]
    assert set(evaluate(*frames).classes) == {"Vehicle", "Pedestrian", "Cyclist"}
    assert ap(evaluate(*frames)) == pytest.approx(100)
    apart = evaluate(*frames, Config(superclass=False))
    assert [ap(apart, name) for name in ("Car", "Bus", "Truck")] == pytest.approx([0, 100, 0])
    assert apart.score == pytest.approx(100 / 5)
    with pytest.raises(ValueError, match=r"measured together, and Bus is not one of the classes"):
        Config(("Car", "Truck"))
    with pytest.raises(ValueError, match=r"ONCE has no class 'Van'"):
        Config(("Van",))


def test_boxes_beyond_a_range_may_match_but_do_not_count() -> None:
    near, far = car(29.9), car(60)
    result = evaluate([truth(near, far)], [found(car(30.1), far)])
    assert [ap(result, distance=d) for d in RANGES] == pytest.approx([100, 0, 0, 100])
    assert result.curves["Vehicle", "0-30m"].truths == 1
    assert result.curves["Vehicle", "30-50m"].detections == 1
    assert not result.curves["Vehicle", "30-50m"].precision.any()


def test_other_classes_take_nothing_unless_as_published() -> None:
    frames = [truth(car(30.2), car(29.9), names=("Pedestrian", "Car"))], [found(car(29.9))]
    assert ap(evaluate(*frames), distance="0-30m") == pytest.approx(100)
    assert ap(evaluate(*frames, Config(published=True)), distance="0-30m") == 0


def test_the_table_has_all_ranges() -> None:
    lines = evaluate([truth(car(5), car(40))], [found(car(5))]).table().splitlines()
    assert lines[0].split() == ["AP", "in", "percent", *RANGES]
    assert lines[1].split() == ["Vehicle", "50.00", "100.00", "0.00", "0.00"]
    assert lines[-1].split() == ["mAP", "16.67", "33.33", "0.00", "0.00"]


def test_scores_are_picked_at_every_fiftieth_of_the_recall() -> None:
    scores = np.arange(200, 0, -1.0)
    assert pick_thresholds(scores, 200)[:3] == [200, 197, 193]
    assert len(pick_thresholds(scores, 200)) == 51
    assert len(pick_thresholds(scores, 400)) == 26
    assert pick_thresholds(np.array([0.5]), 1) == [0.5] * 51


@st.composite
def frames(draw: st.DrawFn) -> tuple[list[Targets], list[Detections]]:
    """Frames of labelled boxes and of detections near to them, some of other classes and turned around."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labelled, detected = [], []
    for _ in range(draw(st.integers(1, 3))):
        count, more = int(rng.integers(0, 9)), int(rng.integers(0, 14))
        boxes = np.column_stack(
            [
                rng.uniform(20, 60, count),
                rng.uniform(-3, 3, (count, 2)),
                np.tile(CAR, (count, 1)),
                rng.uniform(-4, 4, count),
            ]
        )
        own = rng.integers(0, max(count, 1), more) if count else np.zeros(0, int)
        near = boxes[own] + rng.normal(0, 0.12, (len(own), 7)) * [3, 1, 1, 1, 1, 1, 1]
        near[:, 6] += rng.choice([0, 0, 0, np.pi], len(own))
        labelled.append(Targets.of_names(boxes, [CLASSES[i] for i in rng.integers(0, 5, count)]))
        scores = np.round(rng.random(len(own)), 1)  # with ties
        detected.append(Detections(near, scores, rng.integers(0, 5, len(own)), CLASSES))
    return labelled, detected


@settings(max_examples=12, deadline=None)
@given(frames(), st.booleans(), st.booleans(), st.booleans())
def test_random_frames_agree_with_the_definition(
    case: tuple[list[Targets], list[Detections]], superclass: bool, heading: bool, published: bool
) -> None:
    labelled, detected = case
    config = Config(superclass=superclass, heading=heading, published=published)
    result = evaluate(labelled, detected, config)
    for name, members in config.groups.items():
        for distance, (low, high) in RANGES.items():
            expected = defined_ap(labelled, detected, members, OVERLAPS[name], low, high, heading, published)
            assert ap(result, name, distance) == pytest.approx(expected, abs=1e-9), (name, distance)


def defined_ap(
    labelled: list[Targets],
    detected: list[Detections],
    members: tuple[str, ...],
    least: float,
    low: float,
    high: float,
    heading: bool,
    published: bool,
) -> float:
    """AP in percent, frame by frame with whole matrices and Python's own numbers."""

    def flags(boxes: np.ndarray, names: list[str]) -> list[int]:
        out = []
        for box, name in zip(boxes, names, strict=True):
            outside = not low <= float(np.sqrt((box[:3] ** 2).sum())) < high
            own = name in members
            out.append(1 if outside and (own or published) else 0 if own else -1)
        return out

    tables = []
    for truth_frame, found_frame in zip(labelled, detected, strict=True):
        a, b = np.asarray(truth_frame.boxes), np.asarray(found_frame.boxes)
        iou = np.array([[shared_volume(x, y) for y in b] for x in a]).reshape(len(a), len(b))
        if heading:
            cos = np.cos(a[:, None, 6] - b[None, :, 6])
            iou = np.where(cos >= 0, iou, 0)
        truths, founds = flags(a, list(truth_frame.names)), flags(b, list(found_frame.names))
        tables.append((iou, truths, founds, [float(s) for s in found_frame.scores]))
    total = sum(flag == 0 for _, truths, _, _ in tables for flag in truths)
    scores = sorted((s for table in tables for s in first_pass(*table, least)), reverse=True)
    precision = [0.0] * 51
    for place, threshold in enumerate(pick_thresholds(np.array(scores), total) if scores else []):
        counts = np.sum([second_pass(*table, least, threshold) for table in tables], axis=0)
        precision[place] = counts[0] / counts.sum() if counts.sum() else 0.0
    return sum(max(precision[place:]) for place in range(1, 51)) * 2


def shared_volume(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    areas = [
        shapely.affinity.rotate(shapely.box(x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2), heading, use_radians=True)
        for x, y, _, dx, dy, _, heading in (a, b)
    ]
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = areas[0].intersection(areas[1]).area * max(height, 0)
    return float(shared / (a[3:6].prod() + b[3:6].prod() - shared))


def first_pass(iou: np.ndarray, truths: list[int], founds: list[int], scores: list[float], least: float) -> list[float]:
    taken: set[int] = set()
    out = []
    for row, flag in enumerate(truths):
        fits = [d for d in range(len(founds)) if founds[d] >= 0 and d not in taken and iou[row, d] > least]
        if flag < 0 or not fits:
            continue
        best = max(fits, key=lambda d: (scores[d], -d))
        taken.add(best)
        if flag == 0 and founds[best] == 0:
            out.append(scores[best])
    return out


def second_pass(
    iou: np.ndarray, truths: list[int], founds: list[int], scores: list[float], least: float, threshold: float
) -> tuple[int, int]:
    taken: set[int] = set()
    true = 0
    for row, flag in enumerate(truths):
        fits = [d for d in range(len(founds)) if d not in taken and scores[d] >= threshold and iou[row, d] > least]
        valid, ignored = ([d for d in fits if founds[d] == kind] for kind in (0, 1))
        if flag < 0 or not valid + ignored:
            continue
        best = max(valid, key=lambda d: (iou[row, d], -d)) if valid else ignored[0]
        taken.add(best)
        true += flag == 0 and founds[best] == 0
    false = sum(founds[d] == 0 and d not in taken and scores[d] >= threshold for d in range(len(founds)))
    return true, false
