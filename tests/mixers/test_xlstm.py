"""The xLSTM mixer against the quadratic form of its paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.mixers import MIXERS, XLSTM
from pcdet_ext.mixers.xlstm import ViLBlock


def build(**arguments: object) -> XLSTM:
    torch.manual_seed(0)
    mixer = MIXERS.build({"name": "XLSTM", **arguments}, channels=8).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def memory(cell: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One head after the other, every pair of tokens."""
    gates = torch.cat([q, k, v], -1)
    inputs, forgets = cell.igate(gates), F.logsigmoid(cell.fgate(gates))
    heads, rows = [], q.shape[1]
    for h, (qh, kh, vh) in enumerate(zip(*(t.chunk(cell.num_heads, -1) for t in (q, k, v)), strict=True)):
        exponent = torch.full((len(q), rows, rows), -math.inf, dtype=q.dtype)
        for i in range(rows):
            for j in range(i + 1):
                exponent[:, i, j] = forgets[:, j + 1 : i + 1, h].sum(-1) + inputs[:, j, h]
        top = exponent.max(-1, keepdim=True).values
        weight = qh @ kh.mT / math.sqrt(qh.shape[-1]) * (exponent - top).exp()
        y = weight @ vh / (torch.maximum(weight.sum(-1, keepdim=True).abs(), (-top).exp()) + 1e-6)
        heads.append(F.layer_norm(y, y.shape[-1:], eps=1e-5))
    return torch.cat(heads, -1) * (1 + cell.outnorm.weight) + cell.outnorm.bias


def definition(block: ViLBlock, x: torch.Tensor) -> torch.Tensor:
    """A block written out: from the first token to the last."""
    layer = block.layer
    normed = F.layer_norm(x, x.shape[-1:], 1 + block.norm.weight, block.norm.bias, 1e-5)
    m, z = layer.proj_up(normed).chunk(2, -1)
    taps, bias = layer.conv.conv.weight[:, 0], layer.conv.conv.bias
    padded = torch.cat([torch.zeros(len(x), taps.shape[1] - 1, m.shape[2], dtype=x.dtype), m], 1)
    a = F.silu(sum(padded[:, t : t + x.shape[1]] * taps[:, t] for t in range(taps.shape[1])) + bias)
    q, k, v = (
        s @ torch.block_diag(*p.weight).T + p.bias for s, p in ((a, layer.q_proj), (a, layer.k_proj), (m, layer.v_proj))
    )
    h = memory(layer.mlstm_cell, q, k, v) + layer.learnable_skip * a
    return x + layer.proj_down(h * F.silu(z))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 13), st.sampled_from([1, 2, 4]))
def test_equals_the_quadratic_form(seed: int, length: int, num_heads: int) -> None:
    mixer = build(num_heads=num_heads, chunk=4)
    x = torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    middle = definition(mixer.rowwise_from_top_left, x)
    expected = definition(mixer.rowwise_from_bot_right, middle.flip(1)).flip(1)
    torch.testing.assert_close(mixer.mix(x), expected, rtol=1e-6, atol=1e-8)


def test_works_in_training_under_autocast() -> None:
    mixer = XLSTM(16, drop_path=0.3)
    x = torch.randn(3, 70, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mixer.parameters())


@pytest.mark.parametrize("arguments", [{"num_heads": 3}, {"num_heads": 0}, {"projection_block": 5}])
def test_wrong_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        build(**arguments)
