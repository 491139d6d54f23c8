"""Losses and box codes: gradients in float64, known values, and codes that give back what they were made of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import pcdet_ext.conformance.cases.openpcdet_heads  # noqa: F401  (registers the runners)
from pcdet_ext.conformance.golden import run_case
from pcdet_ext.models.heads import losses
from pcdet_ext.models.targets.box_coding import (
    PointResidualCoder,
    ResidualCoder,
    apply_direction_bin,
    box_corners,
    direction_bin,
    limit_period,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_boxes(count: int, columns: int = 7, seed: int = 0) -> torch.Tensor:
    boxes = random(count, columns, seed=seed)
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.3
    return boxes


@pytest.mark.parametrize("case", ["losses", "gaussian_heatmap", "box_codec"])
def test_reproduces_published_values(shared, case):
    report = run_case(shared / "golden" / "openpcdet" / f"{case}.json", grads=True)
    assert report.status == "pass", report.line()


TARGET = (random(4, 7, seed=2) > 0).double()
HEATMAP = torch.where(random(1, 2, 3, 4, seed=3) > 1, 1.0, random(1, 2, 3, 4, seed=4).sigmoid())


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda x: losses.sigmoid_focal_loss(x, TARGET), (4, 7)),
        (lambda x: losses.smooth_l1_loss(x, random(4, 7, seed=5)), (4, 7)),
        (lambda x: losses.smooth_l1_loss(x, random(4, 7, seed=5), beta=0.0, code_weights=random(7)), (4, 7)),
        (lambda x: losses.with_sine_difference(x, random(4, 7, seed=5)), (4, 7)),
        (lambda x: losses.gaussian_focal_loss(x.sigmoid(), HEATMAP), (1, 2, 3, 4)),
        (lambda x: losses.center_focal_loss(x.sigmoid(), HEATMAP), (1, 2, 3, 4)),
        (lambda x: losses.masked_l1_loss(x, random(2, 3, 4, seed=6), torch.tensor([[1, 0, 1], [0, 0, 1]])), (2, 3, 4)),
        (lambda x: losses.axis_aligned_diou(x.exp(), random(5, 7, seed=7).exp()), (5, 7)),
        (lambda x: losses.corner_loss(x, random_boxes(5, seed=8)), (5, 7)),
    ],
    ids=["focal", "smooth_l1", "l1", "sine", "gaussian_focal", "center_focal", "masked_l1", "diou", "corner"],
)
def test_gradients(loss, shape):
    assert gradcheck(loss, random(*shape).requires_grad_())


def test_focal_loss_of_half_probability():
    """At p = 1/2 the focal weight is alpha / 4 and the cross entropy ln 2."""
    loss = losses.sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == pytest.approx([0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)])


def test_nan_targets_are_no_error_and_have_no_gradient():
    prediction = random(3, 2).requires_grad_()
    target = torch.full((3, 2), math.nan, dtype=torch.float64)
    target[0] = 0
    for loss in (losses.smooth_l1_loss(prediction, target), losses.masked_l1_loss(prediction, target, torch.ones(3))):
        (gradient,) = torch.autograd.grad(loss.sum(), prediction)
        assert loss.isfinite().all()
        assert gradient[0].abs().min() > 0
        assert (gradient[1:] == 0).all()


def test_distance_iou_has_known_values():
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.7]])
    moved = box + torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    assert losses.axis_aligned_diou(box, box).item() == pytest.approx(1)
    assert losses.axis_aligned_diou(box, moved).item() == pytest.approx(4 / 12 - 1 / (9 + 4 + 4))
    assert losses.axis_aligned_diou(box, box + torch.tensor([1e3] * 3 + [0] * 4)).item() == pytest.approx(-1, abs=0.01)


def test_corner_loss_does_not_see_the_front():
    boxes = random_boxes(4)
    turned = boxes.clone()
    turned[:, 6] += math.pi
    assert losses.corner_loss(turned, boxes).abs().max() < 1e-12


def test_iou_prediction_wants_one_for_the_same_box():
    boxes = random_boxes(3)
    away = boxes + torch.tensor([50.0, 0, 0, 0, 0, 0, 0])
    assert losses.iou_prediction_loss(torch.ones(3), boxes, boxes).item() == pytest.approx(0, abs=1e-5)
    assert losses.iou_prediction_loss(torch.ones(3), boxes, away).item() == pytest.approx(2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.iou_prediction_loss(torch.zeros(0), torch.zeros(0, 7), torch.zeros(0, 7)),
        lambda: losses.masked_l1_loss(torch.zeros(2, 0, 8), torch.zeros(2, 0, 8), torch.zeros(2, 0)).sum(),
        lambda: losses.center_focal_loss(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)) - math.log(2),
    ],
)
def test_nothing_to_learn_is_no_error(loss):
    assert float(loss()) == pytest.approx(0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), sincos=st.booleans(), extra=st.sampled_from([0, 2]))
def test_residual_codes_give_back_boxes(seed, sincos, extra):
    coder = ResidualCoder(sincos, extra)
    boxes, anchors = random_boxes(6, 7 + extra, seed), random_boxes(6, 7 + extra, seed + 1)
    codes = coder.encode(boxes, anchors)
    assert codes.shape == (6, coder.code_size)
    torch.testing.assert_close(coder.decode(codes, anchors), _wrapped(boxes) if sincos else boxes)


def _wrapped(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes[:, :6], limit_period(boxes[:, 6:7], 0.5, 2 * math.pi), boxes[:, 7:]], 1)


@pytest.mark.parametrize("sizes", [None, ((3.9, 1.6, 1.5), (0.8, 0.6, 1.7))])
def test_point_codes_give_back_boxes(sizes):
    coder, boxes = PointResidualCoder(sizes), random_boxes(6)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    codes = coder.encode(boxes, random(6, 3, seed=3), labels)
    torch.testing.assert_close(coder.decode(codes, random(6, 3, seed=3), labels), _wrapped(boxes))


@pytest.mark.parametrize(("labels", "message"), [(None, "must be given"), (torch.tensor([2]), r"\[0, 1\)")])
def test_point_codes_need_labels_with_a_size(labels, message):
    with pytest.raises(ValueError, match=message):
        PointResidualCoder(((1, 1, 1),)).encode(random_boxes(1), random(1, 3), labels)


@settings(max_examples=60, deadline=None)
@given(sector=st.integers(-9, 9), share=st.floats(0.01, 0.99), bins=st.integers(1, 8), offset=st.floats(0, 1.5))
def test_direction_bin_recovers_a_heading_from_its_sector(sector, share, bins, offset):
    original = torch.tensor([offset + (sector + share) * 2 * math.pi / bins], dtype=torch.float64)
    place = direction_bin(original, bins, offset)
    turned = original + 2 * math.pi / bins * 3  # known up to whole sectors only
    found = apply_direction_bin(turned, place, bins, offset, 0.0)
    assert math.cos(float(found - original)) == pytest.approx(1, abs=1e-9)


def test_corners_of_a_turned_box():
    corners = box_corners(torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 2.0, math.pi / 2]]))[0]
    expected = [[0, 4], [2, 4], [2, 0], [0, 0]]
    torch.testing.assert_close(corners[:4], torch.tensor([[*c, 2.0] for c in expected]), atol=1e-6, rtol=0)
    torch.testing.assert_close(corners[4:], torch.tensor([[*c, 4.0] for c in expected]), atol=1e-6, rtol=0)
