"""Attentional pooling by learnt queries, and a mixer of the pooled tokens (HOTFormerLoc, CVPR 2025, section 3.4).

After SALSA (Goswami et al., RA-L 2024). Queries are compared with the features themselves: no projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pcdet_ext.models.pooling.base import Reads, RowFeatures
from pcdet_ext.models.pooling.gem import EPS, POWER
from pcdet_ext.models.pooling.registry import POOLINGS

MERGED = 4  # pooled tokens per token that is left in the descriptor
MIX_DEPTH = 4


class QueryPooling(nn.Module):
    """softmax(Q xᵀ / √C) x of each cloud, with learnt queries Q [num_queries, C]."""

    def __init__(self, channels: int, num_queries: int) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.queries = nn.Parameter(torch.randn(num_queries, channels))

    def forward(self, rows: RowFeatures) -> Tensor:
        """Pooled tokens [B, num_queries, C]; zeros for a cloud without rows."""
        x, valid = rows.padded()
        seen = valid | ~valid.any(1, keepdim=True)  # a softmax over nothing would be NaN; its rows here are zeros
        logits = self.queries @ x.transpose(1, 2) * x.shape[2] ** -0.5
        return logits.masked_fill(~seen[:, None], -torch.inf).softmax(2) @ x


class ResidualMLP(nn.Module):
    """x + W₂ GELU(W₁ LN(x)) over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.in_proj, self.out_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, k, C] to the same shape."""
        return x + self.out_proj(nn.functional.gelu(self.in_proj(self.norm(x))))


class DescriptorMixer(nn.Module):
    """Layers over the channels of k tokens, then a linear layer over tokens, k to k // 4, and one over channels.

    Args:
        channels: of a token.
        num_tokens: k.
        out_channels: of the descriptor.

    Raises:
        ValueError: k // 4 is 0 or does not divide `out_channels`.
    """

    def __init__(self, channels: int, num_tokens: int, out_channels: int) -> None:
        super().__init__()
        left = num_tokens // MERGED
        if left < 1 or out_channels % left:
            raise ValueError(
                f"a quarter of the {num_tokens} queries, {left}, must divide a descriptor's {out_channels} channels"
            )
        self.mix = nn.Sequential(*(ResidualMLP(channels) for _ in range(MIX_DEPTH)))
        self.over_tokens, self.over_channels = nn.Linear(num_tokens, left), nn.Linear(channels, out_channels // left)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, k, C] to descriptors [B, out_channels], token after token."""
        tokens = self.over_tokens(self.mix(tokens).transpose(1, 2)).transpose(1, 2)
        return self.over_channels(tokens).flatten(1)


class TokenGeM(nn.Module):
    """The generalized mean of k tokens [B, k, C], each after a residual layer: [B, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix, self.power = ResidualMLP(channels), nn.Parameter(torch.full((1,), POWER))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, k, C] to descriptors [B, C]."""
        return self.mix(tokens).clamp(min=EPS).pow(self.power).mean(1).pow(1 / self.power)


@POOLINGS.register
class PyramidAttentionPooling(nn.Module):
    """Queries of their own for each depth; all pooled tokens are mixed into the descriptor.

    Args:
        channels: of each depth, the finest first.
        num_queries: of each depth.
        out_channels: D; a quarter of all queries must divide it.
        token_channels: of the pooled tokens; depths of another width get a linear layer. By default the widest.

    Raises:
        ValueError: for numbers that do not fit.
    """

    reads: ClassVar[Reads] = "nodes"

    def __init__(
        self,
        channels: Sequence[int],
        num_queries: Sequence[int] = (74, 36, 18),
        out_channels: int = 256,
        token_channels: int | None = None,
    ) -> None:
        super().__init__()
        if len(channels) != len(num_queries):
            raise ValueError(f"num_queries must be one number for each of {len(channels)} depths, got {num_queries}")
        width = max(channels) if token_channels is None else token_channels
        self.out_channels = out_channels
        self.pool = nn.ModuleList(QueryPooling(c, k) for c, k in zip(channels, num_queries, strict=True))
        self.project = nn.ModuleList(nn.Identity() if c == width else nn.Linear(c, width) for c in channels)
        self.descriptor = DescriptorMixer(width, sum(num_queries), out_channels)

    def forward(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, out_channels]."""
        parts = zip(levels, self.pool, self.project, strict=True)
        return self.descriptor(torch.cat([project(pool(rows)) for rows, pool, project in parts], 1))


@POOLINGS.register
class TokenAttentionPooling(nn.Module):
    """One set of queries for the relay tokens of all depths.

    Args:
        channels: of each depth; the tokens have the widest.
        num_queries: k.
        out_channels: D. With the aggregator "mixer" a quarter of the queries must divide it, with "gem" it must be the
            channels of the tokens.
        aggregator: what makes the descriptor of the pooled tokens.

    Raises:
        ValueError: for numbers that do not fit, and an unknown aggregator.
    """

    reads: ClassVar[Reads] = "tokens"

    def __init__(
        self,
        channels: Sequence[int],
        num_queries: int = 64,
        out_channels: int = 256,
        aggregator: Literal["mixer", "gem"] = "mixer",
    ) -> None:
        super().__init__()
        width = max(channels)
        if aggregator not in ("mixer", "gem"):
            raise ValueError(f"aggregator must be mixer or gem, got {aggregator!r}")
        if aggregator == "gem" and out_channels != width:
            raise ValueError(f"with gem a descriptor has the {width} channels of the tokens, not {out_channels}")
        self.out_channels = out_channels
        self.pool = QueryPooling(width, num_queries)
        mixer = aggregator == "mixer"
        self.descriptor = DescriptorMixer(width, num_queries, out_channels) if mixer else TokenGeM(width)

    def forward(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, out_channels]."""
        features = torch.cat([rows.features for rows in levels])
        frame = torch.cat([rows.batch_index for rows in levels])
        return self.descriptor(self.pool(RowFeatures(features, frame, levels[0].batch_size)))
