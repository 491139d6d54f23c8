"""TTT-Linear against its definition: one token after the other, the gradients of its inner loss by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.mixers import MIXERS, TTT
from pcdet_ext.mixers.ttt import rotate, ttt_linear


def inner_gradient(k: torch.Tensor, v: torch.Tensor, W: torch.Tensor, b: torch.Tensor, norm: tuple) -> torch.Tensor:
    """Of ½‖LN(k W + b) − (v − k)‖² by k W + b; one token of one head."""
    z = (k @ W + b).detach().requires_grad_()
    loss = 0.5 * (F.layer_norm(z, z.shape[-1:], *norm, eps=1e-6) - (v - k)).square().sum()
    return torch.autograd.grad(loss, z)[0]


def token_by_token(q, k, v, token, rate, W, b, weight, bias) -> torch.Tensor:
    """The primal form: weights of each token, all gradients of a mini-batch at its first weights."""
    y, size = torch.zeros_like(q), len(token)
    for g in range(q.shape[0]):
        for h in range(q.shape[2]):
            norm, start = (weight[h], bias[h]), (W[h], b[h, 0])
            for begin in range(0, q.shape[1], size):
                gradients: list[torch.Tensor] = []
                for i, t in enumerate(range(begin, min(begin + size, q.shape[1]))):
                    gradients.append(inner_gradient(k[g, t, h], v[g, t, h], *start, norm))
                    w_i, b_i = start
                    for j, gradient in enumerate(gradients):
                        step = token[i] * rate[g, begin + j, h]
                        w_i = w_i - step * torch.outer(k[g, begin + j, h], gradient)
                        b_i = b_i - step * gradient
                    z = q[g, t, h] @ w_i + b_i
                    y[g, t, h] = q[g, t, h] + F.layer_norm(z, z.shape[-1:], *norm, eps=1e-6)
                start = (w_i, b_i)
    return y


def inputs(seed: int, length: int, mini_batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, length, 2, 4)] * 3 + [(mini_batch,), (2, length, 2), (2, 4, 4), (2, 1, 4), (2, 4), (2, 4)]
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    drawn[3], drawn[4] = drawn[3].abs(), drawn[4].sigmoid() / 4
    return drawn


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.integers(1, 5))
def test_dual_form_equals_the_primal_one(seed: int, length: int, mini_batch: int) -> None:
    given_ = inputs(seed, length, mini_batch)
    torch.testing.assert_close(ttt_linear(*given_), token_by_token(*given_), rtol=1e-7, atol=1e-8)


def test_gradcheck() -> None:
    torch.autograd.gradcheck(ttt_linear, [t.requires_grad_() for t in inputs(1, 5, 3)], fast_mode=True)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    assert TTT(8).mix(torch.zeros(*shape, 8)).shape == (*shape, 8)


@pytest.mark.parametrize("length", [1, 16, 21])
def test_mini_batches_look_back_only(length: int) -> None:
    torch.manual_seed(0)
    mixer = TTT(8).double().eval()
    x = torch.randn(1, length + 3, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer.mix(x)[:, :length], mixer.mix(x[:, :length]))


def test_rotation_depends_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)
    products = [
        (rotate(q, torch.tensor([a])) * rotate(k, torch.tensor([b]))).sum() for a, b in ((3, 1), (9, 7), (0, -2))
    ]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])
    torch.testing.assert_close(rotate(q, torch.tensor([0])), q)


def test_works_in_training_under_autocast() -> None:
    mixer = TTT(16)
    x = torch.randn(3, 70, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer.mix(x)
    y.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in mixer.parameters())


@pytest.mark.parametrize("arguments", [{"num_heads": 3}, {"num_heads": 0}, {"num_heads": 8}, {"mini_batch": 0}])
def test_wrong_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MIXERS.build({"name": "TTT", **arguments}, channels=8)
