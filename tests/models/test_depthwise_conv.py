"""Depth-wise submanifold convolution against torch's dense grouped convolution, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.models.layers.depthwise_conv import DepthwiseSubMConv3d
from pcdet_ext.structures import SparseVoxels

KERNELS = [(3, 3, 3), (1, 1, 7), (1, 5, 1), (1, 1, 1), (5, 1, 3)]


def voxels(seed: int, number: int, grid: tuple[int, int, int], channels: int = 3) -> SparseVoxels:
    """Distinct cells of two frames in any order."""
    generator = torch.Generator().manual_seed(seed)
    depth, height, width = grid
    cells = torch.randperm(2 * depth * height * width, generator=generator)[:number]
    line, plane = cells // width, cells // (width * height)
    coords = torch.stack([plane // depth, plane % depth, line % height, cells % width], 1).int()
    return SparseVoxels(torch.randn(len(cells), channels, generator=generator).double(), coords, grid, 2)


def dense(found: SparseVoxels, weight: Tensor) -> Tensor:
    """torch's convolution of all cells, read at the occupied ones."""
    channels = weight.shape[-1]
    kernel = weight.permute(3, 0, 1, 2)[:, None]
    padding = [k // 2 for k in kernel.shape[2:]]
    result = F.conv3d(found.dense(), kernel, padding=padding, groups=channels)
    b, z, y, x = found.coords.long().unbind(1)
    return result[b, :, z, y, x]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(KERNELS))
def test_values_and_gradients_equal_a_dense_convolution(seed, number, kernel):
    found = voxels(seed, number, (3, 4, 6))
    conv = DepthwiseSubMConv3d(3, kernel).double()
    torch.nn.init.normal_(conv.weight)
    features = found.features.requires_grad_()
    ours, plain = conv(found, features), dense(found, conv.weight)
    torch.testing.assert_close(ours, plain)
    probe = torch.randn_like(plain)
    inputs = [features, conv.weight]
    for mine, theirs in zip(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((plain * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kernel", [(1, 2, 3), (3, 3), (1, 0, 3)])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=r"three odd sizes \(z, y, x\), got"):
        DepthwiseSubMConv3d(4, kernel)
