"""Multi-scale retention as a mixer (RetNet, Sun et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.ops.retention import Within, retention

GAIN = 2**-2.5  # of the projections' initialisation


@MIXERS.register
class RetNet(SequenceMixer):
    """Retention in several heads, head h with the decay 1 − 2^(−5−h).

    Args:
        channels: C.
        num_heads: each with its own decay.
        expand_k: width of queries and keys over C.
        expand_v: width of values over C.
        within: what a token sees inside its chunk: only tokens before it ("causal", as in the paper), or those behind
            it too ("symmetric", as LION was trained).
        chunk: tokens that are worked on at once.

    Raises:
        ValueError: where num_heads do not divide the widths.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 2,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        within: Within = "causal",
        chunk: int = 64,
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
        self.out_proj = nn.Linear(values, channels, bias=False)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(sequences).unflatten(-1, (self.num_heads, -1)) for layer in layers)
        decay = 1 - torch.exp2(-5.0 - torch.arange(self.num_heads, device=sequences.device, dtype=torch.float32))
        return self.out_proj(retention(q, k, v, decay, self.scale, self.within, self.chunk).flatten(2))
