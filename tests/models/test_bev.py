"""Maps and their 2-D backbones: shapes, strides and refusals. Golden cases: tests/test_golden.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.config import ConfigError
from pcdet_ext.models.bev import BEV_BACKBONES, flatten_to_bev
from pcdet_ext.models.bev.multi_scale import join_channels
from pcdet_ext.structures import SparseVoxels

LEVELS = {"layer_nums": [1, 2, 1], "layer_strides": [2, 2, 2], "num_filters": [4, 6, 8]}


def build(name: str, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return BEV_BACKBONES.build({"name": name} | arguments, in_channels=3).eval()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_flatten_puts_every_voxel_in_its_channel_and_cell(seed, batch_size, depth):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch_size, depth, 5, 7, generator=generator) < 0.3
    coords = mask.nonzero().int()
    features = torch.randn(len(coords), 3, generator=generator, requires_grad=True)
    bev = flatten_to_bev(SparseVoxels(features, coords, (depth, 5, 7), batch_size))
    assert bev.shape == (batch_size, 3 * depth, 5, 7)
    for feature, (b, z, y, x) in zip(features, coords.tolist(), strict=True):
        assert bev[b, z::depth, y, x].equal(feature)
    assert int((bev != 0).sum()) == features.numel()
    bev.sum().backward()
    assert (features.grad == 1).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_joined_maps_are_side_by_side(layout, size):
    maps = [torch.randn(2, channels, *size, requires_grad=True) for channels in (3, 1, 4)]
    joined = join_channels([m.contiguous(memory_format=layout) for m in maps])
    assert joined.equal(torch.cat(maps, 1))
    (joined * joined).sum().backward()
    assert all(m.grad.equal(2 * m.detach()) for m in maps)


def test_frames_without_voxels_keep_their_map():
    empty = SparseVoxels(torch.zeros(0, 2), torch.zeros(0, 4, dtype=torch.int32), (1, 4, 4), 3)
    assert flatten_to_bev(empty).shape == (3, 2, 4, 4)


@pytest.mark.parametrize("name", ["BaseBEVBackbone", "BaseBEVResBackbone"])
@pytest.mark.parametrize(
    ("strides", "factors", "stride"),
    [
        ((2, 2, 2), (1, 2, 4), 2),
        ((2, 2, 2), (0.5, 1, 2), 4),
        ((1, 2, 2), (1, 2, 4), 1),
        ((1, 2, 2), (2, 4, 8), 0.5),
        ((2, 2, 2), (0.25, 0.5, 1), 8),
        ((2, 1, 1), (), 2),
    ],
)
def test_stride_says_how_the_map_shrinks(name, strides, factors, stride):
    widths = [5] * len(factors)
    settings_ = LEVELS | {"layer_strides": strides, "upsample_strides": factors, "num_upsample_filters": widths}
    backbone = build(name, **settings_)
    out = backbone(torch.randn(2, 3, 16, 24))
    assert backbone.stride == stride
    assert out.shape == (2, backbone.out_channels, 16 / stride, 24 / stride)
    assert backbone.out_channels == (15 if factors else 18)


def test_residual_levels_have_one_block_more():
    backbone = build("BaseBEVResBackbone", **LEVELS, upsample_strides=[1, 2, 4], num_upsample_filters=[4, 4, 4])
    assert [len(level) for level in backbone.blocks] == [2, 3, 2]
    assert all(level[0].downsample_layer is not None for level in backbone.blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_strides": [2, 2]}, "one entry per level"),
        ({"layer_nums": [], "layer_strides": [], "num_filters": []}, "one entry per level"),
        ({"upsample_strides": [1, 2], "num_upsample_filters": [4, 4]}, "3 entries each, or none"),
        ({"upsample_strides": [1, 1, 1], "num_upsample_filters": [4, 4, 4]}, "different strides"),
        ({}, "different strides"),
        ({"upsample_strides": [1, 2, 0], "num_upsample_filters": [4, 4, 4]}, "positive"),
        ({"upsample_stride": [1]}, "did you mean 'upsample_strides'"),
    ],
)
def test_lists_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build("BaseBEVBackbone", **(LEVELS | changes))


def test_map_that_does_not_divide_is_named():
    backbone = build("BaseBEVBackbone", **LEVELS, upsample_strides=[1, 2, 4], num_upsample_filters=[4, 4, 4])
    with pytest.raises(ValueError, match=r"\(18, 16\) cells does not divide"):
        backbone(torch.zeros(1, 3, 18, 16))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["BaseBEVBackbone", "BaseBEVResBackbone", "SECONDFPN", "CascadeDEDBackbone", "ResNetFPN"]),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from(
        [((2, 2, 2), (1, 2, 4)), ((2, 2, 2), (0.5, 1, 2)), ((1, 2, 2), (1, 2, 4)), ((3, 2, 1), (0.5, 1, 1))]
    ),
)
def test_maps_are_refused_when_built_if_they_would_be_later(name, size, strides):
    """The check of a known size agrees with what the convolutions do."""
    if name == "CascadeDEDBackbone":
        arguments = {"num_layers": 2, "num_sbb": [1, 1, 1], "down_strides": strides[0], "feature_dim": 4}
    elif name == "ResNetFPN":
        factor = strides[0][1] * strides[0][2]
        arguments = LEVELS | {"layer_strides": strides[0], "level_factor": factor, "out_filters": 4}
    else:
        arguments = LEVELS | {"layer_strides": strides[0], "upsample_strides": strides[1]}
        arguments |= {"num_upsample_filters": [4] * 3, "layer_nums": [1, 1, 1]}
    try:
        build(name, **arguments)(torch.zeros(1, 3, *size))
    except (ValueError, RuntimeError):  # the latter from torch, for a map smaller than the kernel
        with pytest.raises(ConfigError, match="does not divide"):
            build(name, **arguments, map_size=size)
    else:
        build(name, **arguments, map_size=size)


@pytest.mark.parametrize(("out_factor", "stride"), [(None, 2), (2, 1), (4, 0.5)])
def test_the_pyramid_of_two_stages_says_its_size(out_factor, stride):
    backbone = build("ResNetFPN", **LEVELS, out_filters=5, out_factor=out_factor)
    out = backbone(torch.randn(1, 3, 16, 24))
    assert out.shape == (1, 5, 16 / stride, 24 / stride)
    assert (backbone.stride, backbone.out_channels) == (stride, 5)
    with pytest.raises(ConfigError, match="levels must be two of the 3 stages"):
        build("ResNetFPN", **LEVELS, levels=[0, 3])
    with pytest.raises(ConfigError, match="level_factor and out_factor must be at least 1"):
        build("ResNetFPN", **LEVELS, level_factor=0)
