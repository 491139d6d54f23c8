"""Settings of FlatFormer's cases that no published case uses, or that it leaves to the published defaults."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_ext.conformance.cases.flatformer import run_head
from pcdet_ext.conformance.cases.mappings import flatformer_mapping
from pcdet_ext.conformance.golden import Case, Values
from pcdet_ext.interop import flatformer
from pcdet_ext.models.targets.heatmaps import center_targets

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "flatformer"


def _head(train: dict[str, Any], coder: dict[str, Any], overlap: float | None = None) -> Values:
    """What the runner gives with other settings, and with one predicted overlap everywhere."""
    case = Case.read(GOLDEN / "head_targets_loss_decode.json")
    case.config["train_cfg"] |= train
    case.config["head"]["bbox_coder"] |= coder
    slots = case.config["train_cfg"]["max_objs"] * case.config["train_cfg"]["dense_reg"]
    for name in ("box", "ind", "mask"):
        shape = list(case.arrays[f"out.target_{name}"].shape)
        shape[1] = slots
        case.arrays[f"out.target_{name}"] = np.zeros(shape, case.arrays[f"out.target_{name}"].dtype)
    if overlap is not None:
        case.arrays["in.raw_iou"][:] = overlap
    return run_head(case, False)


def test_the_number_of_objects_is_multiplied_by_dense_reg() -> None:
    few = _head({"max_objs": 3}, {})
    twice = _head({"max_objs": 3, "dense_reg": 2}, {})
    six = _head({"max_objs": 6}, {})
    torch.testing.assert_close(twice["out.target_heatmap"], six["out.target_heatmap"])
    torch.testing.assert_close(twice["out.target_box"], six["out.target_box"])
    assert not torch.equal(few["out.target_heatmap"], six["out.target_heatmap"])


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_without_a_threshold_every_score_passes(threshold: float | None) -> None:
    everywhere = {"post_center_range": [-1e3] * 3 + [1e3] * 3, "score_threshold": threshold, "max_num": 50}
    values = _head({}, everywhere, overlap=-1.0)
    assert values["out.decoded_scores_0"].tolist() == [0.0] * 50


def test_the_threshold_before_suppression_is_the_coders() -> None:
    case = Case.read(GOLDEN / "head_targets_loss_decode.json")
    case.config["test_cfg"]["score_threshold"] = 0.9
    torch.testing.assert_close(run_head(case, False)["out.decoded_scores_0"], case.tensor("out.decoded_scores_0"))


def test_radii_are_of_the_width_along_x_where_cells_are_not_square() -> None:
    """A box whose width in cells along x and length in cells along y are both 16 is drawn as a square one."""
    box = torch.tensor([[32.0, 16.0, 0.0, 8.0, 16.0, 1.0, 0.3]])
    square = torch.tensor([[32.0, 16.0, 0.0, 16.0, 16.0, 1.0, 0.3]])
    labels, map_ = [torch.tensor([0])], torch.zeros(1, 1, 64, 64)
    limits = {"min_overlap": 0.7, "min_radius": 1}
    found = center_targets([box], labels, [0], map_, (0, 0), (1.0, 0.5), **limits, width_along_x=True)
    expected = center_targets([square], labels, [0], map_, (0, -16.0), (1.0, 1.0), **limits)
    torch.testing.assert_close(found.heatmap, expected.heatmap)
    other = center_targets([box], labels, [0], map_, (0, 0), (1.0, 0.5), **limits)
    assert not torch.equal(other.heatmap, found.heatmap)


def test_heads_say_so_where_cells_are_not_square() -> None:
    head = copy.deepcopy(Case.read(GOLDEN / "head_targets_loss_decode.json").config["head"])
    assert "width_along_x" not in flatformer.head(head, {}, {})
    head["bbox_coder"]["voxel_size"] = [0.5, 0.25]
    assert flatformer.head(head, {}, {})["width_along_x"]


def test_published_defaults_stand_where_a_section_says_nothing() -> None:
    node = flatformer.backbone({})
    assert node["window"] == [None, 9, 9]
    assert node["group_size"] == 69
    assert flatformer.grid({}) == (1, 468, 468)
    head = copy.deepcopy(Case.read(GOLDEN / "head_targets_loss_decode.json").config["head"])
    for section in ("loss_bbox", "norm_cfg"):
        del head[section]
    del head["bbox_coder"]["max_num"]
    node = flatformer.head(head, {}, {})
    assert (node["box_weight"], node["norm_eps"], node["norm_momentum"]) == (0.25, 1e-5, 0.1)
    assert node["max_candidates"] == 100


def test_settings_of_mappings_that_nobody_reads_are_named() -> None:
    case = Case.read(GOLDEN / "mapping_rect_b3_shuffled.json")
    case.config["window_shift"] = [1, 1, 0]
    with pytest.raises(ValueError, match="window_shift: the setting is not known here"):
        flatformer_mapping(case, False)
