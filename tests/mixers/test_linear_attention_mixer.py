"""Linear attention inside groups and segments against attention weights written out, slot by slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.grouping.orders import Hilbert
from pcdet_ext.grouping.partitions import EqualGroups, window_segments
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.structures import Groups, Segments, SparseVoxels


def groups(seed: int, number: int, length: int, valid: bool, owner: bool) -> Groups:
    """Groups of distinct voxels in their first slots and copies of them in the others."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(1, length + 1, (number,), generator=generator)
    slot = torch.arange(length).expand(number, length)
    index = (own.cumsum(0) - own)[:, None] + slot % own[:, None]
    inverse = torch.cat([g * length + torch.arange(n) for g, n in enumerate(own.tolist())])
    shuffle = torch.randperm(len(inverse), generator=generator)
    owners = torch.randint(-1, 3, (number, length), generator=generator) if owner else None
    return Groups(shuffle[index], inverse[shuffle.argsort()], slot < own[:, None] if valid else None, owners)


def written_out(mixer: LinearAttention, x: Tensor, sees: Tensor, voxel: Tensor, position: Tensor | None) -> Tensor:
    """Attention of slots, sees: bool [S, S], voxel: int64 [S]; [S, C] before the output's projection."""
    channels = x.shape[1]
    weight, bias = mixer.qkv.weight, mixer.qkv.bias
    placed = x if position is None else x + position
    parts = []
    for i, rows in enumerate((placed, placed, x)):
        part = rows[voxel] @ weight[i * channels : (i + 1) * channels].T
        part = part if bias is None else part + bias[i * channels : (i + 1) * channels]
        parts.append((part if i == 2 else part.clamp(min=0)).view(len(voxel), mixer.num_heads, -1))
    q, k, v = parts
    weights = torch.einsum("ihd,jhd->ijh", q, k) * sees[..., None]
    total = weights.sum(1) + mixer.eps
    return (torch.einsum("ijh,jhd->ihd", weights, v) / total[..., None]).flatten(1)


def visible(plan: Groups) -> Tensor:
    """Which flat slot sees which, bool [S, S]."""
    group = torch.arange(len(plan.index)).repeat_interleave(plan.index.shape[1])
    sees = group[:, None] == group
    if plan.owner is not None:
        sees &= plan.owner.view(-1, 1) == plan.owner.view(-1)
    return sees if plan.valid is None else sees & plan.valid.view(-1)


def mixer_and_rows(seed: int, rows: int, heads: int, **options: object) -> tuple[LinearAttention, Tensor, Tensor]:
    torch.manual_seed(seed)
    mixer = LinearAttention(heads * 3, heads, **options).double()
    return mixer, torch.randn(rows, heads * 3).double(), torch.randn(rows, heads * 3).double()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_groups_equal_attention_written_out(seed, number, length, heads, valid, owner, bias):
    plan = groups(seed, number, length, valid, owner)
    mixer, x, position = mixer_and_rows(seed, len(plan.inverse), heads, qkv_bias=bias, eps=1e-3)
    x.requires_grad_()
    expected = mixer.out_proj(plan.scatter(written_out(mixer, x, visible(plan), plan.index.flatten(), position)))
    actual = mixer(x, plan, position)
    torch.testing.assert_close(actual, expected)
    probe = torch.randn_like(expected)
    inputs = [x, *mixer.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((actual * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), min_size=1, max_size=30), st.sampled_from([1, 2]))
def test_segments_equal_attention_written_out(seed, windows, heads):
    index = torch.tensor(windows)
    mixer, x, position = mixer_and_rows(seed, len(index), heads)
    sees = index[:, None] == index
    expected = mixer.out_proj(written_out(mixer, x, sees, torch.arange(len(index)), position))
    torch.testing.assert_close(mixer(x, window_segments(index), position), expected)


def test_one_order_serves_groups_and_segments():
    """Whole frames as segments, and as one group each: the same numbers."""
    coords = torch.tensor([[b, 0, y, x] for b in range(2) for y in range(4) for x in range(4)], dtype=torch.int32)
    mixer, x, _ = mixer_and_rows(0, len(coords), 2)
    voxels = SparseVoxels(x, coords, (1, 4, 4), 2)
    grouped = mixer(x, EqualGroups(16)(voxels, Hilbert()))
    torch.testing.assert_close(grouped, mixer(x, window_segments(coords[:, 0].long())))


def test_rows_may_come_in_any_order():
    mixer, x, _ = mixer_and_rows(1, 60, 2)
    index = torch.arange(60) % 7
    shuffle = torch.randperm(60)
    plain = mixer(x, window_segments(index))
    torch.testing.assert_close(mixer(x[shuffle], window_segments(index[shuffle])), plain[shuffle])


def test_gradcheck():
    mixer, x, _ = mixer_and_rows(2, 9, 2, eps=1e-2)
    plan = window_segments(torch.tensor([0, 1, 0, 2, 2, 0, 1, 3, 2]))
    assert torch.autograd.gradcheck(lambda t: mixer(t, plan), x.requires_grad_())


@pytest.mark.parametrize("length", [0, 4])
def test_no_voxels(length):
    mixer, x, _ = mixer_and_rows(3, 0, 2)
    none = torch.zeros(0, dtype=torch.int64)
    assert mixer(x, Segments(none, none, torch.zeros(1, dtype=torch.int64))).shape == x.shape
    if length:
        empty = torch.zeros(0, length, dtype=torch.int64)
        for owner in (None, empty):
            assert mixer(x, Groups(empty, none, owner=owner)).shape == x.shape


def test_half_precision_stays_close():
    torch.manual_seed(4)
    mixer, x = LinearAttention(64, 4), torch.randn(200, 64)  # with few channels a head, a query may meet hardly a key
    plan = window_segments(torch.arange(200) % 9)
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer(x, plan)
    torch.testing.assert_close(half.float(), mixer(x, plan), rtol=0.05, atol=0.02)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_heads must be positive and divide channels, got 3 and 8 channels"):
        MIXERS.build({"name": "LinearAttention", "num_heads": 3}, channels=8)
    with pytest.raises(ValueError, match="got 0 and 8"):
        LinearAttention(8, 0)
    with pytest.raises(ValueError, match="eps must be positive, got 0"):
        LinearAttention(8, 2, eps=0)
