"""RetNet as a mixer (Sun et al., 2023; in LION, Liu et al., NeurIPS 2024). State-dict keys are those of LION."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import DropPath, SequenceMixer
from pcdet_ext.ops.retention import Within, retention

EPS = 1e-6
GAIN = 2**-2.5  # of the projections' initialisation


@MIXERS.register
class RetNet(SequenceMixer):
    """x + Retention(LN(x)), then x + FFN(LN(x)).

    channels: C; num_heads: each with its own decay 1 − 2^(−5−h); expand_k, expand_v: widths of keys and values over C;
    ffn_ratio: inner width of the feed-forward part over C; within: inside chunks of `chunk` tokens look back only
    ("causal", as in the paper) or in both directions ("symmetric", as LION was trained); drop_path: stochastic depth.
    Raises ValueError where num_heads do not divide the widths.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 2,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        ffn_ratio: float = 4.0,
        within: Within = "causal",
        chunk: int = 64,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.retention_layer_norm = nn.LayerNorm(channels, eps=EPS)
        self.multi_scale_retention = MultiScaleRetention(channels, num_heads, expand_k, expand_v, within, chunk)
        self.final_layer_norm = nn.LayerNorm(channels, eps=EPS)
        self.ffn = FeedForward(channels, int(channels * ffn_ratio))
        self.drop_path = DropPath(drop_path)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        x = sequences + self.drop_path(self.multi_scale_retention(self.retention_layer_norm(sequences)))
        return x + self.drop_path(self.ffn(self.final_layer_norm(x)))


class MultiScaleRetention(nn.Module):
    """Projections around `retention`; arguments as in `RetNet`."""

    def __init__(
        self, channels: int, num_heads: int, expand_k: float, expand_v: float, within: Within, chunk: int
    ) -> None:
        super().__init__()
        keys, values = int(channels * expand_k), int(channels * expand_v)
        if num_heads < 1 or keys % num_heads or values % num_heads:
            raise ValueError(
                f"num_heads must divide the widths of keys ({keys}) and values ({values}), got {num_heads}"
            )
        self.num_heads, self.within, self.chunk = num_heads, within, chunk
        self.scale = (keys // num_heads) ** -0.5
        self.q_proj = nn.Linear(channels, keys, bias=False)
        self.k_proj = nn.Linear(channels, keys, bias=False)
        self.v_proj = nn.Linear(channels, values, bias=False)
        self.o_proj = nn.Linear(values, channels, bias=False)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """[G, L, C] to [G, L, C]."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        decay = 1 - torch.exp2(-5.0 - torch.arange(self.num_heads, device=x.device))
        y = retention(q, k, v, decay, self.scale, self.within, self.chunk)
        return self.o_proj(y.flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return self.fc2(F.gelu(self.fc1(x)))
