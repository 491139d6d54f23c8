"""The transformers of TrajectoryFormer: over the points of a box, and over the hypotheses of all tracks."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


def _attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor) -> Tensor:
    return cast(Tensor, attention(query, key, key, need_weights=False)[0])


class PointLayer(nn.Module):
    """Points look at each other, then one token of their box looks at them.

    The token and the points share norms and linear layers, as published.

    Args:
        dim: width.
        heads: of each attention.
        feed: width between the two linear layers.
    """

    def __init__(self, dim: int, heads: int, feed: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.point_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, feed), nn.Linear(feed, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, token: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """New token [M, 1, dim] and points [M, K, dim]."""
        points = self._fed(self.norm1(points + _attend(self.point_attn, points, points)))
        return self._fed(self.norm1(token + _attend(self.self_attn, token, points))), points

    def _fed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm2(x + self.linear2(self.linear1(x).relu())))


class PointTransformer(nn.Module):
    """Several layers of points. Arguments as in `PointLayer`, and `layers`, their number."""

    def __init__(self, dim: int, heads: int, feed: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PointLayer(dim, heads, feed) for _ in range(layers))

    def forward(self, token: Tensor, points: Tensor) -> list[Tensor]:
        """The token [M, 1, dim] after each layer, from a token [M, 1, dim] and points [M, K, dim]."""
        tokens = []
        for layer in self.layers:
            token, points = layer(token, points)
            tokens.append(token)
        return tokens


class _Feed(nn.Module):
    def __init__(self, dim: int, feed: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, feed), nn.Linear(feed, dim)
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, found: Tensor) -> Tensor:
        x = self.norm2(x + found)
        return cast(Tensor, self.norm3(x + self.linear2(self.linear1(x).relu())))


class HypothesisLayer(nn.Module):
    """Hypotheses look at those of all tracks, then at those of their own track. Arguments as in `PointLayer`."""

    def __init__(self, dim: int, heads: int, feed: int) -> None:
        super().__init__()
        self.global_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.local_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ffn1, self.ffn2 = _Feed(dim, feed), _Feed(dim, feed)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, H, dim] of the same shape: H hypotheses of N tracks of each sample."""
        every, own = x.flatten(1, 2), x.flatten(0, 1)
        own = self.ffn1(every, _attend(self.global_attn, every, every)).view_as(own)
        return cast(Tensor, self.ffn2(own, _attend(self.local_attn, own, own)).view_as(x))


class HypothesisTransformer(nn.Module):
    """Several layers of hypotheses. Arguments as in `HypothesisLayer`, and `layers`, their number."""

    def __init__(self, dim: int, heads: int, feed: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HypothesisLayer(dim, heads, feed) for _ in range(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features [B, N, H, dim] after each layer."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found
