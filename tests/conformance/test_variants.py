"""Runners on variations of published cases: other options and other numbers of things than any case uses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pcdet_ext.conformance.cases.openpcdet_boxes import overlaps
from pcdet_ext.conformance.cases.openpcdet_heads import run_anchor_head
from pcdet_ext.conformance.golden import Case, Masked

OPENPCDET = Path(__file__).resolve().parents[1] / "data" / "golden" / "openpcdet"


@pytest.mark.parametrize(("first", "second"), [(5, 9), (9, 5), (0, 4), (4, 0)])
def test_lists_of_boxes_may_have_different_lengths(first: int, second: int) -> None:
    case = Case.read(OPENPCDET / "iou_boxes.json")
    whole = overlaps(case, False)
    case.arrays["in.boxes_a"] = case.arrays["in.boxes_a"][:first]
    case.arrays["in.boxes_b"] = case.arrays["in.boxes_b"][:second]
    case.arrays["mid.regular"] = case.arrays["mid.regular"][:first, :second]
    count = min(first, second)
    for key, value in overlaps(case, False).items():
        found, of_all = (v.value if isinstance(v, Masked) else v for v in (value, whole[key]))
        if isinstance(value, Masked):
            assert value.where.shape == value.value.shape
        if "aligned" in key or "paired" in key:
            rows = first if key == "out.aligned_bev_boxes_a" else count
            torch.testing.assert_close(found, of_all[:rows])
        elif count:
            torch.testing.assert_close(found, of_all[:first, :second])


def test_weights_of_boxes_may_be_divided_by_the_examples_of_their_class() -> None:
    """By anchors of the class that are positive or background; counted one by one here."""
    case = Case.read(OPENPCDET / "anchor_head_empty_sample.json")
    plain = run_anchor_head(case, False)
    changed = copy.deepcopy(case.config)
    changed["model_cfg"]["TARGET_ASSIGNER_CONFIG"]["NORM_BY_NUM_EXAMPLES"] = True
    found = run_anchor_head(Case(case.path, case.system, case.kind, changed, case.meta, case.arrays), False)
    labels, weights = plain["out.target.box_cls_labels"], found["out.target.reg_weights"]
    entries = case.config["model_cfg"]["ANCHOR_GENERATOR_CONFIG"]
    kinds = [k for k, e in enumerate(entries) for _ in range(len(e["anchor_sizes"]) * len(e["anchor_rotations"]))]
    assert len(set(kinds)) > 1
    assert (labels > 0).any()
    for frame in range(len(labels)):
        of_class = [kinds[anchor % len(kinds)] for anchor in range(labels.shape[1])]
        for anchor in (labels[frame] > 0).nonzero()[:, 0].tolist():
            examples = sum(
                k == of_class[anchor] and label >= 0 for k, label in zip(of_class, labels[frame].tolist(), strict=True)
            )
            assert weights[frame, anchor] == pytest.approx(1 / examples)
        assert not weights[frame][labels[frame] <= 0].any()
    assert found["out.loss.total"] == plain["out.loss.total"]  # no published loss reads them
