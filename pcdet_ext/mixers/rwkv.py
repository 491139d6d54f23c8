"""RWKV-6's time mix in two directions as a mixer (Peng et al., "Eagle and Finch", 2024)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.ops.wkv import wkv

MIX_RANK, DECAY_RANK = 32, 64  # inner widths of what the inputs say about their mixing and about the decay
MIXED = ("w", "k", "v", "r", "g")  # what token shift mixes: decay, key, value, receptance, gate


class Place(NamedTuple):
    """Where a layer stands: depth from 0 (first) to 1 (last), and the share of layers that remain, its own counted."""

    depth: float
    remaining: float

    @staticmethod
    def of(layer_id: int, num_layers: int) -> Place:
        """The place of a layer, counted from 0. Raises ValueError for numbers that cannot be."""
        if layer_id < 0 or num_layers < 1:
            raise ValueError(f"layer_id must not be negative and num_layers be positive, got {layer_id}, {num_layers}")
        return Place(min(layer_id / max(num_layers - 1, 1), 1.0), max(1 - layer_id / num_layers, 0.0))


@MIXERS.register
class RWKV(SequenceMixer):
    """Two scans with data-dependent decay: forwards, a token seeing itself with a bonus, and backwards without it.

    Args:
        channels: C.
        num_heads: of the state, each C / num_heads wide.
        layer_id: number of the layer among all layers, for the initialisation.
        num_layers: how many there are.

    Raises:
        ValueError: for heads that do not divide the channels, and for places that do not exist.
    """

    def __init__(self, channels: int, num_heads: int = 2, layer_id: int = 0, num_layers: int = 1) -> None:
        super().__init__()
        if num_heads < 1 or channels < 1 or channels % num_heads:
            raise ValueError(f"num_heads must be positive and divide channels, got {num_heads} and {channels} channels")
        place = Place.of(layer_id, num_layers)
        self.num_heads = num_heads
        # How much of the previous token goes into each of `MIXED`, and (x) into what decides on it.
        self.shift = nn.ParameterDict({name: nn.Parameter(s) for name, s in _shift_at_start(channels, place).items()})
        self.shift_down = nn.Parameter(torch.zeros(channels, len(MIXED) * MIX_RANK))
        self.shift_up = nn.Parameter(torch.empty(len(MIXED), MIX_RANK, channels).uniform_(-0.01, 0.01))
        along = torch.arange(channels, dtype=torch.float32) / max(channels - 1, 1)
        self.decay = nn.Parameter(-6 + 5 * along ** (0.7 + 1.3 * place.depth))
        self.decay_down = nn.Parameter(torch.zeros(channels, DECAY_RANK))
        self.decay_up = nn.Parameter(torch.empty(DECAY_RANK, channels).uniform_(-0.01, 0.01))
        zigzag = ((torch.arange(channels) + 1) % 3 - 1) * 0.1
        self.bonus = nn.Parameter((place.depth * (1 - along) + zigzag).view(num_heads, -1))
        self.receptance, self.key, self.value, self.gate = (nn.Linear(channels, channels, bias=False) for _ in range(4))
        self.norm = nn.GroupNorm(num_heads, channels)
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        xw, xk, xv, xr, xg = self._shifted(sequences)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.decay + torch.tanh(xw @ self.decay_down) @ self.decay_up
        r, k, v, w = (t.unflatten(-1, (self.num_heads, -1)) for t in (r, k, v, w))
        y = wkv(r, k, v, w, self.bonus) + wkv(r, k, v, w, reverse=True)
        normed = self.norm(y.view(-1, sequences.shape[2])).view(sequences.shape)
        return self.out_proj(normed * F.silu(self.gate(xg)))

    def _shifted(self, x: Tensor) -> list[Tensor]:
        """Each token mixed with the one before it, as the two say: one [G, L, C] for each of `MIXED`."""
        to_previous = previous_token(x) - x
        inner = torch.tanh((x + to_previous * self.shift["x"]) @ self.shift_down)
        inner = inner.unflatten(-1, (len(MIXED), MIX_RANK)).unbind(-2)
        return [
            x + to_previous * (self.shift[name] + low @ high)
            for name, low, high in zip(MIXED, inner, self.shift_up, strict=True)
        ]


def previous_token(x: Tensor) -> Tensor:
    """The token before each one of sequences [G, L, C], zeros before the first."""
    return F.pad(x, (0, 0, 1, -1))


def _shift_at_start(channels: int, place: Place) -> dict[str, Tensor]:
    """Shares [C] of the previous token: more in later channels, less in later layers."""
    along = torch.arange(channels, dtype=torch.float32) / channels
    slow, fast = 1 - along**place.remaining, 1 - along ** (0.5 * place.remaining)
    return {
        "x": slow,
        "w": slow.clone(),
        "k": slow.clone(),
        "v": slow - 0.3 * place.depth,
        "r": fast,
        "g": fast.clone(),
    }
