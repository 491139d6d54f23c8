"""The RetNet mixer against its definition, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.mixers import MIXERS, RetNet
from pcdet_ext.ops.retention import retention_reference


def build(**arguments: object) -> RetNet:
    torch.manual_seed(0)
    return MIXERS.build({"name": "RetNet", **arguments}, channels=12).double().eval()


def definition(mixer: RetNet, x: torch.Tensor) -> torch.Tensor:
    """The operator written out, with the recurrence of retention."""
    heads = mixer.num_heads
    q, k, v = ((x @ p.weight.T).unflatten(-1, (heads, -1)) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    decay = torch.tensor([1 - 2 ** (-5 - h) for h in range(heads)], dtype=x.dtype)
    y = retention_reference(q, k, v, decay, q.shape[-1] ** -0.5, mixer.within, mixer.chunk)
    return y.flatten(2) @ mixer.out_proj.weight.T


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from([1, 2, 3]), st.sampled_from(["causal", "symmetric"]))
def test_equals_the_recurrence(seed: int, length: int, num_heads: int, within: str) -> None:
    mixer = build(num_heads=num_heads, within=within, chunk=6)
    x = torch.randn(2, length, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mixer.mix(x), definition(mixer, x))


def test_what_sees_what() -> None:
    """Causal: only earlier tokens; symmetric: those of the own chunk too."""
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    for within, seen in (("causal", [5, 6]), ("symmetric", [4, 5, 6, 7])):
        later = x.clone().requires_grad_()
        build(within=within, chunk=4).mix(later)[0, 4:8].sum(-1).square().sum().backward()
        assert later.grad[0, 8:].abs().max() == 0
        rows = x.clone().requires_grad_()
        y = build(within=within, chunk=4).mix(rows)
        (grad,) = torch.autograd.grad(y[0, 6].square().sum(), rows)
        assert set(seen) <= set(grad[0].abs().amax(-1).nonzero().flatten().tolist())
        assert bool(grad[0, 7].any()) == (within == "symmetric")


def test_works_in_training_under_autocast() -> None:
    mixer = RetNet(16)
    x = torch.randn(3, 70, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mixer.parameters())


@pytest.mark.parametrize(("arguments", "message"), [({"num_heads": 5}, "num_heads"), ({"num_heads": 0}, "num_heads")])
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)
