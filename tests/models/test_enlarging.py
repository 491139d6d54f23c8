"""What the copy of a model for inference computes in one pass equals what the plain layers compute."""

from __future__ import annotations

import pytest
import torch
from test_scatterformer import randomized, small, voxels
from test_shortcuts import seen_statistics
from torch import nn

from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.layers.enlarging import EnlargingConv2d
from pcdet_ext.models.layers.folding import ScaleAndShift, folded
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.sparse_blocks import SparseResidualBlock, SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import SubMConv3d

CASCADE = {"name": "CascadeDEDBackbone", "num_layers": 2, "feature_dim": 16}
LEVELS = {
    "name": "BaseBEVResBackbone",
    "layer_nums": [1, 1],
    "layer_strides": [1, 2],
    "num_filters": [16, 32],
    "upsample_strides": [1, 2],
    "num_upsample_filters": [16, 32],
}


@pytest.mark.parametrize("node", [CASCADE, LEVELS], ids=["cascade", "levels"])
def test_maps_are_enlarged_and_joined_in_one_pass(node: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = seen_statistics(BEV_BACKBONES.build(node, in_channels=16))
    copy, x = folded(model), torch.randn(2, 16, 12, 20)
    assert sum(isinstance(layer, EnlargingConv2d) for layer in copy.modules()) == (4 if node is CASCADE else 2)
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), atol=1e-4, rtol=1e-4)
        # the folded weights are rounded to float32
        torch.testing.assert_close(copy.double()(x.double()), model.double()(x.double()), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match=r"map of \(11, 20\) cells"):
            copy.float()(x[:, :, 1:])


def test_an_observed_layer_is_called_by_itself() -> None:
    torch.manual_seed(0)
    model, seen = seen_statistics(BEV_BACKBONES.build(LEVELS, in_channels=16)), []
    model.deblocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    copy, x = folded(model), torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)


def test_sparse_convolutions_take_relu_and_the_residual_along() -> None:
    torch.manual_seed(0)
    model = seen_statistics(SparseSequential(conv_block(SubMConv3d(16, 16, 3, bias=True)), SparseResidualBlock(16)))
    given, copy = voxels(channels=16), folded(model)
    assert not any(isinstance(layer, nn.ReLU | SparseBatchNorm) for layer in copy.modules())
    with torch.no_grad():
        torch.testing.assert_close(copy(given).features, model(given).features, atol=1e-4, rtol=1e-4)


def test_norms_of_rows_go_into_the_linear_layer_behind_them() -> None:
    torch.manual_seed(0)
    model, x = (
        seen_statistics(nn.Sequential(SparseBatchNorm(4), nn.Linear(4, 6, bias=False), nn.ReLU())),
        torch.randn(7, 4),
    )
    copy = folded(model)
    assert [type(layer) for layer in copy] == [nn.Identity, nn.Linear, nn.ReLU]
    torch.testing.assert_close(copy(x), model(x), atol=1e-5, rtol=1e-5)


def test_the_norms_of_a_stage_of_windows_are_folded() -> None:
    model = seen_statistics(randomized(small()))
    copy, given = folded(model), voxels()
    mixers = [block.mix for stage in copy.stages for block in stage.attention]
    assert mixers
    assert all(isinstance(mix.norm, nn.Identity) and mix.module.qkv.bias is not None for mix in mixers)
    with torch.no_grad():
        torch.testing.assert_close(copy(given).features, model(given).features, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(layer, ScaleAndShift) for layer in copy.modules())
