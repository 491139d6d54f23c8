"""Mamba in two directions as a mixer (Gu & Dao, 2023; Vision Mamba, Zhu et al., ICML 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.ops._native import on_cuda
from pcdet_ext.ops.causal_conv1d import causal_conv1d
from pcdet_ext.ops.selective_scan import selective_scan
from pcdet_ext.structures import is_tracing

STEP_RANGE = (1e-3, 0.1)  # of the step sizes Δ at the start of training
NUMBERS_AT_ONCE = 1 << 19  # in an array between steps of inference on a CPU, whose caches then hold it


@MIXERS.register
class Mamba(SequenceMixer):
    """A Mamba block whose convolution and scan run in both directions, with parameters of their own, and are added.

    Args:
        channels: C.
        d_state: numbers that each inner channel remembers.
        d_conv: width of the causal convolution.
        expand: inner width over C.

    Raises:
        ValueError: for sizes that are not positive.
    """

    def __init__(self, channels: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("d_state", d_state), ("d_conv", d_conv), ("expand", expand)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        inner, rank = channels * expand, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.directions = nn.ModuleList(SelectiveScan(inner, rank, d_state, d_conv, way) for way in (False, True))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        if torch.is_grad_enabled() or on_cuda(sequences) or self._is_watched():
            return self._mix(sequences)
        length, inner = sequences.shape[1], self.out_proj.in_features
        some = max(1, NUMBERS_AT_ONCE // max(1, length * inner))
        return torch.cat([self._mix(part) for part in sequences.split(some)])

    def _is_watched(self) -> bool:
        """Whether a graph is recorded, or hooks of layers are to see all sequences at once."""
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.modules())
        return hooked or is_tracing() or torch.compiler.is_compiling()

    def _mix(self, sequences: Tensor) -> Tensor:
        u, gate = self.in_proj(sequences).chunk(2, -1)
        forwards, backwards = (scan(u, gate) for scan in self.directions)
        return self.out_proj(forwards + backwards)


class SelectiveScan(nn.Module):
    """One direction: causal convolution, then a scan whose step size, input and output depend on the token.

    Args:
        inner: E, channels.
        rank: numbers that the step sizes Δ of all channels come from.
        d_state: see `Mamba`.
        d_conv: see `Mamba`.
        backwards: read from the last token to the first.
    """

    def __init__(self, inner: int, rank: int, d_state: int, d_conv: int, backwards: bool) -> None:
        super().__init__()
        self.sizes, self.backwards = [rank, d_state, d_state], backwards
        self.conv = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = _step_projection(rank, inner)
        decay_rates = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(inner, 1)
        self.A_log = nn.Parameter(decay_rates.log())
        self.D = nn.Parameter(torch.ones(inner, dtype=torch.float32))

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        """Inputs and gate [G, L, E] to [G, L, E]."""
        u = causal_conv1d(u.mT, self.conv.weight.squeeze(1), self.conv.bias, "silu", self.backwards)
        step, B, C = self.x_proj(u.mT).split(self.sizes, -1)
        A = -torch.exp(self.A_log.float())
        delta = F.linear(step, self.dt_proj.weight).mT
        bias = self.dt_proj.bias
        return selective_scan(u, delta, A, B.mT, C.mT, self.D, gate.mT, bias, True, self.backwards).mT


def _step_projection(rank: int, inner: int) -> nn.Linear:
    """From the low-rank step to Δ before softplus: at the start, Δ is log-uniform in `STEP_RANGE`."""
    linear = nn.Linear(rank, inner)
    nn.init.uniform_(linear.weight, -(rank**-0.5), rank**-0.5)
    low, high = map(math.log, STEP_RANGE)
    step = torch.exp(low + (high - low) * torch.rand(inner))
    with torch.no_grad():
        linear.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
    return linear
