"""The overlap of turned boxes with gradients, against the exact kernel and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.models.heads.rotated_iou import rotated_iou_3d
from pcdet_ext.ops import iou_3d_paired


def some_boxes(count: int, seed: int) -> torch.Tensor:
    """Boxes float64 [count, 7] near to each other, most of which overlap."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    size = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 3 + 0.5
    heading = (torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5) * 4 * math.pi
    return torch.cat([place, size, heading], 1)


def test_overlaps_are_those_of_the_kernel() -> None:
    a, b = some_boxes(2000, 0), some_boxes(2000, 1)
    expected = iou_3d_paired(a, b)
    assert 0.3 < float((expected > 0).double().mean()) < 1
    torch.testing.assert_close(rotated_iou_3d(a, b), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(rotated_iou_3d(b, a), expected, rtol=0, atol=1e-9)
    found = rotated_iou_3d(a.float(), b.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    quarter_turns=st.integers(-4, 4),
    shift=st.tuples(*[st.sampled_from([-4.0, -1.0, 0.0, 0.5, 2.0]) for _ in range(3)]),
    size=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 4.0]) for _ in range(3)]),
    heading=st.floats(-3, 3),
)
def test_sides_that_lie_on_each_other_count_once(
    quarter_turns: int, shift: tuple[float, ...], size: tuple[float, ...], heading: float
) -> None:
    """Against the overlap of intervals, which two boxes turned alike, or by quarters of a turn, have."""
    c, s = math.cos(heading), math.sin(heading)
    x, y, z = shift
    a = torch.tensor([[0, 0, 0, 2.0, 1.0, 1.0, heading]], dtype=torch.float64)
    b = torch.tensor([[c * x - s * y, s * x + c * y, z, *size, heading + quarter_turns * math.pi / 2]], dtype=a.dtype)
    dx, dy, dz = (size[1], size[0], size[2]) if quarter_turns % 2 else size
    shared = math.prod(
        max(0.0, min(own / 2, place + other / 2) - max(-own / 2, place - other / 2))
        for own, place, other in ((2.0, x, dx), (1.0, y, dy), (1.0, z, dz))
    )
    assert float(rotated_iou_3d(a, b)) == pytest.approx(shared / (2.0 + dx * dy * dz - shared), abs=1e-6)


def test_gradients_are_right_in_both_boxes() -> None:
    a, b = some_boxes(40, 2), some_boxes(40, 3)
    overlapping = iou_3d_paired(a, b) > 0.01
    a, b = a[overlapping].requires_grad_(), b[overlapping].requires_grad_()
    assert len(a) > 10
    assert torch.autograd.gradcheck(rotated_iou_3d, (a, b))


def test_gradients_lead_a_box_onto_another_and_are_finite_there() -> None:
    target = torch.tensor([[0.3, -0.2, 0.1, 2.0, 1.0, 0.8, 0.7]])
    box = torch.tensor([[0.0, 0.0, 0.0, 1.5, 1.5, 1.0, 0.2]], requires_grad=True)
    optimizer = torch.optim.Adam([box], 0.02)
    for step in range(200):
        if step == 150:
            optimizer.param_groups[0]["lr"] = 0.002
        optimizer.zero_grad()
        (1 - rotated_iou_3d(box, target)).sum().backward()
        optimizer.step()
    assert float(rotated_iou_3d(box, target).detach()) > 0.95
    same = target.clone().requires_grad_()
    overlap = rotated_iou_3d(same, target)
    overlap.sum().backward()
    assert float(overlap.detach()) == pytest.approx(1, abs=1e-6)
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_no_boxes_have_no_overlaps() -> None:
    nothing = torch.zeros(0, 7, requires_grad=True)
    rotated_iou_3d(nothing, nothing).sum().backward()
    assert nothing.grad is not None
