"""Retention and the matrix LSTM against their recurrences, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops.retention import mlstm, mlstm_reference, retention, retention_reference


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def retention_inputs(seed: int, length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    q, k, v = draw(seed, 2, length, 3, 4), draw(seed + 1, 2, length, 3, 4), draw(seed + 2, 2, length, 3, 5)
    return [t.to(dtype) for t in (q, k, v)]


def mlstm_inputs(seed: int, length: int, spread: float = 3.0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rows = [draw(seed + i, 2, length, 3, 4) for i in range(3)]
    gates = [spread * draw(seed + 3 + i, 2, length, 3) for i in range(2)]
    return [t.to(dtype) for t in (*rows, *gates)]


DECAY = torch.tensor([0.5, 0.97, 1.0], dtype=torch.float64)
SIZES = {"seed": st.integers(0, 10**6), "length": st.integers(1, 23), "chunk": st.integers(1, 9)}


def assert_same(ours: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Equal values and gradients."""
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    probe = torch.linspace(-1, 1, plain.numel(), dtype=plain.dtype).view_as(plain)
    mine, theirs = (torch.autograd.grad((y * probe).sum(), inputs) for y in (ours, plain))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(**SIZES, within=st.sampled_from(["causal", "symmetric"]))
def test_retention_equals_its_recurrence(seed: int, length: int, chunk: int, within: str) -> None:
    inputs = [t.requires_grad_() for t in retention_inputs(seed, length)]
    options = {"scale": 0.7, "within": within, "chunk": chunk}
    assert_same(retention(*inputs, DECAY, **options), retention_reference(*inputs, DECAY, **options), inputs)


@settings(max_examples=40, deadline=None)
@given(**SIZES, spread=st.sampled_from([0.1, 3.0, 30.0]))
def test_mlstm_equals_its_recurrence(seed: int, length: int, chunk: int, spread: float) -> None:
    inputs = [t.requires_grad_() for t in mlstm_inputs(seed, length, spread)]
    assert_same(mlstm(*inputs, chunk=chunk), mlstm_reference(*inputs), inputs)


def test_symmetric_retention_depends_on_chunks_and_causal_does_not() -> None:
    inputs = retention_inputs(0, 20)
    torch.testing.assert_close(retention(*inputs, DECAY, chunk=5), retention(*inputs, DECAY, chunk=20))
    five, twenty = (retention(*inputs, DECAY, within="symmetric", chunk=c) for c in (5, 20))
    assert (five - twenty).abs().max() > 0.1


def test_gradcheck() -> None:
    torch.autograd.gradcheck(
        lambda *t: retention(*t, DECAY, within="symmetric", chunk=3),
        [t.requires_grad_() for t in retention_inputs(1, 7)],
        fast_mode=True,
    )
    torch.autograd.gradcheck(
        lambda *t: mlstm(*t, chunk=3), [t.requires_grad_() for t in mlstm_inputs(1, 7)], fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_gates_and_long_sequences_stay_finite(dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in mlstm_inputs(2, 700, 60.0, dtype)]
    y = mlstm(*inputs)
    assert y.dtype == dtype
    assert all(bool(t.isfinite().all()) for t in (y, *torch.autograd.grad(y.sum(), inputs)))
    inputs = retention_inputs(2, 700, dtype)
    y = retention(*inputs, DECAY.to(dtype))
    assert y.dtype == dtype
    assert bool(y.isfinite().all())


def test_half_precision_is_computed_in_float32() -> None:
    inputs = retention_inputs(3, 130, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = retention(*inputs, DECAY.float())
    plain = retention(*(t.float() for t in inputs), DECAY.float())
    torch.testing.assert_close(y, plain.bfloat16())


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    row, gate = torch.zeros(*shape, 3, 4), torch.zeros(*shape, 3)
    assert retention(row, row, row, DECAY.float()).shape == row.shape
    assert mlstm(row, row, row, gate, gate).shape == row.shape


def test_wrong_arguments_are_named() -> None:
    q, k, v = retention_inputs(0, 5)
    with pytest.raises(ValueError, match="q and k must be"):
        retention(q, k[:, 1:], v, DECAY)
    with pytest.raises(ValueError, match=r"v must be \[2, 5, 3, E\]"):
        retention(q, k, v[:, 1:], DECAY)
    with pytest.raises(ValueError, match="decay must be"):
        retention(q, k, v, DECAY[:2])
    with pytest.raises(ValueError, match="one floating type"):
        retention(q, k.float(), v, DECAY)
    with pytest.raises(ValueError, match="within must be"):
        retention(q, k, v, DECAY, within="both")
    with pytest.raises(ValueError, match="chunk must be"):
        retention(q, k, v, DECAY, chunk=0)
    *rows, gate, forget = mlstm_inputs(0, 5)
    with pytest.raises(ValueError, match="forget_gate must be"):
        mlstm(*rows, gate, forget[:, 1:])


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    inputs, gated = retention_inputs(4, 200, torch.float32), mlstm_inputs(4, 200, dtype=torch.float32)
    decay = DECAY.float()
    on_gpu = retention(*(t.cuda() for t in inputs), decay.cuda(), within="symmetric")
    torch.testing.assert_close(on_gpu.cpu(), retention(*inputs, decay, within="symmetric"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mlstm(*(t.cuda() for t in gated)).cpu(), mlstm(*gated), rtol=1e-2, atol=1e-3)
