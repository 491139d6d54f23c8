"""Depth-wise submanifold convolution against torch's dense grouped convolution, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.models.depthwise_conv import DepthwiseSubMConv3d, submanifold_table
from pcdet_ext.ops.depthwise_conv import (
    _depthwise,
    _weight_gradient,
    depthwise_conv,
    depthwise_conv_reference,
    depthwise_weight_gradient_reference,
)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 5, 32, 67])
def test_kernels_equal_the_reference(dtype, channels):
    found = voxels(1, 700, (6, 10, 12), channels)
    table = submanifold_table(found, (3, 3, 3))
    x, dy, weight = (t.to(dtype) for t in (found.features, torch.randn(700, channels), torch.randn(27, channels)))
    torch.testing.assert_close(_depthwise(x, weight, table), depthwise_conv_reference(x, weight, table))
    expected = depthwise_weight_gradient_reference(x, dy, table)
    torch.testing.assert_close(_weight_gradient(x, dy, table), expected, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    found = voxels(2, 20, (2, 3, 4))
    table = submanifold_table(found, (3, 1, 3))
    inputs = [found.features.requires_grad_(), torch.randn(9, 3, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(lambda x, w: depthwise_conv(x, w, table), inputs)
    torch.library.opcheck(_depthwise, (*inputs, table))
    torch.library.opcheck(_weight_gradient, (inputs[0].detach(), inputs[0].detach(), table))


def test_results_repeat_with_any_number_of_threads():
    found = voxels(3, 900, (6, 10, 12), 16)
    table = submanifold_table(found, (3, 3, 3))
    x, weight = found.features.float(), torch.randn(27, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((_depthwise(x, weight, table), _weight_gradient(x, x, table)))
    finally:
        torch.set_num_threads(before)
    for y, dw in results[1:]:
        assert y.equal(results[0][0])
        assert dw.equal(results[0][1])


def test_wrong_arguments_are_named():
    x, weight, table = torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x and weight must be \[N, C\] and \[K, C\], got \[4, 3\] and \[9, 2\]"):
        depthwise_conv(x, weight[:, :2], table)
    with pytest.raises(ValueError, match=r"float32 or float64, got torch.float16"):
        depthwise_conv(x.half(), weight.half(), table)
    with pytest.raises(ValueError, match=r"table must be int64 \[4, 9\], got torch.int32 \[4, 9\]"):
        depthwise_conv(x, weight, table.int())
    with pytest.raises(ValueError, match=r"three odd sizes \(z, y, x\), got \(1, 2, 3\)"):
        DepthwiseSubMConv3d(4, (1, 2, 3))
