"""Mamba in two directions as a mixer (Gu & Dao, 2023; Vision Mamba, Zhu et al., ICML 2024).

State-dict keys are those of LION (Liu et al., NeurIPS 2024).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import DropPath, SequenceMixer
from pcdet_ext.ops.causal_conv1d import causal_conv1d
from pcdet_ext.ops.selective_scan import selective_scan

STEP_RANGE = (1e-3, 0.1)  # of the step sizes Δ at the start of training
DIRECTIONS = ("", "_b")  # suffixes of the forward and the backward direction's parameters


@MIXERS.register
class Mamba(SequenceMixer):
    """x + LN(mamba(x)) along every group, in both directions.

    channels: C; d_state: numbers a channel remembers; d_conv: width of the causal convolution; expand: inner width
    over C; drop_path: stochastic depth. Raises ValueError for sizes that are not positive.
    """

    def __init__(
        self, channels: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("d_state", d_state), ("d_conv", d_conv), ("expand", expand)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.mamba = BidirectionalMamba(channels, d_state, d_conv, int(channels * expand))
        self.norm = nn.LayerNorm(channels)
        self.drop_path = DropPath(drop_path)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        return sequences + self.drop_path(self.norm(self.mamba(sequences)))


class BidirectionalMamba(nn.Module):
    """One Mamba block whose convolution and scan run in both directions with parameters of their own, and are added."""

    def __init__(self, channels: int, d_state: int, d_conv: int, inner: int) -> None:
        super().__init__()
        self.d_state, self.rank = d_state, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        for direction in DIRECTIONS:
            self.add_module("conv1d" + direction, nn.Conv1d(inner, inner, d_conv, groups=inner))
            self.add_module("x_proj" + direction, nn.Linear(inner, self.rank + 2 * d_state, bias=False))
            self.add_module("dt_proj" + direction, _step_projection(self.rank, inner))
            decay_rates = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(inner, 1)
            self.register_parameter(f"A{direction}_log", nn.Parameter(decay_rates.log()))
            self.register_parameter("D" + direction, nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        u, gate = self.in_proj(x).chunk(2, -1)
        return self.out_proj(self._scan(u, gate, "") + self._scan(u, gate, "_b"))

    def _scan(self, u: Tensor, gate: Tensor, direction: str) -> Tensor:
        """One direction: inputs and gate [G, L, E] to [G, L, E]."""
        conv, x_proj = self.get_submodule("conv1d" + direction), self.get_submodule("x_proj" + direction)
        dt_proj = self.get_submodule("dt_proj" + direction)
        backwards = direction == "_b"
        u = causal_conv1d(u.mT, conv.weight.squeeze(1), conv.bias, "silu", backwards)
        step, B, C = x_proj(u.mT).split([self.rank, self.d_state, self.d_state], -1)
        A = -torch.exp(self.get_parameter(f"A{direction}_log").float())
        D = self.get_parameter("D" + direction)
        delta = F.linear(step, dt_proj.weight).mT
        return selective_scan(u, delta, A, B.mT, C.mT, D, gate.mT, dt_proj.bias, True, backwards).mT


def _step_projection(rank: int, inner: int) -> nn.Linear:
    """From the low-rank step to Δ before softplus: at the start, Δ is log-uniform in `STEP_RANGE`."""
    linear = nn.Linear(rank, inner)
    nn.init.uniform_(linear.weight, -(rank**-0.5), rank**-0.5)
    low, high = map(math.log, STEP_RANGE)
    step = torch.exp(low + (high - low) * torch.rand(inner))
    with torch.no_grad():
        linear.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
    return linear
