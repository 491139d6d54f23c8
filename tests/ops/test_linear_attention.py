"""Scattered linear attention against a plain loop, in values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops.linear_attention import (
    _attend,
    _backward,
    scattered_linear_attention,
    scattered_linear_attention_backward_reference,
    scattered_linear_attention_reference,
)


def rows(seed: int, counts: list[int], heads: int, dim: int, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.rand(sum(counts), heads, dim, generator=generator, dtype=dtype) for _ in range(3))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return q, k, v - 0.5, offsets


def loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, eps: float) -> torch.Tensor:
    """Attention weights written out: w_ij = q_i·k_j, y_i = Σ w_ij v_j / (Σ w_ij + eps)."""
    parts = []
    bounds = offsets.tolist()
    for begin, end in itertools.pairwise(bounds):
        weights = torch.einsum("ihd,jhd->hij", q[begin:end], k[begin:end])
        above = torch.einsum("hij,jhd->ihd", weights, v[begin:end])
        parts.append(above / (weights.sum(-1).T.unsqueeze(-1) + eps))
    return torch.cat(parts)


COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), COUNTS, st.integers(1, 3), st.sampled_from([1, 3, 8, 16, 32, 64]))
def test_values_and_gradients_equal_attention_written_out(seed: int, counts: list[int], heads: int, dim: int) -> None:
    q, k, v, offsets = rows(seed, counts, heads, dim)
    inputs = [t.requires_grad_() for t in (q, k, v)]
    ours, plain = scattered_linear_attention(*inputs, offsets, 1e-3), loop(*inputs, offsets, 1e-3)
    torch.testing.assert_close(ours, plain)
    probe = torch.rand_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((plain * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 32), (torch.float64, 16), (torch.float32, 24)])
def test_parts_of_one_projection_are_read_where_they_lie(dtype: torch.dtype, dim: int) -> None:
    heads, offsets = 3, torch.tensor([0, 5, 5, 18, 40])
    together = torch.rand(40, 3 * heads * dim + 7, dtype=dtype)
    q, k, v = (part.unflatten(1, (heads, dim)) for part in together[:, 7:].chunk(3, 1))
    apart = [t.contiguous() for t in (q, k, v)]
    assert scattered_linear_attention(q, k, v, offsets).equal(scattered_linear_attention(*apart, offsets))
    for mixed in ((q, apart[1], v), (apart[0], k, v), (q, k, apart[2])):  # as a compiler may hand them over
        assert torch.ops.pcdet_ext.linear_attention(*mixed, offsets, 1e-6).equal(
            scattered_linear_attention(*apart, offsets)
        )
    torch.testing.assert_close(
        scattered_linear_attention(q, k, v, offsets), scattered_linear_attention_reference(*apart, offsets)
    )
    dy = torch.rand_like(apart[0])
    grads = [_backward(*rows, offsets, 1e-6, dy) for rows in ((q, k, v), apart)]
    assert all(mine.equal(theirs) for mine, theirs in zip(*grads, strict=True))


def test_gradcheck() -> None:
    q, k, v, offsets = rows(0, [3, 0, 1, 4], 2, 4)
    inputs = [t.requires_grad_() for t in (q, k, v)]
    torch.autograd.gradcheck(lambda *t: scattered_linear_attention(*t, offsets, 1e-2), inputs)


@pytest.mark.parametrize("counts", [[3, 0, 1, 4], [0], [7]])
def test_gradients_without_kernel_are_those_of_the_definition(counts: list[int]) -> None:
    q, k, v, offsets = rows(5, counts, 2, 4)
    inputs, dy = [t.requires_grad_() for t in (q, k, v)], torch.rand_like(q)
    expected = torch.autograd.grad(scattered_linear_attention_reference(*inputs, offsets, 1e-2), inputs, dy)
    plain = (t.detach() for t in inputs)
    for mine, theirs in zip(
        scattered_linear_attention_backward_reference(*plain, offsets, 1e-2, dy), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_on_the_cpu_too(dtype: torch.dtype) -> None:
    q, k, v, offsets = rows(6, [30, 50], 2, 8, torch.float32)
    wide, half = ([t.to(kind).requires_grad_() for t in (q, k, v)] for kind in (torch.float32, dtype))
    outputs = [scattered_linear_attention(*inputs, offsets) for inputs in (wide, half)]
    found = [torch.autograd.grad(y.float().square().sum(), t) for y, t in zip(outputs, (wide, half), strict=True)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other.float(), one, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("counts", [[500], [1] * 500, [0] * 64 + [3], []])
def test_extreme_segments(counts: list[int]) -> None:
    q, k, v, offsets = rows(1, counts, 4, 32, torch.float32)
    ours = scattered_linear_attention(q, k, v, offsets)
    torch.testing.assert_close(ours, scattered_linear_attention_reference(q, k, v, offsets), rtol=1e-4, atol=1e-6)
    if counts == [1] * 500:
        torch.testing.assert_close(ours, v, rtol=1e-4, atol=1e-5)


def test_rows_without_weight_give_zero() -> None:
    q, k, v, offsets = rows(2, [4, 2], 1, 8)
    k[4:] = 0
    q[0] = 0
    y = scattered_linear_attention(q, k, v, offsets)
    assert (y[4:] == 0).all()
    assert (y[0] == 0).all()


def test_wrong_arguments_are_named() -> None:
    q, k, v, offsets = rows(0, [2, 3], 2, 4)
    with pytest.raises(ValueError, match="of one shape"):
        scattered_linear_attention(q, k[:-1], v, offsets)
    with pytest.raises(ValueError, match="floating type"):
        scattered_linear_attention(q, k.float(), v, offsets)
    with pytest.raises(ValueError, match="offsets must be int64"):
        scattered_linear_attention(q, k, v, offsets.int())
    for wrong in ([0, 4], [1, 5], [0, 3, 2, 5]):
        with pytest.raises(ValueError, match="offsets must ascend from 0 to the number of rows 5"):
            scattered_linear_attention(q, k, v, torch.tensor(wrong))


def test_ops_are_well_registered() -> None:
    q, k, v, offsets = rows(0, [2, 3], 2, 4)
    torch.library.opcheck(_attend, (q.requires_grad_(), k, v, offsets, 1e-6))
    torch.library.opcheck(_backward, (q.detach(), k, v, offsets, 1e-6, torch.ones_like(q)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 16, 32, 64, 24])
def test_cuda_equals_cpu(accelerator: Accelerator, dtype: torch.dtype, dim: int) -> None:
    q, k, v, offsets = rows(3, [1, 0, 37, 70, 5], 2, dim, torch.float32)
    q, k, v = (t.to(dtype).float() for t in (q, k, v))
    expected = [t.requires_grad_() for t in (q, k, v)]
    given_ = [t.detach().to(accelerator.device, dtype, copy=True).requires_grad_() for t in (q, k, v)]
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    plain = scattered_linear_attention(*expected, offsets)
    theirs = torch.autograd.grad(plain.sum(), expected)
    with accelerator:
        ours = scattered_linear_attention(*given_, offsets.to(accelerator.device))
        grads = torch.autograd.grad(ours.float().sum(), given_)
    torch.testing.assert_close(ours.float().cpu(), plain, rtol=tolerance, atol=tolerance)
    for mine, other in zip(grads, theirs, strict=True):
        torch.testing.assert_close(mine.float().cpu(), other, rtol=10 * tolerance, atol=tolerance)
