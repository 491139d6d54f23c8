"""The selective scan against its recurrence written out in float64, in values and gradients."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.selective_scan import _backward, _scan, selective_scan, selective_scan_reference

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def series(
    seed: int,
    batch: int,
    dim: int,
    state: int,
    length: int,
    dtype: torch.dtype = torch.float64,
    rows_last: bool = False,
) -> dict[str, Tensor]:
    """Arguments by name; rows_last: in memory as [batch, L, rows]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def sequence(rows: int) -> Tensor:
        return normal(batch, length, rows).mT if rows_last else normal(batch, rows, length)

    step = sequence(dim).square() / 4  # negative steps would let the state grow without bound
    values = (sequence(dim), step, -normal(dim, state).exp(), sequence(state), sequence(state))
    return dict(zip(NAMES, (*values, normal(dim), sequence(dim), normal(dim).abs()), strict=True))


def recurrence(x: dict[str, Tensor], softplus: bool, reverse: bool) -> Tensor:
    """One channel of one sequence after the other, one number of the state after the other."""
    u, delta, A, B, C = (x[name] for name in NAMES[:5])
    y = torch.zeros_like(u)
    for b in range(u.shape[0]):
        for d in range(u.shape[1]):
            h = [u.new_zeros(()) for _ in range(A.shape[1])]
            for t in reversed(range(u.shape[2])) if reverse else range(u.shape[2]):
                step = delta[b, d, t] + (x["delta_bias"][d] if "delta_bias" in x else 0)
                step = (1 + step.exp()).log() if softplus else step
                h = [(step * A[d, n]).exp() * h[n] + step * B[b, n, t] * u[b, d, t] for n in range(len(h))]
                out = sum(C[b, n, t] * h[n] for n in range(len(h)))
                out = out + (x["D"][d] * u[b, d, t] if "D" in x else 0)
                y[b, d, t] = out * x["z"][b, d, t] * torch.sigmoid(x["z"][b, d, t]) if "z" in x else out
    return y


SIZES = st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_reference_is_the_recurrence(
    seed: int, sizes: tuple, rows_last: bool, softplus: bool, reverse: bool, options: bool
) -> None:
    x = series(seed, *sizes, rows_last=rows_last)
    x = x if options else {name: x[name] for name in NAMES[:5]}
    ours = selective_scan_reference(**x, delta_softplus=softplus, reverse=reverse)
    torch.testing.assert_close(ours, recurrence(x, softplus, reverse))


SIZES = st.tuples(st.integers(0, 5), st.integers(1, 70), st.integers(1, 9), st.sampled_from([0, 1, 2, 31, 32, 33, 70]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_values_and_gradients_equal_the_reference(
    seed: int, sizes: tuple, rows_last: bool, softplus: bool, reverse: bool, options: bool
) -> None:
    x = series(seed, *sizes, rows_last=rows_last)
    x = {name: t.requires_grad_() for name, t in x.items() if options or name in NAMES[:5]}
    flags = {"delta_softplus": softplus, "reverse": reverse}
    ours, plain = selective_scan(**x, **flags), selective_scan_reference(**x, **flags)
    torch.testing.assert_close(ours, plain)
    probe = torch.rand_like(plain)
    loose = {"allow_unused": True, "materialize_grads": True}  # no steps, no use
    mine, theirs = (torch.autograd.grad((y * probe).sum(), list(x.values()), **loose) for y in (ours, plain))
    for name, a, b in zip(x, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_float32_is_close_to_float64() -> None:
    x = series(3, 2, 24, 16, 300, torch.float32, rows_last=True)
    exact = {name: t.double().requires_grad_() for name, t in x.items()}
    x = {name: t.requires_grad_() for name, t in x.items()}
    ours = selective_scan(**x, delta_softplus=True)
    plain = selective_scan_reference(**exact, delta_softplus=True)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=2e-5)
    mine, theirs = (torch.autograd.grad(y.sum(), list(v.values())) for y, v in ((ours, x), (plain, exact)))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse: bool) -> None:
    x = [t.requires_grad_() for t in series(0, 1, 2, 2, 4).values()]
    torch.autograd.gradcheck(lambda *t: selective_scan(*t, True, reverse), x)


def test_reverse_is_the_flipped_scan() -> None:
    x = series(4, 2, 5, 4, 45)
    flipped = {name: t.flip(2) if t.ndim == 3 else t for name, t in x.items()}
    assert torch.equal(selective_scan(**x, reverse=True), selective_scan(**flipped).flip(2))


def test_results_repeat_with_any_number_of_threads() -> None:
    x = {name: t.requires_grad_() for name, t in series(5, 3, 40, 8, 100, torch.float32).items()}
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = selective_scan(**x, delta_softplus=True)
            results.append([y, *torch.autograd.grad(y.sin().sum(), list(x.values()))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_result_has_the_strides_and_type_of_u() -> None:
    x = series(6, 2, 6, 4, 10, torch.float32, rows_last=True)
    assert selective_scan(**x).stride() == x["u"].stride()
    half = {name: t.bfloat16() if t.ndim == 3 else t for name, t in x.items()}
    exact = selective_scan(**{name: t.float() for name, t in half.items()})
    assert torch.equal(selective_scan(**half), exact.bfloat16())


@pytest.mark.parametrize("x", [-1e4, -200.0, -90.0, -87.0, -20.0, 0.0, 1e-4, 15.0, 88.0, 200.0])
def test_steps_far_from_zero(x: float) -> None:
    """softplus and exp at their ends: nothing overflows, small steps keep their precision."""
    one = torch.ones(1, 1, 1)
    ours = selective_scan(one, x * one, -one[0], one, one, delta_softplus=True)
    step = math.log1p(math.exp(-abs(x))) + max(x, 0)
    torch.testing.assert_close(ours.item(), step, rtol=1e-6, atol=1e-37)


def test_not_a_number_stays() -> None:
    x = series(7, 1, 2, 2, 6, torch.float32)
    x["delta"][0, 1, 3] = math.nan
    y = selective_scan(**x, delta_softplus=True)
    assert y[0, 1, 3:].isnan().all()
    assert not y[0, 0].isnan().any()
    x = series(7, 1, 2, 2, 6, torch.float32)
    x["A"][1, 0] = math.nan
    assert selective_scan(**x)[0, 1].isnan().all()


def test_wrong_arguments_are_named() -> None:
    x = series(0, 2, 3, 4, 5)
    for name in NAMES[1:]:
        wrong = x | {name: x[name][:-1] if x[name].ndim == 1 else x[name][..., :-1]}
        with pytest.raises(ValueError, match=f"{'B' if name == 'A' else name} must be "):
            selective_scan(**wrong)
    with pytest.raises(ValueError, match=r"u must be \[batch, dim, L\]"):
        selective_scan(**x | {"u": x["u"][0]})
    with pytest.raises(ValueError, match="B must be floating point"):
        selective_scan(**x | {"B": x["B"].int()})


@pytest.mark.parametrize("options", [True, False])
def test_ops_are_well_registered(options: bool) -> None:
    x = series(0, 2, 3, 4, 5, rows_last=True)
    arguments = [t if options or name in NAMES[:5] else None for name, t in x.items()]
    _, states = _scan(*arguments, True, False, True)
    torch.library.opcheck(_backward, (*arguments, True, False, torch.ones_like(x["u"]), states))
    leaves = [None if t is None else t.detach().requires_grad_() for t in arguments]
    torch.library.opcheck(_scan, (*leaves, True, False, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state", [8, 16, 5, 40])
@pytest.mark.parametrize("rows_last", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cuda_equals_cpu(
    accelerator: Accelerator, dtype: torch.dtype, state: int, rows_last: bool, reverse: bool
) -> None:
    x = series(8, 2, 40, state, 71, torch.float32, rows_last)
    x = {name: t.to(dtype).float() if t.ndim == 3 else t for name, t in x.items()}
    on_cuda = {
        name: t.to(accelerator.device, copy=True).to(dtype if t.ndim == 3 else t.dtype).requires_grad_()
        for name, t in x.items()
    }
    x = {name: t.requires_grad_() for name, t in x.items()}
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    plain = selective_scan(**x, delta_softplus=True, reverse=reverse)
    theirs = torch.autograd.grad(plain.float().sum(), list(x.values()))
    with accelerator:
        ours = selective_scan(**on_cuda, delta_softplus=True, reverse=reverse)
        mine = torch.autograd.grad(ours.float().sum(), list(on_cuda.values()))
    scale = float(plain.detach().abs().max())
    torch.testing.assert_close(ours.float().cpu(), plain, rtol=tolerance, atol=tolerance * scale)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.float().cpu(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("state", [3, 12, 64])
def test_no_size_of_the_state_leaves_the_kernels_on_cuda(
    accelerator: Accelerator, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = series(1, 1, 3, state, 5, torch.float32)
    x = {name: t.to(accelerator.device).requires_grad_() for name, t in x.items()}
    expected = selective_scan_reference(**x, delta_softplus=True)
    monkeypatch.setattr(import_module("pcdet_ext.ops.selective_scan"), "selective_scan_reference", None)
    with accelerator:
        found = selective_scan(**x, delta_softplus=True)
        torch.autograd.grad(found.sum(), list(x.values()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
