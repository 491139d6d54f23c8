"""The anchor head against published cases, a naive assignment, and degenerate input."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pcdet_ext.conformance.cases.openpcdet_heads  # noqa: F401  (registers the runners)
from pcdet_ext.config import ConfigError
from pcdet_ext.conformance.golden import run_case
from pcdet_ext.models.heads import HEADS, AnchorHead
from pcdet_ext.models.targets.anchors import BACKGROUND, IGNORED, AnchorSpec, assign, make_anchors
from pcdet_ext.structures import Targets

RANGE = (0.0, -4.0, -3.0, 8.0, 4.0, 1.0)
CLASSES = ("Car", "Pedestrian")
CAR = {"class_name": "Car", "sizes": [[3.9, 1.6, 1.5]], "bottom_height": -1.8, "matched": 0.6, "unmatched": 0.45}
PEDESTRIAN = CAR | {"class_name": "Pedestrian", "sizes": [[0.8, 0.6, 1.7]], "matched": 0.5, "unmatched": 0.35}


def truth(boxes: object, labels: object) -> list[Targets]:
    """Objects of each frame as heads take them."""
    return [Targets(box, label) for box, label in zip(boxes, labels, strict=True)]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(losses.values())


def make_head(**changes) -> AnchorHead:
    torch.manual_seed(0)
    node = {"name": "AnchorHead", "anchors": [CAR, PEDESTRIAN]} | changes
    return HEADS.build(node, in_channels=6, classes=CLASSES, point_cloud_range=RANGE)


def random_bev(frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, 6, 10, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", ["kitti_b2", "empty_sample", "aligncenter_l1"])
def test_reproduces_published_head(shared, case):
    report = run_case(shared / "golden" / "openpcdet" / f"anchor_head_{case}.json", grads=True)
    assert report.status == "pass", report.line()


def naive_assignment(anchors, boxes, matched, unmatched):
    """The rules of section 7 spelt out with full matrices and loops."""

    def rectangle(box):
        x, y, _, dx, dy, _, heading = box
        turn = abs(heading - math.floor(heading / math.pi + 0.5) * math.pi)
        dx, dy = (dx, dy) if turn < math.pi / 4 else (dy, dx)
        return x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2

    def overlap(a, b):
        a, b = rectangle(a), rectangle(b)
        inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        area = sum((r[2] - r[0]) * (r[3] - r[1]) for r in (a, b))
        return inter / max(area - inter, 1e-6)

    flat = anchors.reshape(-1, 7).double().tolist()
    table = [[overlap(a, b) for b in boxes.double().tolist()] for a in flat]
    highest = [max(row[g] for row in table) for g in range(len(boxes))]
    result = []
    for row in table:
        best = max(row)
        forced = any(v > 0 and abs(v - highest[g]) < 1e-9 for g, v in enumerate(row))
        if best >= matched or forced:
            result.append(row.index(best))
        else:
            result.append(BACKGROUND if best < unmatched else IGNORED)
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), centered=st.booleans())
def test_assignment_equals_naive_one(seed, count, centered):
    generator = torch.Generator().manual_seed(seed)
    spec = AnchorSpec("Car", [(2.1, 1.1, 1.5), (1.0, 0.7, 1.7)], -1.0, 0.5, 0.3, align_center=centered)
    anchors = make_anchors(spec, RANGE, (9, 11)).double()
    boxes = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    boxes[:, :2] = boxes[:, :2] * 10 - torch.tensor([1.0, 5.0])  # some lie outside the map
    boxes[:, 3:6] = boxes[:, 3:6] * 2 + 0.4
    boxes[:, 6] = boxes[:, 6] * 8 - 4
    matches = assign(anchors, boxes, spec.matched, spec.unmatched)
    label = torch.full((anchors.shape[:3].numel(),), BACKGROUND)
    label[matches.close] = IGNORED
    label[matches.positive] = matches.objects
    assert label.tolist() == naive_assignment(anchors, boxes, spec.matched, spec.unmatched)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("low", "high", "count"), [(0, 69.12, 216), (-39.68, 39.68, 248), (-75.2, 75.2, 188)])
def test_positions_of_anchors_are_published_ones_to_the_bit(low, high, count, centered):
    """Neighbours that both lie inside an object are told apart by the last bit of their overlap."""
    low, high = np.float32(low), np.float32(high)
    step = float(high - low) / (count if centered else count - 1)
    first = float(low) + (step / 2 if centered else 0)
    expected = torch.arange(first, float(high) + 1e-5, step=step, dtype=torch.float32)
    spec = AnchorSpec("Car", [[4, 2, 1.5]], -1, 0.6, 0.45, align_center=centered)
    anchors = make_anchors(spec, [float(low), float(low), -3, float(high), float(high), 1], (count, count))
    assert anchors[0, :, 0, 0].tolist() == expected.tolist()
    assert anchors[:, 0, 0, 1].tolist() == expected.tolist()


def test_anchors_lie_in_rows_columns_sizes_rotations():
    spec = AnchorSpec("Car", [(4, 2, 1.5), (1, 1, 2)], bottom_height=-1, matched=0.6, unmatched=0.4)
    anchors = make_anchors(spec, RANGE, (3, 5))
    assert anchors.shape == (3, 5, 4, 7)
    assert anchors[0, :, 0, 0].tolist() == [0, 2, 4, 6, 8]
    assert anchors[:, 0, 0, 1].tolist() == [-4, 0, 4]
    assert anchors[1, 1, :, 2].tolist() == [-0.25, -0.25, 0, 0]
    assert anchors[1, 1, :, 6].tolist() == pytest.approx([0, 1.57, 0, 1.57])


def test_match_by_3d_overlap_looks_at_height():
    spec = AnchorSpec("Car", [(2, 1, 1)], bottom_height=0, matched=0.6, unmatched=0.4, rotations=(0.0,))
    anchors = make_anchors(spec, RANGE, (5, 5))
    box = anchors[2, 2, 0][None].clone()
    assert len(assign(anchors, box, 0.6, 0.4, use_3d=True).positive) == 1
    box[0, 2] += 5
    assert len(assign(anchors, box, 0.6, 0.4, use_3d=True).positive) == 0
    assert len(assign(anchors, box, 0.6, 0.4, use_3d=False).positive) == 1


def test_decoding_its_own_targets_gives_the_objects():
    head = make_head(score_threshold=0.5, nms={"iou_threshold": 0.3})
    output = head(random_bev(1))
    boxes = torch.tensor([[3.0, 0.5, -1.0, 3.9, 1.6, 1.5, 2.5], [6.0, -2.0, -0.9, 0.8, 0.7, 1.8, -1.0]])
    targets = head.targets(output, [boxes], [torch.tensor([0, 1])])
    codes, directions = torch.zeros_like(output.codes), torch.zeros_like(output.directions)
    logits = torch.full_like(output.logits, -9.0)
    frame, anchor = targets.positive
    codes[frame, anchor] = targets.codes
    directions[frame, anchor, targets.directions] = 9
    logits[frame, anchor, targets.labels[frame, anchor]] = 9
    perfect = type(output)(logits, codes, directions, output.anchors, output.map_size)
    found = head.decode(perfect)[0]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    difference = found.boxes[order] - boxes
    difference[:, 6] = (difference[:, 6] + math.pi).remainder(2 * math.pi) - math.pi
    assert difference.abs().max() < 1e-4


def test_rotations_may_differ_between_classes():
    head = make_head(anchors=[CAR, PEDESTRIAN | {"rotations": [0.0]}])
    assert head(random_bev()).logits.shape == (2, 10 * 12 * 3, 2)


def test_frames_without_objects_and_empty_batches_have_finite_gradients():
    head = make_head()
    output = head(random_bev())
    nothing = torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)
    losses = head.loss(output, truth([nothing[0]] * 2, [nothing[1]] * 2))
    total(losses).backward()
    assert losses["box"] == 0
    assert losses["direction"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_objects_are_left_out(bad):
    head = make_head()
    output = head(random_bev(1))
    good = torch.tensor([[3.0, 0.5, -1.0, 3.9, 1.6, 1.5, 0.1]])
    broken = torch.tensor([[bad, 0, 0, 3.9, 1.6, 1.5, 0], [3, 0, 0, 0, 1.6, 1.5, 0]])
    alone = total(head.loss(output, truth([good], [torch.tensor([0])])))
    together = total(head.loss(output, truth([torch.cat([broken, good])], [torch.tensor([0, 0, 0])])))
    assert together == alone


def test_no_detection_is_an_empty_result():
    found = make_head(score_threshold=0.9999).decode(make_head()(random_bev()))
    assert [len(d) for d in found] == [0, 0]
    assert found[0].boxes.shape == (0, 7)


def test_nan_scores_are_no_detections():
    head = make_head(score_threshold=0.0)
    output = head(random_bev(1))
    output.logits[:] = math.nan
    assert len(head.decode(output)[0]) == 0


@pytest.mark.parametrize("bins", [0, 2])
def test_the_short_way_finds_what_the_long_one_does(bins):
    head = make_head(direction_bins=bins, score_threshold=0.5, nms={"iou_threshold": 0.2}).eval()
    for values in head.parameters():
        torch.nn.init.normal_(values, std=0.3)
    for short, long in zip(head.predict(random_bev()), head.decode(head(random_bev())), strict=True):
        assert 0 < len(long.boxes) < 480
        torch.testing.assert_close(short.boxes, long.boxes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(short.scores, long.scores, atol=1e-6, rtol=1e-6)
        assert torch.equal(short.labels, long.labels)


def test_multi_label_reports_a_box_for_each_class():
    head = make_head(multi_label=True, score_threshold=0.3, nms={"per_class": True, "max_after": 5})
    output = head(random_bev(1))
    output.logits[:] = 2.0
    found = head.decode(output)[0]
    assert found.labels.bincount().tolist() == [5, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": [CAR]}, "'Pedestrian' must have one entry"),
        ({"anchors": [CAR, PEDESTRIAN | {"class_name": "Pedestrain"}]}, "did you mean 'Pedestrian'"),
        ({"anchors": [CAR, PEDESTRIAN | {"sizes": [[1, 2]]}]}, "sizes of Pedestrian"),
        ({"anchors": [CAR, PEDESTRIAN | {"matched": 0.2}]}, "unmatched <= matched"),
        ({"anchors": [CAR, PEDESTRIAN | {"rotation": [0]}]}, "did you mean 'rotations'"),
        ({"code_weights": [1.0] * 6}, "code_weights must be 7"),
        ({"nms": {"iou_threshold": [0.1, 0.2]}}, "unless per_class"),
        ({"nms": {"iou_threshold": [0.1], "per_class": True}}, "2 values"),
        ({"box_loss": "l2"}, "box_loss"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_head(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("direction_bins", -1), ("box_weight", math.nan), ("direction_weight", -0.1), ("score_threshold", math.nan)],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        AnchorHead(4, CLASSES, RANGE, [CAR, PEDESTRIAN], **{name: value})


def test_raw_scores_are_the_logits_behind_the_probabilities():
    """The threshold and the order stay those of the probabilities."""
    plain, raw = (make_head(score_threshold=0.011, raw_scores=raw) for raw in (False, True))
    bev = 5 * random_bev()
    for expected, found in zip(plain.decode(plain(bev)), raw.decode(raw(bev)), strict=True):
        assert len(expected) > 1
        torch.testing.assert_close(found.boxes, expected.boxes)
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(1 / (1 + (-found.scores).exp()), expected.scores)
        assert (found.scores != expected.scores).all()
    with pytest.raises(ValueError, match="multi_label"):
        make_head(raw_scores=True, multi_label=True)


def test_candidates_and_detections_of_a_frame_are_limited_to_the_best():
    """As brute force: the anchors whose best class is best, and of the boxes that stay the best of all classes."""
    settings = {"multi_label": True, "score_threshold": 0.3, "nms": {"per_class": True, "max_before": None}}
    every = make_head(**settings)
    output = every(random_bev(1))
    output.logits[:] = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(2))
    few = make_head(**settings, max_candidates=40)
    best = output.logits[0].amax(1).argsort(descending=True)[:40]
    masked = dataclasses.replace(output, logits=torch.full_like(output.logits, -20))
    masked.logits[0, best] = output.logits[0, best]
    expected, found = every.decode(masked)[0], few.decode(output)[0]
    assert len(every.decode(output)[0]) > len(found) > 10
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert torch.equal(found.labels, expected.labels)
    fewer = make_head(**settings, max_candidates=40, max_detections=7).decode(output)[0]
    assert torch.equal(fewer.scores, found.scores.sort(descending=True).values[:7])
