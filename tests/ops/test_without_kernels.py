"""Where no kernel covers a call, results and gradients are those of the references, as with kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcdet_ext.ops import (
    _native,
    causal_conv1d,
    group_attention,
    octree_depthwise_conv,
    scattered_linear_attention,
    segment_reduce,
    segment_softmax,
    selective_scan,
    wkv,
)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


OFFSETS = torch.tensor([0, 2, 5])
INDEX = torch.tensor([0, 2, -1, 2, 0])
TABLE = torch.tensor([[0, 1], [-1, 4], [3, -1]])
SLOTS, READ = torch.tensor([[4, 2, 0], [1, 3, 1]]), torch.tensor([2, 3, 1, 4, 0])
CELLS = torch.tensor([[0, 1, 2], [3, 0, 0], [0, 0, 9], [1, 1, 1], [-1, -1, -1]], dtype=torch.int32)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "selective_scan": (
        lambda u, d, A, B, C, D, z, b: selective_scan(u, d, -A, B, C, D, z, b, delta_softplus=True, reverse=True),
        (*(rand(2, 3, 4) for _ in range(2)), rand(3, 2), rand(2, 2, 4), rand(2, 2, 4), rand(3), rand(2, 3, 4), rand(3)),
    ),
    "selective_scan, plain": (
        lambda u, d, A, B, C: selective_scan(u, d, -A, B, C),
        (rand(1, 2, 3), rand(1, 2, 3), rand(2, 2), rand(1, 2, 3), rand(1, 2, 3)),
    ),
    "causal_conv1d": (lambda x, w, b: causal_conv1d(x, w, b, "silu"), (rand(2, 3, 5), rand(3, 4), rand(3))),
    "causal_conv1d, plain": (lambda x, w: causal_conv1d(x, w, reverse=True), (rand(2, 3, 5), rand(3, 2))),
    "wkv": (lambda r, k, v, w, u: wkv(r, k, v, -w, u), (*(rand(1, 4, 2, 3) for _ in range(4)), rand(2, 3))),
    "scattered_linear_attention": (
        lambda q, k, v: scattered_linear_attention(q, k, v, OFFSETS, 1e-2),
        tuple(rand(5, 2, 3) for _ in range(3)),
    ),
    "segment_reduce": (lambda x: segment_reduce(x, INDEX, 4, "mean"), (rand(5, 2),)),
    "segment_softmax": (lambda x: segment_softmax(x, INDEX, 4), (rand(5, 2),)),
    "group_attention": (
        lambda qkv, t: group_attention(qkv, SLOTS, READ, 2, SLOTS > 0, SLOTS // 3, CELLS, t),
        (rand(5, 12), rand(9, 2)),
    ),
    "octree_depthwise_conv": (lambda x, w: octree_depthwise_conv(x, w, TABLE), (rand(5, 3), rand(2, 3))),
}


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda device: None)


@pytest.mark.parametrize("name", CALLS)
def test_gradients(name: str, no_kernels: None) -> None:
    call, inputs = CALLS[name]
    torch.autograd.gradcheck(call, [t.clone().requires_grad_() for t in inputs])


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, inputs = CALLS[name]
    with_kernels = call(*inputs)
    monkeypatch.setattr(_native, "library", lambda device: None)
    torch.testing.assert_close(call(*inputs), with_kernels)
