"""Runners on variations of published cases: other options and other numbers of things than any case uses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.conformance.cases.openpcdet_boxes import inside, overlaps, rotated_suppression, suppression
from pcdet_ext.conformance.cases.openpcdet_heads import run_anchor_head, run_box_codec, run_losses
from pcdet_ext.conformance.cases.openpcdet_models import run_bev_backbone, run_map_to_bev, run_vfe
from pcdet_ext.conformance.golden import Case, Masked, Runner
from pcdet_ext.interop import openpcdet_backbones
from pcdet_ext.models.bev import BEV_BACKBONES

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


SETTINGS = {"NMS_TYPE": "nms_gpu", "NMS_THRESH": 0.2, "NMS_PRE_MAXSIZE": 4096, "NMS_POST_MAXSIZE": 500}


def nms_case(entry: dict, name: str = "nms_cases") -> Case:
    """The published boxes with one sub-case of our own, named "own"."""
    case = Case.read(OPENPCDET / f"{name}.json")
    return Case(case.path, case.system, case.kind, {"sets": [{"name": "own", **entry}]}, case.meta, case.arrays)


def axis_aligned_survivors(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """Greedy suppression by the overlap of (x, y, dx, dy) whatever the heading, box by box."""

    def overlap(a: list[float], b: list[float]) -> float:
        sides = [
            min(a[i] + a[i + 3] / 2, b[i] + b[i + 3] / 2) - max(a[i] - a[i + 3] / 2, b[i] - b[i + 3] / 2)
            for i in (0, 1)
        ]
        shared = max(sides[0], 0) * max(sides[1], 0)
        return shared / (a[3] * a[4] + b[3] * b[4] - shared)

    kept: list[int] = []
    rows = boxes.double().tolist()
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(rows[i], rows[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("function", ["class_agnostic_nms", "multi_classes_nms"])
def test_the_kind_of_suppression_is_read(function: str) -> None:
    entry = {"fn": function, "boxes": "A", "score_thresh": 0.0, "nms_config": SETTINGS | {"NMS_TYPE": "nms_normal_gpu"}}
    case = nms_case(entry | {"scores": "sA", "cls_scores": "own"})
    boxes, scores = case.tensor("in.A"), case.tensor("in.sA")
    case.arrays["in.own"] = case.arrays["in.sA"][:, None]
    found = suppression(case, False)
    expected = axis_aligned_survivors(boxes, scores, 0.2)
    assert 1 < len(expected) < len(boxes)
    torch.testing.assert_close(found["out.own.scores"], scores[expected])


def test_classes_of_suppression_count_from_zero_whichever_are_there() -> None:
    settings = SETTINGS | {
        "NMS_THRESH": [0.9, 0.2, 0.7],
        "NMS_PRE_MAXSIZE": [1, 4096, 4096],
        "NMS_POST_MAXSIZE": [4] * 3,
    }
    entry = {"fn": "class_specific_nms", "boxes": "A", "scores": "sA", "labels": "lab", "nms_config": settings}
    case = nms_case(entry)
    whole = suppression(case, False)["out.own.keep"]
    labels = case.tensor("in.lab")
    for chosen in ([1], [1, 2], [0], [0, 2]):
        rows = sum(labels == k for k in chosen).nonzero()[:, 0]
        part = nms_case(entry | {"score_thresh": [0.0, 0.0, 0.0]})
        for key in ("in.A", "in.sA", "in.lab"):
            part.arrays[key] = case.arrays[key][rows.numpy()]
        expected = [i for i in whole.tolist() if int(labels[i]) in chosen]
        assert rows[suppression(part, False)["out.own.keep"]].tolist() == expected


@pytest.mark.parametrize("function", ["nms_gpu", "class_agnostic_nms", "class_specific_nms", "multi_classes_nms"])
def test_nothing_is_left_of_no_boxes(function: str) -> None:
    settings = SETTINGS | ({"NMS_THRESH": [0.2] * 3} if function == "class_specific_nms" else {})
    names = {"boxes": "A", "scores": "sA", "labels": "lab", "cls_scores": "cls"}
    case = nms_case({"fn": function, **names, "nms_config": settings, "score_thresh": 0.1, "thresh": 0.1})
    for key in ("in.A", "in.sA", "in.lab", "in.cls"):
        case.arrays[key] = case.arrays[key][:0]
    case.arrays["out.own.keep"] = np.zeros(0, np.int64)
    assert all(len(value) == 0 for value in suppression(case, False).values())
    rotated = nms_case(
        {
            "fn": "multi_classes_nms_mmdet",
            "nms_config": SETTINGS | {"NMS_THRESH": [0.3] * 3},
            "score_thresh": [0.1] * 3,
        },
        "nms_dsvt",
    )
    for key in ("in.boxes", "in.scores", "in.labels"):
        rotated.arrays[key] = rotated.arrays[key][:0]
    assert all(len(value) == 0 for value in rotated_suppression(rotated, False).values())


def test_no_box_holds_no_point() -> None:
    case = Case.read(OPENPCDET / "points_in_boxes.json")
    case.arrays["in.boxes"] = case.arrays["in.boxes"][:0]
    found, points = inside(case, False), case.tensor("in.points")
    assert found["out.cpu_mask"].shape == (0, len(points))
    assert (found["out.gpu_index"] == -1).all()
    torch.testing.assert_close(found["out.remaining_points"], points, rtol=0, atol=0, equal_nan=True)


def test_periods_and_numbers_of_angles_are_those_of_the_case() -> None:
    case = Case.read(OPENPCDET / "box_codec.json")
    case.arrays["out.limit_period_3pi_0.25"] = case.arrays["out.rotate_points"] = np.zeros(5)
    found = run_box_codec(case, False)
    assert len(found["out.rotate_points"]) == 5
    angles, period = case.tensor("in.angles").double(), 3 * math.pi
    expected = angles - (angles / period + 0.25).floor() * period
    torch.testing.assert_close(found["out.limit_period_3pi_0.25"].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "run", "key"),
    [
        ("losses", run_losses, "out.WeightedSmoothL1Loss"),
        ("box_codec", run_box_codec, "out.point.decode"),
        ("box_codec", run_box_codec, "out.enlarged"),
    ],
)
def test_what_is_computed_does_not_follow_what_is_expected(case: str, run: Runner, key: str) -> None:
    asked = Case.read(OPENPCDET / f"{case}.json")
    before = run(asked, False)[key]
    asked.arrays[key] = asked.arrays[key] * 1.5
    torch.testing.assert_close(run(asked, False)[key], before, rtol=0, atol=0)


def test_no_voxels_make_an_empty_map() -> None:
    case = Case.read(OPENPCDET / "scatter_b2.json")
    for key in ("in.pillar_features", "in.voxel_coords"):
        case.arrays[key] = case.arrays[key][:0]
    bev = run_map_to_bev(case, False)["out.spatial_features"]
    assert bev.shape == (1, *case.arrays["out.spatial_features"].shape[1:])
    assert not bev.any()


def test_no_voxels_have_no_features() -> None:
    case = Case.read(OPENPCDET / "vfe_pillar_dist_nonorm.json")
    for key in ("in.voxels", "in.voxel_coords", "in.voxel_num_points"):
        case.arrays[key] = case.arrays[key][:0]
    assert run_vfe(case, False)["out.pillar_features"].shape == (0, case.arrays["out.pillar_features"].shape[1])


@pytest.mark.parametrize(("name", "counted"), [("BaseBEVBackbone", 0), ("BaseBEVResBackbone", 5)])
def test_levels_without_deconvolutions_are_joined(name: str, counted: int) -> None:
    """The published plain backbone then says that it gives no channels."""
    settings = {"LAYER_NUMS": [0, 0], "LAYER_STRIDES": [2, 1], "NUM_FILTERS": [2, 3]}
    backbone = BEV_BACKBONES.build(openpcdet_backbones.bev_backbone({"NAME": name, **settings}), in_channels=4)
    arrays = {f"param.{key}": value.numpy() for key, value in backbone.state_dict().items()}
    arrays |= {"in.spatial_features": np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32)}
    config = {"NAME": name, "model_cfg": settings, "input_channels": 4}
    case = Case(Path("bev.json"), "openpcdet", "bev_backbone", config, {}, arrays)
    found = run_bev_backbone(case, False)
    assert found["out.num_bev_features"] == counted
    assert found["out.spatial_features_2d"].shape == (1, 5, 3, 4)


@pytest.mark.parametrize("given", [False, True])
def test_encoders_do_not_read_whether_to_use_offsets_from_the_mean(given: bool) -> None:
    case = Case.read(OPENPCDET / "vfe_pillar_dist_nonorm.json")
    before = run_vfe(case, False)["out.pillar_features"]
    case.config["model_cfg"]["USE_CLUSTER_XYZ"] = given
    assert run_vfe(case, False)["out.pillar_features"].equal(before)
