"""The transformer layer of TransFusion, its position embeddings and prediction branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

BRANCH_CHANNELS = 64


class PositionEmbedding(nn.Module):
    """Positions (x, y) through two pointwise layers."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels, momentum=momentum),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """[B, N, 2] to [B, N, channels]."""
        return self.position_embedding_head(positions.transpose(1, 2)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the map; positions are part of queries, keys and values.

    Args:
        channels: C, of queries and features.
        num_heads: of both attentions.
        ffn_channels: width of the feed-forward network.
        dropout: share of values that is dropped in training.
        momentum: of the batch norms of the position embeddings.
        placed: False for a layer without position embeddings, which is called without positions.
    """

    def __init__(
        self, channels: int, num_heads: int, ffn_channels: int, dropout: float, momentum: float, placed: bool = True
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_posembed = PositionEmbedding(channels, momentum) if placed else None
        self.cross_posembed = PositionEmbedding(channels, momentum) if placed else None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        queries: Tensor,
        features: Tensor,
        query_positions: Tensor | None = None,
        positions: Tensor | None = None,
        others: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Refine queries.

        Args:
            queries: [B, C, P].
            features: [B, C, N], what they attend to.
            query_positions: [B, P, 2], in cells.
            positions: [N, 2], of the features.
            others: bool [P, P], True where a query must not look at another, or numbers that are added to the logits.
            hidden: bool [B, P, N], the same for features.

        Returns:
            [B, C, P].
        """
        query, keys = queries.transpose(1, 2), features.transpose(1, 2)
        embedding = torch.zeros_like(query) if self.self_posembed is None else self.self_posembed(query_positions)
        if self.cross_posembed is not None and positions is not None:
            keys = keys + self.cross_posembed(positions[None])
        placed = query + embedding
        query = self.norm1(query + self.dropout(self._attend(self.self_attn, placed, placed, others)))
        query = self.norm2(query + self.dropout(self._attend(self.multihead_attn, query + embedding, keys, hidden)))
        inner = self.linear2(self.dropout(torch.relu(self.linear1(query))))
        return self.norm3(query + self.dropout(inner)).transpose(1, 2)

    @staticmethod
    def _attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and mask.dim() == 3:
            mask = mask.repeat_interleave(attention.num_heads, dim=0)
        return attention(query, key, key, attn_mask=mask, need_weights=False)[0]


class PredictionHead(nn.Module):
    """Pointwise branches.

    Args:
        channels: of the queries.
        outputs: (channels, convolutions) of each branch by name.
        bias: whether convolutions in front of a batch norm have a bias.
        momentum: of the batch norms.
    """

    def __init__(self, channels: int, outputs: Mapping[str, tuple[int, int]], bias: bool, momentum: float) -> None:
        super().__init__()
        self.names = tuple(outputs)
        for name, (out_channels, convs) in outputs.items():
            blocks, width = [], channels
            for _ in range(convs - 1):
                block = (
                    nn.Conv1d(width, BRANCH_CHANNELS, 1, bias=bias),
                    nn.BatchNorm1d(BRANCH_CHANNELS, momentum=momentum),
                )
                blocks.append(nn.Sequential(*block, nn.ReLU()))
                width = BRANCH_CHANNELS
            self.add_module(name, nn.Sequential(*blocks, nn.Conv1d(width, out_channels, 1)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Each branch [B, channels, P] from queries [B, C, P]."""
        return {name: getattr(self, name)(x) for name in self.names}


def window_mask(cell: Tensor, size: Sequence[int], radius: int, wraps: bool) -> Tensor:
    """Which cells lie outside a query's window of 2 * radius + 1 cells per side.

    Args:
        cell: flat int64 [B, P], the cell of each query.
        size: rows and columns of the map.
        radius: cells from the middle of a window to its border.
        wraps: a window that leaves the map on the left or right goes on in the neighbouring row. If it is wider than
            the map, it holds cells several times; then the result are numbers to add to the logits, log n for a cell
            that the window holds n times, as if it were n keys, and minus infinity outside.

    Returns:
        bool [B, P, rows * columns], or in that last case float32.
    """
    rows, columns = size
    steps = torch.arange(-radius, radius + 1, device=cell.device)
    row, column = (cell // columns)[..., None, None] + steps[:, None], (cell % columns)[..., None, None] + steps
    flat = (row * columns + column).flatten(2)
    inside = (flat >= 0) & (flat < rows * columns)
    if not wraps:
        inside = inside & ((row >= 0) & (row < rows) & (column >= 0) & (column < columns)).flatten(2)
    flat = torch.where(inside, flat, rows * columns)  # one more cell takes the places outside
    if wraps and columns < 2 * radius + 1:
        times = torch.zeros(*cell.shape, rows * columns + 1, dtype=torch.float32, device=cell.device)
        return times.scatter_add_(2, flat, torch.ones_like(flat, dtype=times.dtype))[..., :-1].log()
    hidden = torch.ones(*cell.shape, rows * columns + 1, dtype=torch.bool, device=cell.device)
    return hidden.scatter(2, flat, torch.zeros_like(flat, dtype=torch.bool))[..., :-1]


def repeated_window(cell: Tensor, size: Sequence[int], radius: int) -> Tensor:
    """What to add to the logits of a window of 2 * radius + 1 cells per side around each query.

    Places outside the map are its nearest cells again: a cell that the window holds n times gets log n, as if it were n
    keys, and one that it does not hold minus infinity.

    Args:
        cell: flat int64 [B, P], the cell of each query.
        size: rows and columns of the map.
        radius: cells from the middle of a window to its border.

    Returns:
        float32 [B, P, rows * columns].
    """
    rows, columns = size
    steps = torch.arange(-radius, radius + 1, device=cell.device)
    row = ((cell // columns)[..., None, None] + steps[:, None]).clamp(0, rows - 1)
    column = ((cell % columns)[..., None, None] + steps).clamp(0, columns - 1)
    flat = (row * columns + column).flatten(2)
    times = torch.zeros(*cell.shape, rows * columns, dtype=torch.float32, device=cell.device)
    return times.scatter_add_(2, flat, torch.ones_like(flat, dtype=times.dtype)).log()
