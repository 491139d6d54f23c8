"""Octree attention against its definition, written with loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pcdet_ext.grouping.orders import ZOrder
from pcdet_ext.grouping.partitions import OctreeWindows
from pcdet_ext.mixers import OctreeAttention
from pcdet_ext.ops.group_attention import relative_bias
from pcdet_ext.structures import Groups, SparseVoxels

CHANNELS, HEADS = 8, 2


def voxels() -> SparseVoxels:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(2 * 4 * 8 * 8, generator=generator)[:45].sort().values
    coords = torch.stack([cells // 256, cells // 64 % 4, cells // 8 % 8, cells % 8], 1).int()
    x = torch.randn(45, CHANNELS, generator=generator, dtype=torch.float64)
    return SparseVoxels(x, coords, (4, 8, 8), 2)


def slow(mixer: OctreeAttention, x: Tensor, plan: Groups) -> Tensor:
    """One query at a time, one head at a time."""
    qkv = x @ mixer.in_proj_weight.T + mixer.in_proj_bias
    size, table = CHANNELS // HEADS, mixer.relative_bias
    out = torch.zeros_like(x)
    for row in range(len(x)):
        group, slot = divmod(int(plan.inverse[row]), plan.index.shape[1])
        assert int(plan.index[group, slot]) == row
        seen = [
            int(other)
            for place, other in enumerate(plan.index[group])
            if plan.valid[group, place] and plan.owner[group, place] == plan.owner[group, slot]
        ]
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            logits = []
            for other in seen:
                q, k = qkv[row, :CHANNELS][part], qkv[other, CHANNELS : 2 * CHANNELS][part]
                logit = q @ k / math.sqrt(size)
                for axis, column in enumerate((2, 1, 0)):  # x, y, z of cells (z, y, x)
                    away = int(plan.cells[row, column] - plan.cells[other, column])
                    away = max(-mixer.bound, min(mixer.bound, away))
                    logit = logit + table[axis * (2 * mixer.bound + 1) + mixer.bound + away, head]
                logits.append(logit)
            weights = torch.stack(logits).softmax(0)
            values = qkv[seen, 2 * CHANNELS :][:, part]
            out[row, part] = weights @ values
    return mixer.out_proj(out)


@pytest.mark.parametrize("straddle", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_it_is_its_definition(dilation: int, straddle: bool) -> None:
    torch.manual_seed(0)
    given = voxels()
    mixer = OctreeAttention(CHANNELS, HEADS, group_size=6, dilation=dilation).double()
    torch.nn.init.normal_(mixer.relative_bias)
    plan = OctreeWindows(6, dilation, straddle)(given, ZOrder())
    torch.testing.assert_close(mixer(given.features, plan), slow(mixer, given.features, plan))


def test_gradients_are_right() -> None:
    torch.manual_seed(0)
    given = voxels()
    mixer = OctreeAttention(CHANNELS, HEADS, group_size=2).double()
    plan = OctreeWindows(6)(given, ZOrder())
    x = given.features[:45].clone().requires_grad_()
    parameters = tuple(mixer.parameters())
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x, plan))

    torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_distances_beyond_the_bound_count_as_the_bound() -> None:
    mixer = OctreeAttention(CHANNELS, HEADS, group_size=2)  # bound 1
    plan = Groups(torch.tensor([[0, 1, 2]]), torch.arange(3), cells=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 7]]))
    bias = relative_bias(plan.cells[plan.index], mixer.relative_bias)
    assert mixer.bound == 1
    assert torch.equal(bias[0, :, 1, 0], bias[0, :, 2, 0])
    assert not torch.equal(bias[0, :, 1, 0], bias[0, :, 0, 1])


@pytest.mark.parametrize(
    ("size", "dilation", "bound"), [(32, 1, 25), (32, 4, 51), (48, 1, 38), (48, 4, 76), (64, 4, 102)]
)
def test_published_bounds(size: int, dilation: int, bound: int) -> None:
    assert OctreeAttention(8, 2, size, dilation).bound == bound


def test_rows_without_a_place_have_no_bias() -> None:
    mixer = OctreeAttention(CHANNELS, HEADS, group_size=4)
    cells = torch.tensor([[-1, -1, -1], [0, 0, 1], [3, 0, 7]])
    bias = relative_bias(cells[None], mixer.relative_bias)
    assert not bias[0, :, 0].any()
    assert not bias[0, :, :, 0].any()
    assert bias[0, :, 1:, 1:].all()


def test_groups_without_cells_are_refused() -> None:
    plan = Groups(torch.tensor([[0, 1, 2]]), torch.arange(3))
    with pytest.raises(ValueError, match="groups that know the cells"):
        OctreeAttention(CHANNELS, HEADS)(torch.zeros(3, CHANNELS), plan)
    assert OctreeAttention(CHANNELS, HEADS, relative_position=False)(torch.zeros(3, CHANNELS), plan).shape == (3, 8)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="group_size and dilation must be at least 1, got 0 and 1"):
        OctreeAttention(CHANNELS, HEADS, group_size=0)
