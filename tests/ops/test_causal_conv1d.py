"""The causal convolution against torch's own and written out, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.causal_conv1d import _backward, _convolve, causal_conv1d, causal_conv1d_reference


def filtered(
    seed: int,
    batch: int,
    dim: int,
    width: int,
    length: int,
    dtype: torch.dtype = torch.float64,
    rows_last: bool = False,
) -> list[Tensor]:
    """x, weight and bias; rows_last: x lies in memory as [batch, L, dim]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x = normal(batch, length, dim).mT if rows_last else normal(batch, dim, length)
    return [x, normal(dim, width), normal(dim)]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """torch's convolution of a padded, maybe flipped sequence."""
    x = x.flip(2) if reverse else x
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))
    y = F.silu(y) if silu else y
    return y.flip(2) if reverse else y


SIZES = st.tuples(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, 3, 5, 63, 64, 65, 130])
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_values_and_gradients_equal_a_padded_convolution(
    seed: int, sizes: tuple, rows_last: bool, silu: bool, reverse: bool, biased: bool
) -> None:
    x = [t.requires_grad_() for t in filtered(seed, *sizes, rows_last=rows_last)][: 3 if biased else 2]
    bias = [] if biased else [None]
    ours = causal_conv1d(*x, *bias, "silu" if silu else None, reverse)
    plain = convolution(*x, *bias, silu, reverse)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(causal_conv1d_reference(*x, *bias, "silu" if silu else None, reverse), plain)
    probe = torch.rand_like(plain)
    mine, theirs = (torch.autograd.grad((y * probe).sum(), x) for y in (ours, plain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_gives_nothing(batch: int, length: int) -> None:
    x = [t.requires_grad_() for t in filtered(0, batch, 3, 4, length)]
    y = causal_conv1d(*x, "silu")
    assert y.shape == (batch, 3, length)
    assert all((g == 0).all() for g in torch.autograd.grad(y.sum(), x))


def test_gradcheck() -> None:
    x = [t.requires_grad_() for t in filtered(1, 1, 2, 3, 5)]
    torch.autograd.gradcheck(lambda *t: causal_conv1d(*t, "silu"), x)


def test_result_has_the_strides_and_type_of_x() -> None:
    x, weight, bias = filtered(2, 2, 20, 4, 30, torch.float32, rows_last=True)
    assert causal_conv1d(x, weight, bias).stride() == x.stride()
    half = x.bfloat16()
    assert torch.equal(causal_conv1d(half, weight, bias), causal_conv1d(half.float(), weight, bias).bfloat16())


def test_wrong_arguments_are_named() -> None:
    x, weight, bias = filtered(3, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="x must be floating point"):
        causal_conv1d(x[0], weight, bias)
    with pytest.raises(ValueError, match=r"weight must be \[3, K\]"):
        causal_conv1d(x, weight[:2], bias)
    with pytest.raises(ValueError, match=r"bias must be \[3\]"):
        causal_conv1d(x, weight, bias[:2])
    with pytest.raises(ValueError, match="activation must be None or 'silu', got 'relu'"):
        causal_conv1d(x, weight, bias, "relu")


@pytest.mark.parametrize("biased", [True, False])
def test_ops_are_well_registered(biased: bool) -> None:
    x, weight, bias = filtered(4, 2, 3, 4, 5, rows_last=True)
    bias = bias if biased else None
    torch.library.opcheck(_backward, (x, weight, bias, True, False, torch.ones_like(x)))
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(_convolve, (*leaves, True, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 3, 4, 7])
@pytest.mark.parametrize("rows_last", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cuda_equals_cpu(
    accelerator: Accelerator, dtype: torch.dtype, width: int, rows_last: bool, reverse: bool
) -> None:
    x, weight, bias = filtered(5, 2, 70, width, 71, torch.float32, rows_last)
    x = x.to(dtype).float()
    on_cuda = [t.to(accelerator.device, copy=True) for t in (x.to(dtype), weight, bias)]
    on_cuda = [t.requires_grad_() for t in on_cuda]
    x = [t.requires_grad_() for t in (x, weight, bias)]
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    plain = causal_conv1d(*x, "silu", reverse)
    theirs = torch.autograd.grad(plain.float().sum(), x)
    with accelerator:
        ours = causal_conv1d(*on_cuda, "silu", reverse)
        mine = torch.autograd.grad(ours.float().sum(), on_cuda)
    torch.testing.assert_close(ours.float().cpu(), plain, rtol=tolerance, atol=tolerance)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.float().cpu(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
