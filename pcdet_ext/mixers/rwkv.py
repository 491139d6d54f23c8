"""RWKV-6 in two directions as a mixer (Peng et al., "Eagle and Finch", 2024; in LION, Liu et al., NeurIPS 2024).

State-dict keys are those of LION.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import DropPath, SequenceMixer
from pcdet_ext.ops.wkv import wkv

MIX_RANK, DECAY_RANK = 32, 64  # inner widths of what the inputs say about their mixing and about the decay
MIXED = ("w", "k", "v", "r", "g")  # what token shift mixes, in the order of the published weights
ChannelMix = Literal["shifted", "difference"]


class Place(NamedTuple):
    """Where a layer stands: depth from 0 (first) to 1 (last), and the share of layers that remain, its own counted."""

    depth: float
    remaining: float


@MIXERS.register
class RWKV(SequenceMixer):
    """x + γ1 · SpatialMix(LN(x)), then x + γ2 · ChannelMix(LN(x)), along every group.

    channels: C; num_heads: of the state, each C / num_heads wide; hidden_rate: inner width of the channel mix over C;
    layer_id, num_layers: place among all layers, for the initialisation, and layer 0 norms its input first;
    channel_mix: mix each token with the one before it ("shifted", as in RWKV), or with the difference to it
    ("difference", as LION was trained); init_values: γ at the start; drop_path: stochastic depth.
    Raises ValueError for heads that do not divide the channels, and for sizes and places that do not exist.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 2,
        hidden_rate: float = 4,
        layer_id: int = 0,
        num_layers: int = 1,
        channel_mix: ChannelMix = "shifted",
        init_values: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels < 1 or channels % num_heads:
            raise ValueError(f"num_heads must be positive and divide channels, got {num_heads} and {channels} channels")
        if int(hidden_rate * channels) < 1:
            raise ValueError(f"hidden_rate must be positive, got {hidden_rate}")
        if layer_id < 0 or num_layers < 1:
            raise ValueError(f"layer_id must not be negative and num_layers be positive, got {layer_id}, {num_layers}")
        place = Place(min(layer_id / max(num_layers - 1, 1), 1.0), max(1 - layer_id / num_layers, 0.0))
        if layer_id == 0:
            self.ln0 = nn.LayerNorm(channels)
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.att = SpatialMix(channels, num_heads, place)
        self.ffn = ChannelMixer(channels, int(hidden_rate * channels), place, channel_mix)
        self.gamma1 = nn.Parameter(torch.full((channels,), float(init_values)))
        self.gamma2 = nn.Parameter(torch.full((channels,), float(init_values)))
        self.drop_path = DropPath(drop_path)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        x = self.ln0(sequences) if hasattr(self, "ln0") else sequences
        x = x + self.drop_path(self.gamma1 * self.att(self.ln1(x)))
        return x + self.drop_path(self.gamma2 * self.ffn(self.ln2(x)))


class SpatialMix(nn.Module):
    """Two scans with data-dependent decay: forwards, a step seeing itself with its bonus, and backwards without it."""

    def __init__(self, channels: int, heads: int, place: Place) -> None:
        super().__init__()
        self.heads = heads
        for name, start in _mixing_at_start(channels, place).items():
            self.register_parameter(f"time_maa_{name}", nn.Parameter(start.view(1, 1, -1)))
        self.time_maa_w1 = nn.Parameter(torch.zeros(channels, len(MIXED) * MIX_RANK))
        self.time_maa_w2 = nn.Parameter(torch.empty(len(MIXED), MIX_RANK, channels).uniform_(-0.01, 0.01))
        along = torch.arange(channels) / max(channels - 1, 1)
        self.time_decay = nn.Parameter((-6 + 5 * along ** (0.7 + 1.3 * place.depth)).view(1, 1, -1))
        self.time_decay_w1 = nn.Parameter(torch.zeros(channels, DECAY_RANK))
        self.time_decay_w2 = nn.Parameter(torch.empty(DECAY_RANK, channels).uniform_(-0.01, 0.01))
        zigzag = ((torch.arange(channels) + 1) % 3 - 1) * 0.1
        self.time_faaaa = nn.Parameter((place.depth * (1 - along) + zigzag).view(heads, -1))
        for name in ("receptance", "key", "value", "gate", "output"):
            self.add_module(name, nn.Linear(channels, channels, bias=False))
        self.ln_x = nn.GroupNorm(heads, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        xw, xk, xv, xr, xg = self._mixed(x)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.time_decay + torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2
        r, k, v, w = (t.unflatten(-1, (self.heads, -1)) for t in (r, k, v, w))
        y = wkv(r, k, v, w, self.time_faaaa) + wkv(r, k, v, w, reverse=True)
        return self.output(self.ln_x(y.view(-1, x.shape[2])).view(x.shape) * F.silu(self.gate(xg)))

    def _mixed(self, x: Tensor) -> list[Tensor]:
        """Each token mixed with the one before it, as the two say: one [G, L, C] for each of `MIXED`."""
        to_previous = previous(x) - x
        inner = torch.tanh((x + to_previous * self.time_maa_x) @ self.time_maa_w1)
        inner = inner.unflatten(-1, (len(MIXED), MIX_RANK)).unbind(-2)
        shares = [self.get_parameter(f"time_maa_{name}") for name in MIXED]
        return [
            x + to_previous * (share + low @ high)
            for share, low, high in zip(shares, inner, self.time_maa_w2, strict=True)
        ]


class ChannelMixer(nn.Module):
    """σ(receptance) · value(ReLU(key)²), of tokens that are mixed with the one before; see `RWKV`."""

    def __init__(self, channels: int, hidden: int, place: Place, mix: ChannelMix) -> None:
        super().__init__()
        if mix not in get_args(ChannelMix):
            raise ValueError(f"channel_mix must be one of {', '.join(get_args(ChannelMix))}, got {mix!r}")
        self.mix_with_difference = mix == "difference"
        start = (torch.arange(channels) / channels) ** place.remaining
        self.spatial_mix_k = nn.Parameter(start.view(1, 1, -1))
        self.spatial_mix_r = nn.Parameter(start.view(1, 1, -1).clone())
        self.key = nn.Linear(channels, hidden, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        other = previous(x) - x if self.mix_with_difference else previous(x)
        k = torch.lerp(other, x, self.spatial_mix_k.to(x.dtype))
        r = torch.lerp(other, x, self.spatial_mix_r.to(x.dtype))
        return torch.sigmoid(self.receptance(r)) * self.value(F.relu(self.key(k)).square())


def previous(x: Tensor) -> Tensor:
    """The token before each one of sequences [G, L, C], zeros before the first."""
    return F.pad(x, (0, 0, 1, -1))


def _mixing_at_start(channels: int, place: Place) -> dict[str, Tensor]:
    """Shares [C] of the previous token: more in later channels, less in later layers."""
    along = torch.arange(channels) / channels
    slow, fast = 1 - along**place.remaining, 1 - along ** (0.5 * place.remaining)
    return {
        "x": slow,
        "w": slow.clone(),
        "k": slow.clone(),
        "v": slow - 0.3 * place.depth,
        "r": fast,
        "g": fast.clone(),
    }
