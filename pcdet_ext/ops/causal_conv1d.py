"""Causal depth-wise convolution along time, with the activation behind it (as in front of Mamba's scan)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = (None, "silu")


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """y_t = bias + Σ_k weight_k x_{t−K+1+k}, zeros before the first step; then SiLU where asked. [batch, dim, L].

    x: [batch, dim, L]; weight: [dim, K]; bias: [dim]; activation: None or "silu"; reverse: look at later steps
    instead, as if x and the result were flipped. Raises ValueError naming the argument that is wrong.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be [batch, dim, L], got {list(x.shape)}")
    if weight.ndim != 2 or len(weight) != x.shape[1] or weight.shape[1] < 1:
        raise ValueError(f"weight must be [{x.shape[1]}, K], got {list(weight.shape)}")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(f"bias must be [{x.shape[1]}], got {list(bias.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    return causal_conv1d_reference(x, weight, bias, activation, reverse)


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The definition in PyTorch on any device; see `causal_conv1d`."""
    before = weight.shape[1] - 1
    padded = F.pad(x, (0, before) if reverse else (before, 0))
    kernel = weight.flip(1) if reverse else weight
    y = torch.zeros_like(x) if bias is None else bias[:, None].expand(x.shape)
    for k in range(weight.shape[1]):
        y = y + kernel[:, k, None] * padded[:, :, k : k + x.shape[2]]
    return F.silu(y) if activation == "silu" else y
