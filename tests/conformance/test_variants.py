"""Runners on variations of published cases: other options and other numbers of things than any case uses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from pcdet_ext.conformance.cases.openpcdet_boxes import overlaps
from pcdet_ext.conformance.cases.openpcdet_heads import run_anchor_head, run_box_codec, run_losses
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


def test_losses_and_codes_take_their_parameters_from_the_names_of_the_case() -> None:
    case = Case.read(OPENPCDET / "losses.json")
    case.arrays["out.SigmoidFocalClassificationLoss_g3_a075"] = case.arrays["out.WeightedSmoothL1Loss_beta0.5"] = 0
    found, data = run_losses(case, False), case.tensors("in")
    p = data["logits"].double().sigmoid()
    positive, negative = -0.75 * (1 - p) ** 3 * p.log(), -0.25 * p**3 * (1 - p).log()
    expected = torch.where(data["onehot"] == 1, positive, negative) * data["w"][..., None]
    torch.testing.assert_close(
        found["out.SigmoidFocalClassificationLoss_g3_a075"].double(), expected, rtol=1e-4, atol=1e-5
    )
    error = (data["reg"] - data["reg_t"]).abs().nan_to_num()
    expected = torch.where(error < 0.5, error**2, error - 0.25) * data["w"][..., None]
    torch.testing.assert_close(found["out.WeightedSmoothL1Loss_beta0.5"], expected)
    codes = Case.read(OPENPCDET / "box_codec.json")
    codes.arrays["out.direction_target.bins12_off0.1"] = 0
    bins = run_box_codec(codes, False)["out.direction_target.bins12_off0.1"]
    heading = codes.tensor("in.boxes")[:, 6]
    expected = (torch.remainder(heading - 0.1, 2 * math.pi) / (2 * math.pi / 12)).floor().long()
    assert (bins[0] != expected).sum() <= 1  # at most where rounding of the code crosses a border


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
