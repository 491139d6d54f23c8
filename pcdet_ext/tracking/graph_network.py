"""The network of 3DMOTFormer: graph transformers over tracks and detections, with features on the edges between them.

Ding et al., "3DMOTFormer: Graph Transformer for Online 3D Multi-Object Tracking", ICCV 2023. Parameters have the
published names. Edges are int64 [2, E], rows of their sources and of their targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from pcdet_ext.ops.segment import segment_reduce, segment_softmax

NODE_FEATURES, EDGE_FEATURES = 17, 10


class GraphAttention(nn.Module):
    """Attention of nodes over the nodes that edges come from, without a projection of its result.

    Args:
        dim: width of the features.
        heads: how many heads share it.
        dropout: probability with which an attention weight is dropped in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads = heads
        self.lin_key, self.lin_query = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.lin_value, self.lin_skip = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor, edges: Tensor) -> Tensor:
        """Attend to the nodes that edges come from.

        Args:
            source: [M, dim].
            target: [N, dim].
            edges: int64 [2, E], from sources to targets.

        Returns:
            [N, dim].
        """
        return self._gathered(self._scores(source, target, edges), self._values(source, edges), target, edges)

    def _scores(self, source: Tensor, target: Tensor, edges: Tensor) -> Tensor:
        query = self.lin_query(target)[edges[1]].unflatten(1, (self.heads, -1))
        key = self.lin_key(source)[edges[0]].unflatten(1, (self.heads, -1))
        return (query * key).sum(2) / math.sqrt(key.shape[2])

    def _values(self, source: Tensor, edges: Tensor) -> Tensor:
        return self.lin_value(source)[edges[0]]

    def _gathered(self, scores: Tensor, values: Tensor, target: Tensor, edges: Tensor) -> Tensor:
        share = self.dropout(segment_softmax(scores, edges[1], len(target)))
        weighted = (values.unflatten(1, (self.heads, -1)) * share[..., None]).flatten(1)
        return segment_reduce(weighted, edges[1], len(target), "sum") + self.lin_skip(target)


class EdgeAttention(GraphAttention):
    """Attention in which features of the edges take part, and that gives new ones.

    Args:
        dim: width.
        heads: how many heads share it.
        dropout: of the attention.
        gate: whether the values are multiplied with a sigmoid of the features of the edges.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, gate: bool = False) -> None:
        super().__init__(dim, heads, dropout)
        self.lin_edge_attn, self.lin_edge = nn.Linear(dim, heads), nn.Linear(heads, dim)
        self.lin_edge_gate = nn.Linear(dim, dim, bias=False) if gate else None

    def attend(self, source: Tensor, target: Tensor, edges: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the nodes that edges come from; a target without edges gets its own part only.

        Args:
            source: [M, dim].
            target: [N, dim].
            edges: int64 [2, E], from sources to targets.
            features: [E, dim] of the edges.

        Returns:
            [N, dim] of the targets and [E, dim] of the edges.
        """
        scores = self._scores(source, target, edges) + self.lin_edge_attn(features)
        values = self._values(source, edges)
        if self.lin_edge_gate is not None:
            values = values * self.lin_edge_gate(features).sigmoid()
        return self._gathered(scores, values, target, edges), self.lin_edge(scores)


class _Feed(nn.Module):
    """What encoders and decoders share: two linear layers with ReLU and dropout."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def feed(self, x: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.dropout(self.lin1(x).relu())))


class EncoderLayer(_Feed):
    """Tracks look at the tracks around them.

    Args:
        dim: width.
        heads: of the attention.
        dropout: of attention and feed-forward network.
        norm_first: whether norms come before attention and feed-forward network instead of after them.
    """

    def __init__(self, dim: int, heads: int, dropout: float, norm_first: bool) -> None:
        super().__init__(dim, dropout)
        self.norm_first = norm_first
        self.self_attn = GraphAttention(dim, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """New features [N, dim]."""
        if self.norm_first:
            normed = self.norm1(x)
            x = x + self.dropout(self.self_attn(normed, normed, edges))
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.dropout(self.self_attn(x, x, edges)))
        return self.norm2(x + self.feed(x))


class DecoderLayer(_Feed):
    """Detections look at the detections around them, and then at the tracks that they may belong to.

    Args:
        dim: width.
        heads: of both attentions.
        dropout: of attentions and feed-forward network.
        norm_first: whether norms come before attentions and feed-forward network instead of after them.
        gate: see `EdgeAttention`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, norm_first: bool, gate: bool) -> None:
        super().__init__(dim, dropout)
        self.norm_first = norm_first
        self.self_attn, self.cross_attn = GraphAttention(dim, heads, dropout), EdgeAttention(dim, heads, dropout, gate)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.lin_e1, self.lin_e2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm_e1, self.norm_e2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, tracks: Tensor, features: Tensor, own_edges: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New features of detections and edges.

        Before norms that come first, the edges have no residual around their last layer, as published.

        Args:
            x: [N, dim] of the detections.
            tracks: [T, dim].
            features: [E, dim] of the edges from tracks to detections.
            own_edges: int64 [2, F], between detections.
            edges: int64 [2, E], from tracks to detections.

        Returns:
            [N, dim] and [E, dim].
        """
        if self.norm_first:
            normed = self.norm1(x)
            x = x + self.dropout(self.self_attn(normed, normed, own_edges))
            found, change = self.cross_attn.attend(tracks, self.norm2(x), edges, self.norm_e1(features))
            x = x + self.dropout(found)
            return x + self.feed(self.norm3(x)), self._feed_edges(self.norm_e2(features + self.dropout(change)))
        x = self.norm1(x + self.dropout(self.self_attn(x, x, own_edges)))
        found, change = self.cross_attn.attend(tracks, x, edges, features)
        x = self.norm2(x + self.dropout(found))
        features = self.norm_e1(features + self.dropout(change))
        return self.norm3(x + self.feed(x)), self.norm_e2(features + self._feed_edges(features))

    def _feed_edges(self, features: Tensor) -> Tensor:
        return self.dropout(self.lin_e2(self.dropout(self.lin_e1(features).relu())))


class _Regressor(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.lin_1, self.lin_2 = nn.Linear(dim, dim), nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin_2(self.lin_1(x).relu())
        return out


@dataclass(frozen=True, eq=False)
class Associations:
    """What the network finds: affinity [E, 1], logits of the edges between tracks and detections; tracks [T, dim] and
    detections [N, dim], features; velocity [N, 2] of the detections, metres per second."""

    affinity: Tensor
    tracks: Tensor
    detections: Tensor
    velocity: Tensor


class GraphTrackerNetwork(nn.Module):
    """Affinities between tracks and detections.

    Args:
        dim: width of all features.
        heads: of every attention.
        encoders, decoders: how many layers look at tracks, and at detections.
        norm_first: norms before attention and linear layers instead of behind.
        gate: see `EdgeAttention`.
        dropout: of attention, and behind every layer.
    """

    def __init__(
        self,
        dim: int = 128,
        heads: int = 8,
        encoders: int = 1,
        decoders: int = 3,
        norm_first: bool = True,
        gate: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embedding, self.embedding_edge = nn.Linear(NODE_FEATURES, dim), nn.Linear(EDGE_FEATURES, dim)
        self.spatial_encoders = nn.ModuleList(EncoderLayer(dim, heads, dropout, norm_first) for _ in range(encoders))
        self.decoders = nn.ModuleList(DecoderLayer(dim, heads, dropout, norm_first, gate) for _ in range(decoders))
        self.norm_final = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.norm_final_edge = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.affinity, self.velocity = _Regressor(dim, 1), _Regressor(dim, 2)

    def forward(
        self,
        detections: Tensor,
        tracks: Tensor,
        detection_edges: Tensor,
        track_edges: Tensor,
        edges: Tensor,
        edge_features: Tensor,
    ) -> Associations:
        """Find which tracks the detections belong to.

        Args:
            detections: [N, 17], box, velocity, class one-hot, score.
            tracks: [T, 17] likewise, in the first frame of a sequence, or [T, dim] of the frame before.
            detection_edges, track_edges: int64 [2, E], neighbours among detections, and among tracks.
            edges: int64 [2, E], from tracks to detections that they may be.
            edge_features: [E, 10], see `graph_edges.features`.
        """
        x, features = self.embedding(detections), self.embedding_edge(edge_features)
        source = tracks if tracks.shape[1] == self.dim else self.embedding(tracks)
        for encoder in self.spatial_encoders:
            source = encoder(source, track_edges)
        for decoder in self.decoders:
            x, features = decoder(x, source, features, detection_edges, edges)
        x, features = self.norm_final(x), self.norm_final_edge(features)
        return Associations(self.affinity(features), source, x, self.velocity(x))


def association_loss(
    found: Associations,
    target: Tensor,
    velocity: Tensor,
    has_next: Tensor,
    gamma: float | None = 1.0,
    velocity_weight: float = 1.0,
    by_positives: bool = False,
) -> Tensor:
    """Focal loss of the affinities, and smooth L1 of the velocities.

    Args:
        found: of the network.
        target: float [E, 1], 1 for edges within one object.
        velocity: [N, 2], true velocities of the detections.
        has_next: bool [N], the detections whose velocity counts.
        gamma: exponent of the focal loss, None for plain cross entropy.
        velocity_weight: of the second part.
        by_positives: whether the first part is divided by the number of true edges instead of that of all.

    Returns:
        A single number; NaN without edges.
    """
    functional = nn.functional
    entropy = functional.binary_cross_entropy_with_logits(found.affinity, target, reduction="none")
    if gamma is not None:
        chance = found.affinity.sigmoid()
        entropy = entropy * (1 - (chance * target + (1 - chance) * (1 - target))) ** gamma
    loss = entropy.sum() / (target.sum() if by_positives else len(target))
    gaps = functional.smooth_l1_loss(found.velocity, velocity, reduction="none") * has_next[:, None]
    return loss + velocity_weight * gaps.sum() / max(1, gaps.numel())
