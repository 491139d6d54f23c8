"""What follows from a detector's sections for our parts in mmdetection3d, and errors that name the section."""

from __future__ import annotations

from typing import Any

import mmdet3d_models as models
import pytest
import small_backbones
import torch

from pcdet_ext.config import ConfigError
from pcdet_ext.plugins.mmdet3d import parts, registration


def test_channels_grid_and_stride_follow() -> None:
    model = models.ours()
    before = torch.random.get_rng_state()
    registration.derive(model)
    assert torch.equal(torch.random.get_rng_state(), before)  # parts that are built to be asked draw nothing
    assert model["voxel_encoder"]["voxel_size"] == models.FLAT
    assert (model["middle_encoder"]["in_channels"], model["middle_encoder"]["sparse_shape"]) == (32, [1, 100, 100])
    assert model["backbone"]["in_channels"] == 32
    assert (model["bbox_head"]["in_channels"], model["bbox_head"]["stride"]) == (32, 2)
    lion = models.with_backbone(models.lion("mamba"), models.CUBIC)
    registration.derive(lion)
    assert lion["backbone"]["in_channels"] == 32 * 8  # the map of 16 cells along z, of which two merge


def test_sections_of_several_sensors_have_a_prefix() -> None:
    sections = ("voxel_encoder", "middle_encoder", "backbone", "neck", "bbox_head")
    model = {f"pts_{k}" if k in sections else k: v for k, v in models.ours().items()}
    registration.derive(model)
    assert model["pts_middle_encoder"]["section"] == "pts_middle_encoder"
    assert model["pts_bbox_head"]["stride"] == 2


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "middle_encoder",
            {"sparse_shape": [1, 90, 100]},
            r"middle_encoder\.sparse_shape is \[1, 90, 100\]",
        ),
        ("middle_encoder", {"in_channels": 64}, r"middle_encoder\.in_channels is 64, .* make 32"),
        (
            "middle_encoder",
            {"config": {"name": "FlatFormer", "blocks": 1}},
            r"middle_encoder\.config\.blocks: ",
        ),
        ("backbone", {"in_channels": 64}, r"backbone\.in_channels is 64"),
        ("bbox_head", {"stride": 4}, r"bbox_head\.stride is 4"),
        ("voxel_encoder", {"voxel_size": [1, 1, 4]}, r"voxel_encoder\.voxel_size is \[1, 1, 4\]"),
    ],
)
def test_what_contradicts_the_other_sections_is_refused(section: str, change: dict[str, Any], message: str) -> None:
    model = models.ours()
    model[section] = model[section] | change
    with pytest.raises(ConfigError, match=message):
        registration.derive(model)


def test_a_range_must_hold_whole_voxels() -> None:
    model = models.ours()
    model["data_preprocessor"]["voxel_layer"]["point_cloud_range"] = [0, -20, -3, 40.1, 20, 1]
    message = r"voxel_layer\.point_cloud_range: 0 to 40\.1 along x holds 100\.25 .*; x up to 40 fits"
    with pytest.raises(ConfigError, match=message):
        registration.derive(model)


def test_what_parts_are_given_must_fit_them() -> None:
    dynamic = parts.PcdetExtVoxelEncoder({"name": "DynamicPillarVFE"}, 4, models.FLAT, models.RANGE)
    with pytest.raises(ConfigError, match=r"voxel_encoder: DynamicPillarVFE wants dynamic voxels, .* makes hard"):
        dynamic(torch.zeros(2, 5, 4), torch.ones(2), torch.zeros(2, 4))
    middle = parts.PcdetExtMiddleEncoder(small_backbones.FLATFORMER, 32, [1, 100, 100])
    with pytest.raises(ConfigError, match=r"middle_encoder: built for 32 channels, .*\[3, 8\]"):
        middle(torch.zeros(3, 8), torch.zeros(3, 4), 1)
    with pytest.raises(ConfigError, match=r"middle_encoder: voxels go up to \[0, 100, 0\]"):
        middle(torch.zeros(1, 32), torch.tensor([[0, 0, 100, 0]]), 1)
    with pytest.raises(ConfigError, match="middle_encoder: in_channels is needed"):
        parts.PcdetExtMiddleEncoder(small_backbones.FLATFORMER, sparse_shape=[1, 100, 100])


def test_an_empty_last_frame_has_an_empty_map() -> None:
    middle = parts.PcdetExtMiddleEncoder(small_backbones.FLATFORMER, 32, [1, 100, 100])
    bev = middle(torch.rand(4, 32), torch.tensor([[0, 0, y, 3] for y in range(4)]), 2)
    assert bev.shape == (2, 32, 100, 100)
    assert not bev[1].any()


def test_boxes_move_between_bottom_and_centre() -> None:
    bottom = torch.tensor([[1.0, 2, -1.8, 3.9, 1.6, 1.5, 0.3]])
    centre = parts.moved(bottom, 0.5)
    assert centre[0, 2].item() == pytest.approx(-1.05)
    assert torch.equal(centre[:, [0, 1, 3, 4, 5, 6]], bottom[:, [0, 1, 3, 4, 5, 6]])
    assert torch.allclose(parts.moved(centre, -0.5), bottom)
