"""Rows of nearly the same score may change places when they are compared, and others may not."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext.conformance.ranked import Ranked, settled

SCORES = torch.tensor([0.9, 0.8001, 0.8, 0.3])
BOXES = torch.arange(8.0).view(4, 2)
LABELS = torch.tensor([1, 2, 3, 1])


def _settled(rows: list[int]) -> dict[str, torch.Tensor]:
    """What becomes of the rows where they are expected in another order."""
    together = ("boxes", "labels")
    values = {"boxes": Ranked(BOXES, SCORES, together), "labels": Ranked(LABELS, SCORES, together), "other": 3}
    expected = {"boxes": BOXES[rows].numpy(), "labels": LABELS[rows].numpy()}
    return settled(values, expected, lambda _: 1e-3)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 2, 1, 3]])
def test_rows_of_nearly_the_same_score_are_exchanged_in_all_arrays(rows: list[int]) -> None:
    found = _settled(rows)
    assert found["boxes"].equal(BOXES[rows])
    assert found["labels"].equal(LABELS[rows])
    assert found["other"] == 3


def test_rows_of_other_scores_stay_where_they_are() -> None:
    found = _settled([3, 1, 2, 0])
    assert found["boxes"].equal(BOXES)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e20])
def test_rows_of_other_scores_stay_where_nothing_is_like_what_is_expected(wrong: float) -> None:
    expected = BOXES[[3, 1, 2, 0]]
    expected[1:3] = wrong
    found = settled({"boxes": Ranked(BOXES, SCORES, ("boxes",))}, {"boxes": expected.numpy()}, lambda _: 1e-3)
    assert found["boxes"][[0, 3]].equal(BOXES[[0, 3]])


def test_other_numbers_of_rows_stay_as_they_are() -> None:
    assert _settled([0, 1])["boxes"].equal(BOXES)


def test_no_rows_are_no_rows() -> None:
    nothing = {"boxes": Ranked(BOXES[:0], SCORES[:0], ("boxes",))}
    assert len(settled(nothing, {"boxes": BOXES[:0].numpy()}, lambda _: 1e-3)["boxes"]) == 0
