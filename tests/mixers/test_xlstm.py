"""The xLSTM mixer against the quadratic form of its paper."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.mixers import MIXERS, XLSTM


def build(**arguments: object) -> XLSTM:
    torch.manual_seed(0)
    mixer = MIXERS.build({"name": "XLSTM", **arguments}, channels=8).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def memory(cell: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One head after the other, every pair of tokens."""
    gates = torch.cat([q, k, v], -1)
    inputs, forgets = cell.input_gate(gates), F.logsigmoid(cell.forget_gate(gates))
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
    return torch.cat(heads, -1) * cell.norm.weight + cell.norm.bias


def definition(layer: XLSTM, x: torch.Tensor) -> torch.Tensor:
    """A layer written out: from the first token to the last."""
    m, z = layer.in_proj(x).chunk(2, -1)
    taps, bias = layer.conv.weight[:, 0], layer.conv.bias
    padded = torch.cat([torch.zeros(len(x), taps.shape[1] - 1, m.shape[2], dtype=x.dtype), m], 1)
    a = F.silu(sum(padded[:, t : t + x.shape[1]] * taps[:, t] for t in range(taps.shape[1])) + bias)
    q, k, v = (
        s @ torch.block_diag(*p.weight).T + p.bias for s, p in ((a, layer.q_proj), (a, layer.k_proj), (m, layer.v_proj))
    )
    h = memory(layer.memory, q, k, v) + layer.skip * a
    return layer.out_proj(h * F.silu(z))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 13), st.sampled_from([1, 2, 4]))
def test_equals_the_quadratic_form(seed: int, length: int, num_heads: int) -> None:
    mixer, mirrored = (build(num_heads=num_heads, chunk=4, direction=way) for way in ("forward", "backward"))
    x = torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mixer.mix(x), definition(mixer, x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mirrored.mix(x), definition(mirrored, x.flip(1)).flip(1), rtol=1e-6, atol=1e-8)


def test_works_in_training_under_autocast() -> None:
    mixer = XLSTM(16)
    x = torch.randn(3, 70, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mixer.parameters())


@pytest.mark.parametrize("arguments", [{"num_heads": 3}, {"num_heads": 0}, {"projection_block": 5}, {"direction": ""}])
def test_wrong_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        XLSTM(8, **arguments)
