"""Suppression against a brute-force loop over exact overlaps, and what happens at its edges."""

from __future__ import annotations

import math

import pytest
import torch
from boxes_helpers import random_boxes, shapely_overlaps
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops import iou_bev, nms
from pcdet_ext.ops.boxes import NMS_KINDS, _nms
from pcdet_ext.ops.boxes_reference import nms_reference

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
KINDS = pytest.mark.parametrize("kind", list(NMS_KINDS))
nan, inf = math.nan, math.inf


EXACT = "donot_use_mm_for_euclid_dist"


def random_scores(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def removal_matrix(boxes: torch.Tensor, threshold: float, kind: str) -> torch.Tensor:
    """Which box would remove which, by shapely or by distance."""
    if kind == "circle":
        return torch.cdist(boxes[:, :2].double(), boxes[:, :2].double(), compute_mode=EXACT).square() <= threshold
    if kind == "axis_aligned":
        boxes = torch.cat([boxes[:, :6], torch.zeros(len(boxes), 1)], 1)
    return shapely_overlaps(boxes, boxes)[1] > threshold


def brute_force(removes: torch.Tensor, scores: torch.Tensor) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
        if not any(removes[j, i] for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=40, deadline=None)
@given(
    SEEDS,
    st.sampled_from(list(NMS_KINDS)),
    st.floats(0.01, 0.9),
    st.floats(1, 15),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_a_loop_over_polygons(seed: int, kind: str, threshold: float, side: float, dtype: torch.dtype) -> None:
    boxes, scores = random_boxes(seed, 60, side, dtype), random_scores(seed, 60)
    assert nms(boxes, scores, threshold, kind).tolist() == brute_force(removal_matrix(boxes, threshold, kind), scores)


@KINDS
@DTYPES
@pytest.mark.parametrize(("count", "side"), [(300, 4.0), (300, 60.0)])
def test_native_equals_the_reference(kind: str, dtype: torch.dtype, count: int, side: float) -> None:
    """More boxes than a block, among them broken and very large ones, and far from the origin."""
    boxes = random_boxes(1, count, side, dtype)
    boxes[::50, 3] *= 30
    boxes[7, 0], boxes[8, 4], boxes[9, 6], boxes[10, 2], boxes[11, 3] = nan, inf, nan, nan, -2.0
    if kind == "axis_aligned":
        boxes[:, 6] = 0  # as `nms` does
    boxes[:, :2] += 1000
    for threshold in (0.0, 0.4):
        ours = _nms(boxes, threshold, NMS_KINDS[kind], count)
        assert torch.equal(ours, nms_reference(boxes, threshold, NMS_KINDS[kind], count))


@KINDS
def test_kept_boxes_do_not_remove_each_other_and_the_others_are_removed(kind: str) -> None:
    boxes, scores = random_boxes(2, 300, 12.0), random_scores(2, 300)
    kept, removes = nms(boxes, scores, 0.3, kind), removal_matrix(boxes, 0.3, kind)
    among = removes[kept][:, kept].fill_diagonal_(False)
    assert not among.any()
    assert (scores[kept].diff() <= 0).all()
    for i in set(range(300)) - set(kept.tolist()):
        assert any(removes[j, i] and scores[j] >= scores[i] for j in kept.tolist())


def test_far_from_the_origin_nothing_is_lost() -> None:
    boxes, scores = random_boxes(3, 200, 8.0), random_scores(3, 200)
    moved = boxes.clone()
    moved[:, :2] += torch.tensor([4.5e5, 5.4e6], dtype=torch.float64)
    for kind in NMS_KINDS:
        assert torch.equal(nms(moved, scores, 0.2, kind), nms(boxes, scores, 0.2, kind))


def test_equal_scores_keep_the_lower_index() -> None:
    boxes = random_boxes(0, 1).expand(4, 7)
    assert nms(boxes, torch.ones(4), 0.5).tolist() == [0]
    assert nms(boxes, torch.tensor([0.1, 0.7, 0.7, 0.2]), 0.5).tolist() == [1]


def test_a_removed_box_removes_nothing() -> None:
    row = torch.zeros(3, 7)
    row[:, 0] = torch.tensor([0.0, 2.0, 4.0])  # each overlaps the next by a third, the ends not at all
    row[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    assert nms(row, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert nms(row, torch.tensor([0.9, 0.8, 0.7]), 0.34).tolist() == [0, 1, 2]


def test_the_threshold_itself_stays_for_overlaps_and_goes_for_circles() -> None:
    pair = torch.zeros(2, 7, dtype=torch.float64)
    pair[:, 3:6] = 1
    pair[1, 0] = 0.5
    overlap = 1 / 3
    assert len(nms(pair, torch.tensor([1.0, 0.5]), overlap + 1e-12, "axis_aligned")) == 2
    assert len(nms(pair, torch.tensor([1.0, 0.5]), overlap - 1e-12, "axis_aligned")) == 1
    assert len(nms(pair, torch.tensor([1.0, 0.5]), 0.25, "circle")) == 1
    assert len(nms(pair, torch.tensor([1.0, 0.5]), 0.2499, "circle")) == 2


def test_axis_aligned_leaves_headings_out() -> None:
    boxes, scores = random_boxes(4, 100, 6.0), random_scores(4, 100)
    turned = boxes.clone()
    turned[:, 6] = nan
    assert torch.equal(nms(boxes, scores, 0.2, "axis_aligned"), nms(turned, scores, 0.2, "axis_aligned"))


@KINDS
@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("value", [nan, inf, 0.0, -1.0])
def test_what_is_no_box_removes_nothing_and_stays(kind: str, column: int, value: float) -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0.3]]).repeat(3, 1)
    boxes[1, column] = value
    plane = (0, 1) if kind == "circle" else (0, 1, 3, 4)  # what the overlap is made of
    broken = column in plane and (column > 1 or not math.isfinite(value))
    broken |= kind != "circle" and column == 5 and value < 0
    expected = [0, 1] if broken else [0]
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 1.1 if kind == "circle" else 0.1, kind).tolist() == expected


def test_nan_scores_never_stay_and_broken_boxes_touch_nothing() -> None:
    boxes = random_boxes(0, 1).repeat(4, 1)
    boxes[1, 0], boxes[2, 3] = nan, -1.0
    assert nms(boxes, torch.tensor([nan, 0.9, 0.8, 0.7]), 0.1).tolist() == [1, 2, 3]
    assert nms(boxes, torch.tensor([0.6, nan, 0.8, inf]), 0.1).tolist() == [3, 2]
    assert nms(boxes, torch.full((4,), nan), 0.1).tolist() == []


@KINDS
def test_before_and_after(kind: str) -> None:
    boxes, scores = random_boxes(5, 120, 8.0), random_scores(5, 120)
    everything = nms(boxes, scores, 0.2, kind)
    assert torch.equal(nms(boxes, scores, 0.2, kind, post_max=9), everything[:9])
    assert torch.equal(nms(boxes, scores, 0.2, kind, post_max=1000), everything)
    best = scores.argsort(descending=True)[:40]
    assert torch.equal(nms(boxes, scores, 0.2, kind, pre_max=40), best[nms(boxes[best], scores[best], 0.2, kind)])
    assert nms(boxes, scores, 0.2, kind, pre_max=0).shape == (0,)
    assert nms(boxes, scores, 0.2, kind, post_max=0).shape == (0,)


@KINDS
@DTYPES
def test_empty_and_single(kind: str, dtype: torch.dtype) -> None:
    empty = nms(torch.zeros(0, 7, dtype=dtype), torch.zeros(0), 0.5, kind)
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64
    assert nms(random_boxes(0, 1, dtype=dtype), torch.zeros(1), 0.5, kind).tolist() == [0]


def test_published_overlap_differs_by_its_centimetre_only() -> None:
    """Two boxes 6 mm apart share nothing; the published kernel finds a sliver."""
    pair = torch.zeros(2, 7)
    pair[:, 3:6] = torch.tensor([4.0, 2.0, 1.5])
    pair[1, 0] = 4.006
    scores = torch.tensor([1.0, 0.5])
    assert nms(pair, scores, 0.0005).tolist() == [0, 1]
    assert nms(pair, scores, 0.0005, published=True).tolist() == [0]
    boxes, scores = random_boxes(6, 150, 8.0, torch.float32), random_scores(6, 150)
    assert torch.equal(nms(boxes, scores, 0.3, published=True), nms(boxes, scores, 0.3))
    assert torch.equal(nms(boxes, scores, 0.3, "axis_aligned", published=True), nms(boxes, scores, 0.3, "axis_aligned"))


def test_wrong_arguments_are_named() -> None:
    boxes, scores = random_boxes(0, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"boxes must be \[N, 7\+\], got \[3, 6\]"):
        nms(boxes[:, :6], scores, 0.5)
    with pytest.raises(ValueError, match=r"scores must be \[3\] on cpu, got \[2\]"):
        nms(boxes, scores[:2], 0.5)
    with pytest.raises(ValueError, match="kind must be one of rotated, axis_aligned, circle, got 'oval'"):
        nms(boxes, scores, 0.5, "oval")
    for threshold in (-0.1, nan, inf):
        with pytest.raises(ValueError, match="iou_threshold must be at least 0 and finite"):
            nms(boxes, scores, threshold)
    with pytest.raises(ValueError, match="pre_max must be at least 0, got -1"):
        nms(boxes, scores, 0.5, pre_max=-1)
    with pytest.raises(ValueError, match="post_max must be at least 0, got -2"):
        nms(boxes, scores, 0.5, post_max=-2)
    with pytest.raises(ValueError, match="published is for"):
        nms(boxes, scores, 0.5, "circle", published=True)


def test_op_is_well_registered() -> None:
    boxes = random_boxes(0, 20, 3.0)
    torch.library.opcheck(_nms, (boxes, 0.2, NMS_KINDS["rotated"], 20))


@KINDS
def test_many_boxes_keep_what_greedy_suppression_must(kind: str) -> None:
    """No box that stays is overlapped by a better one that stays; every other is, by the definition of each kind."""
    boxes, scores = random_boxes(7, 1500, 20.0, torch.float32), random_scores(7, 1500)
    kept = nms(boxes, scores, 0.1, kind)
    if kind == "circle":
        removes = torch.cdist(boxes[:, :2].double(), boxes[:, :2].double()) ** 2 <= 0.1
    else:
        upright = torch.cat([boxes[:, :6], boxes[:, 6:] * (kind == "rotated")], 1)
        removes = iou_bev(upright, upright) > 0.1
    best_first = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(best_first)
    rank[best_first] = torch.arange(len(scores))
    by_better = removes & (rank[:, None] < rank[None])
    stays = torch.zeros(len(boxes), dtype=torch.bool)
    stays[kept] = True
    assert torch.equal(by_better[kept].any(0), ~stays)
    assert (rank[kept].diff() > 0).all()


@KINDS
@DTYPES
@pytest.mark.parametrize("count", [0, 1, 64, 65, 300])  # around words of bits
def test_cuda_equals_cpu(accelerator: Accelerator, kind: str, dtype: torch.dtype, count: int) -> None:
    boxes, scores = random_boxes(8, count, 30.0, dtype), random_scores(8, count)
    if count > 3:
        boxes[2, 0] = nan
    expected = nms(boxes, scores, 0.3, kind)
    boxes, scores = boxes.to(accelerator.device), scores.to(accelerator.device)
    with accelerator:
        ours = nms(boxes, scores, 0.3, kind)
        again, first = nms(boxes, scores, 0.3, kind), nms(boxes, scores, 0.3, kind, post_max=17)
    assert torch.equal(ours.cpu(), expected)
    assert torch.equal(ours, again)
    assert torch.equal(first, ours[:17])


def test_cuda_goes_over_several_runs_of_candidates(accelerator: Accelerator) -> None:
    boxes, scores = random_boxes(9, 4200, 100.0, torch.float32), random_scores(9, 4200)
    expected = nms(boxes, scores, 0.5, "circle")
    boxes, scores = boxes.to(accelerator.device), scores.to(accelerator.device)
    with accelerator:
        assert torch.equal(nms(boxes, scores, 0.5, "circle").cpu(), expected)
