"""Softmax attention inside groups against torch's module and a loop over slots."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pcdet_ext.mixers.attention import SoftmaxAttention, grouped_attention
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.structures import Groups, Segments


def groups(seed: int, number: int, length: int, valid: bool = False, owner: bool = False) -> Groups:
    """Groups of distinct voxels in their first slots and copies in some of the others."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(1, length + 1, (number,), generator=generator)
    starts = own.cumsum(0) - own
    slot = torch.arange(length).expand(number, length)
    index = starts[:, None] + slot % own[:, None]
    inverse = torch.cat([g * length + torch.arange(n) for g, n in enumerate(own.tolist())])
    shuffle = torch.randperm(len(inverse), generator=generator)
    owners = torch.randint(0, 3, (number, length), generator=generator) if owner else None
    return Groups(shuffle[index], inverse[shuffle.argsort()], slot < own[:, None] if valid else None, owners)


def loop(qkv: Tensor, plan: Groups, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Each slot of each group on its own."""
    channels = qkv.shape[1] // 3
    q, k, v = (t.view(len(qkv), num_heads, -1) for t in qkv.split(channels, 1))
    slots = torch.zeros(*plan.index.shape, channels, dtype=qkv.dtype)
    for g, members in enumerate(plan.index):
        for i, voxel in enumerate(members):
            seen = [
                j
                for j in range(len(members))
                if (plan.valid is None or plan.valid[g, j])
                and (plan.owner is None or plan.owner[g, i] == plan.owner[g, j])
            ]
            if not seen:
                continue
            keys = members[seen]
            logits = torch.einsum("hd,jhd->hj", q[voxel], k[keys]) / math.sqrt(channels // num_heads)
            if bias is not None:
                logits = logits + bias[g, :, i, seen]
            slots[g, i] = torch.einsum("hj,jhd->hd", logits.softmax(1), v[keys]).flatten()
    return plan.scatter(slots)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_attention_equals_a_loop(
    seed: int, number: int, length: int, heads: int, valid: bool, owner: bool, biased: bool
) -> None:
    plan = groups(seed, number, length, valid, owner)
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(plan.inverse), 18, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(number, heads, length, length, generator=generator, dtype=torch.float64) if biased else None
    ours, plain = grouped_attention(qkv, plan, heads, bias), loop(qkv, plan, heads, bias)
    torch.testing.assert_close(ours, plain)
    probe = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((y * probe).sum(), qkv)[0] for y in (ours, plain + 0 * qkv.sum()))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("valid", [False, True])
def test_module_is_torchs_attention_with_positions_on_queries_and_keys(valid: bool) -> None:
    torch.manual_seed(0)
    mixer, torchs = SoftmaxAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    assert {k: v.shape for k, v in mixer.state_dict().items()} == {k: v.shape for k, v in torchs.state_dict().items()}
    mixer.load_state_dict(torchs.state_dict())
    plan = groups(1, 5, 6, valid=valid)
    x, position = torch.randn(2, len(plan.inverse), 12)
    hidden = None if plan.valid is None else ~plan.valid
    for at, y in ((position, mixer(x, plan, position)), (torch.zeros_like(x), mixer(x, plan))):
        q = plan.gather(x + at)
        expected = plan.scatter(torchs(q, q, plan.gather(x), key_padding_mask=hidden, need_weights=False)[0])
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_gradcheck() -> None:
    plan = groups(2, 3, 4, valid=True, owner=True)
    qkv = torch.randn(len(plan.inverse), 12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: grouped_attention(a, plan, 2, b), (qkv, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_that_sees_nothing_is_finite(dtype: torch.dtype) -> None:
    plan = Groups(torch.arange(6).view(2, 3), torch.arange(6), torch.tensor([[True] * 3, [False] * 3]))
    mixer = SoftmaxAttention(8, 2)
    nn.init.normal_(mixer.out_proj.bias)
    x = torch.randn(6, 8, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = mixer(x, plan)
    torch.testing.assert_close(y[3:], mixer.out_proj.bias.to(y.dtype).expand(3, 8))
    y.float().square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[3:] == 0).all()


def test_autocast_computes_in_half_close_to_single() -> None:
    torch.manual_seed(0)
    mixer, plan = SoftmaxAttention(16, 4), groups(3, 4, 9, valid=True)
    x, position = torch.randn(2, len(plan.inverse), 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer(x, plan, position)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), mixer(x, plan, position), rtol=0, atol=2e-2)


def test_what_others_hold_does_not_reach_a_slot() -> None:
    plan = groups(4, 3, 6, owner=True)
    mixer = SoftmaxAttention(8, 2)
    x = torch.randn(len(plan.inverse), 8)
    voxel_owner = plan.owner.flatten()[plan.inverse]
    changed = torch.where((voxel_owner == 0)[:, None], x, x + 1)
    copies = plan.owner != voxel_owner[plan.index]  # slots that show a voxel of one owner to those of another
    alone = Groups(plan.index, plan.inverse, ~copies, plan.owner)
    same = voxel_owner == 0
    torch.testing.assert_close(mixer(x, alone)[same], mixer(changed, alone)[same])


def test_no_voxels() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    mixer = SoftmaxAttention(8, 2)
    for valid in (None, torch.zeros(0, 4, dtype=torch.bool)):
        assert mixer(torch.zeros(0, 8), Groups(empty.view(0, 4), empty, valid)).shape == (0, 8)


def test_compiled_is_the_same() -> None:
    mixer = SoftmaxAttention(8, 2)
    compiled = torch.compile(copy.deepcopy(mixer), backend="aot_eager", dynamic=True, fullgraph=True)
    for seed in (5, 6):
        plan = groups(seed, 4, 5, valid=True, owner=True)
        x = torch.randn(len(plan.inverse), 8)
        torch.testing.assert_close(compiled(x, plan), mixer(x, plan))


@pytest.mark.parametrize(("channels", "heads"), [(8, 3), (8, 0), (0, 1), (8, -2)])
def test_bad_sizes_are_refused(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"num_heads must be positive and divide channels, got {heads} and {channels}"):
        SoftmaxAttention(channels, heads)


def test_segments_are_refused() -> None:
    mixer = MIXERS.build({"name": "SoftmaxAttention", "num_heads": 2}, channels=8)
    place = torch.arange(3)
    with pytest.raises(ValueError, match="needs equal-size groups, got Segments"):
        mixer(torch.zeros(3, 8), Segments(place, place, torch.tensor([0, 3])))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer, plan = SoftmaxAttention(64, 8), groups(7, 20, 36, valid=True, owner=True)
    x = torch.randn(len(plan.inverse), 64)
    on_gpu = Groups(*(t.cuda() for t in (plan.index, plan.inverse, plan.valid, plan.owner)))
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y = copy.deepcopy(mixer).cuda()(x.cuda(), on_gpu)
    torch.testing.assert_close(y.float().cpu(), mixer(x, plan), rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
