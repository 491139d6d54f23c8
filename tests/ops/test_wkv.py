"""The recurrence of RWKV-6 against sums over all pairs of steps in float64, in values and gradients."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.wkv import _backward, _scan, wkv, wkv_reference

NAMES = ("r", "k", "v", "w", "u")


def tokens(
    seed: int, batch: int, length: int, heads: int, dim: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """r, k, v, w and u."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, dim)] * 4 + [(heads, dim)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def pairs(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None, reverse: bool) -> Tensor:
    """What each step reads of each other one: Σ_s Σ_i r_ti k_si v_s Π_{s < q < t} e_qi, and of itself with u for Π."""
    if reverse:
        return pairs(*(t.flip(1) for t in (r, k, v, w)), u, False).flip(1)
    y = torch.zeros_like(v)
    for t in range(r.shape[1]):
        for s in range(t + 1):
            if s == t and u is None:
                continue
            kept = u.expand_as(r[:, t]) if s == t else torch.exp(-w[:, s + 1 : t].exp().sum(1))
            y[:, t] += (r[:, t] * k[:, s] * kept).sum(-1, keepdim=True) * v[:, s]
    return y


SIZES = st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(1, 3), st.integers(1, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans())
def test_reference_is_the_sum_over_pairs(seed: int, sizes: tuple, bonus: bool, reverse: bool) -> None:
    r, k, v, w, u = tokens(seed, *sizes)
    u = u if bonus else None
    torch.testing.assert_close(wkv_reference(r, k, v, w, u, reverse), pairs(r, k, v, w, u, reverse))


SIZES = st.tuples(  # with nine sequences, heads are worked on together
    st.sampled_from([0, 1, 3, 9]),
    st.sampled_from([0, 1, 2, 31, 32, 33, 70]),
    st.integers(1, 3),
    st.sampled_from([1, 5, 16, 22, 32]),
)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans())
def test_values_and_gradients_equal_the_reference(seed: int, sizes: tuple, bonus: bool, reverse: bool) -> None:
    x = [t.requires_grad_() for t in tokens(seed, *sizes)][: 5 if bonus else 4]
    u = [] if bonus else [None]
    ours, plain = wkv(*x, *u, reverse), wkv_reference(*x, *u, reverse)
    torch.testing.assert_close(ours, plain)
    probe = torch.rand_like(plain)
    loose = {"allow_unused": True, "materialize_grads": True}  # no steps, no use
    mine, theirs = (torch.autograd.grad((y * probe).sum(), x, **loose) for y in (ours, plain))
    for name, a, b in zip(NAMES, mine, theirs, strict=False):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_float32_is_close_to_float64() -> None:
    x = tokens(3, 2, 300, 2, 32, torch.float32)
    exact = [t.double().requires_grad_() for t in x]
    x = [t.requires_grad_() for t in x]
    ours, plain = wkv(*x), wkv_reference(*exact)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=2e-6 * float(plain.detach().abs().max()))
    mine, theirs = (torch.autograd.grad(y.sum(), v) for y, v in ((ours, x), (plain, exact)))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse: bool) -> None:
    x = [t.requires_grad_() for t in tokens(0, 1, 4, 2, 3)]
    torch.autograd.gradcheck(lambda *t: wkv(*t, reverse), x)


def test_reverse_is_the_flipped_scan() -> None:
    *x, u = tokens(4, 2, 45, 2, 8)
    assert torch.equal(wkv(*x, u, True), wkv(*(t.flip(1) for t in x), u).flip(1))


def test_results_repeat_with_any_number_of_threads() -> None:
    x = [t.requires_grad_() for t in tokens(5, 3, 100, 3, 16, torch.float32)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = wkv(*x)
            results.append([y, *torch.autograd.grad(y.sin().sum(), x)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_narrow_types_are_read_wide_and_the_result_is_of_the_type_of_r() -> None:
    r, k, v, w, u = tokens(6, 2, 20, 2, 8, torch.float32)
    half = [t.bfloat16() for t in (r, k, v)]
    exact = wkv(*(t.float() for t in half), w, u)
    assert torch.equal(wkv(*half, w, u), exact.bfloat16())


@pytest.mark.parametrize("w", [-1e4, -100.0, -10.0, 0.0, 4.0, 10.0, 1e4])
def test_decays_far_from_usual(w: float) -> None:
    one = torch.ones(1, 3, 1, 1)
    y = wkv(one, one, one, w * one)
    kept = math.exp(-math.exp(min(w, 100)))
    torch.testing.assert_close(y.flatten().tolist(), [0.0, 1.0, 1.0 + kept], rtol=1e-6, atol=0)


def test_wrong_arguments_are_named() -> None:
    r, k, v, w, u = tokens(0, 2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"r must be floating point \[batch, L, heads, D\]"):
        wkv(r[0], k, v, w)
    with pytest.raises(ValueError, match="v must be floating point"):
        wkv(r, k, v[:, :-1], w)
    with pytest.raises(ValueError, match="w must be floating point"):
        wkv(r, k, v, w.int())
    with pytest.raises(ValueError, match="u must be floating point"):
        wkv(r, k, v, w, u[:1])


@pytest.mark.parametrize("bonus", [True, False])
def test_ops_are_well_registered(bonus: bool) -> None:
    *x, u = tokens(0, 2, 3, 2, 4)
    u = u if bonus else None
    _, states = _scan(*x, u, False, True)
    torch.library.opcheck(_backward, (*x, u, False, torch.ones_like(x[0]), states))
    leaves = [None if t is None else t.requires_grad_() for t in (*x, u)]
    torch.library.opcheck(_scan, (*leaves, False, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 32, 5, 24, 40])
@pytest.mark.parametrize("bonus", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_cuda_equals_cpu(accelerator: Accelerator, dtype: torch.dtype, dim: int, bonus: bool, reverse: bool) -> None:
    x = [t.to(dtype).float() if t.ndim == 4 else t for t in tokens(7, 2, 71, 2, dim, torch.float32)]
    x = x[: 5 if bonus else 4]
    on_cuda = [t.to(accelerator.device, copy=True).to(dtype if t.ndim == 4 else t.dtype).requires_grad_() for t in x]
    x = [t.requires_grad_() for t in x]
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    rest = [*([] if bonus else [None]), reverse]
    plain = wkv(*x, *rest)
    theirs = torch.autograd.grad(plain.float().sum(), x)
    with accelerator:
        ours = wkv(*on_cuda, *rest)
        mine = torch.autograd.grad(ours.float().sum(), on_cuda)
    torch.testing.assert_close(
        ours.float().cpu(), plain, rtol=tolerance, atol=tolerance * float(plain.detach().abs().max())
    )
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.float().cpu(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dim", [3, 20, 64])
def test_no_width_of_a_head_leaves_the_kernels_on_cuda(
    accelerator: Accelerator, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [t.to(accelerator.device).requires_grad_() for t in tokens(1, 1, 5, 2, dim, torch.float32)]
    expected = wkv_reference(*inputs)
    monkeypatch.setattr(import_module("pcdet_ext.ops.wkv"), "wkv_reference", None)
    with accelerator:
        found = wkv(*inputs)
        torch.autograd.grad(found.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
