"""xLSTM as a mixer: a pair of Vision-LSTM blocks (Alkin et al., 2024; matrix LSTM: Beck et al., NeurIPS 2024).

State-dict keys are those of LION (Liu et al., NeurIPS 2024), weights of norms being stored as their offset from 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import DropPath, SequenceMixer
from pcdet_ext.ops.causal_conv1d import causal_conv1d
from pcdet_ext.ops.retention import mlstm


@MIXERS.register
class XLSTM(SequenceMixer):
    """A block that reads from the first token to the last, then one that reads from the last to the first.

    channels: C; num_heads: of the matrix memory; expand: inner width over C; kernel_size: of the causal convolution;
    projection_block: channels that the projections to queries, keys and values join; drop_path: stochastic depth;
    chunk: tokens that are worked on at once, without influence on results.
    Raises ValueError where num_heads or projection_block do not divide the inner width.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        expand: int = 2,
        kernel_size: int = 4,
        projection_block: int = 4,
        drop_path: float = 0.0,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        arguments = (channels, num_heads, expand * channels, kernel_size, projection_block, drop_path, chunk)
        self.rowwise_from_top_left = ViLBlock(*arguments)
        self.rowwise_from_bot_right = ViLBlock(*arguments)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        return self.rowwise_from_bot_right(self.rowwise_from_top_left(sequences).flip(1)).flip(1)


class ViLBlock(nn.Module):
    """x + layer(LN(x))."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        inner: int,
        kernel_size: int,
        projection_block: int,
        drop_path: float,
        chunk: int,
    ) -> None:
        super().__init__()
        self.norm = OffsetNorm(channels)
        self.layer = ViLLayer(channels, num_heads, inner, kernel_size, projection_block, chunk)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[G, L, C] to [G, L, C]."""
        return x + self.drop_path(self.layer(self.norm(x)))


class ViLLayer(nn.Module):
    """The matrix LSTM between an up- and a down-projection, with a gate and a learnt skip beside it."""

    def __init__(
        self, channels: int, num_heads: int, inner: int, kernel_size: int, projection_block: int, chunk: int
    ) -> None:
        super().__init__()
        if num_heads < 1 or inner % num_heads:
            raise ValueError(f"num_heads must divide the inner width {inner}, got {num_heads}")
        self.proj_up = nn.Linear(channels, 2 * inner)
        self.conv = CausalConv1d(inner, kernel_size)
        self.q_proj, self.k_proj, self.v_proj = (BlockDiagonalLinear(inner, projection_block) for _ in range(3))
        self.mlstm_cell = MatrixLSTMCell(inner, num_heads, chunk)
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, channels)
        nn.init.normal_(self.proj_up.weight, std=math.sqrt(2 / (5 * channels)))
        nn.init.normal_(self.proj_down.weight, std=2 / math.sqrt(channels))
        for layer in (self.proj_up, self.proj_down):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[G, L, C] to [G, L, C]."""
        memory, gate = self.proj_up(x).chunk(2, -1)
        active = self.conv(memory)
        h = self.mlstm_cell(self.q_proj(active), self.k_proj(active), self.v_proj(memory))
        return self.proj_down((h + self.learnable_skip * active) * F.silu(gate))


class MatrixLSTMCell(nn.Module):
    """Gates, matrix memory and a norm per head; see `mlstm`."""

    def __init__(self, inner: int, num_heads: int, chunk: int) -> None:
        super().__init__()
        self.num_heads, self.chunk = num_heads, chunk
        self.igate = nn.Linear(3 * inner, num_heads)
        self.fgate = nn.Linear(3 * inner, num_heads)
        self.outnorm = OffsetNorm(inner, groups=num_heads)
        for gate in (self.igate, self.fgate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)
        with torch.no_grad():
            self.fgate.bias.copy_(torch.linspace(3, 6, num_heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values [G, L, I] to [G, L, I]."""
        joined = torch.cat([q, k, v], -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        return self.outnorm(mlstm(q, k, v, self.igate(joined), self.fgate(joined), chunk=self.chunk).flatten(2))


class OffsetNorm(nn.Module):
    """Layer norm over equal groups of the channels; weight: [C], its offset from 1, and bias: [C]."""

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        heads = x.unflatten(-1, (self.groups, -1))
        normed = F.layer_norm(heads, heads.shape[-1:], eps=self.eps).flatten(-2)
        return normed * (1 + self.weight) + self.bias


class CausalConv1d(nn.Module):
    """Depth-wise convolution over the tokens that sees no later token, then SiLU."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """[G, L, C] to [G, L, C]."""
        return causal_conv1d(x.mT, self.conv.weight.squeeze(1), self.conv.bias, "silu").mT


class BlockDiagonalLinear(nn.Module):
    """A linear layer that joins `block` neighbouring channels; weight: [C / block, block (out), block (in)], bias: [C].

    It is one product with a matrix that has the blocks on its diagonal: up to some hundred channels that is quicker
    than products of blocks. Raises ValueError where the block does not divide the channels.
    """

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        if block < 1 or channels % block:
            raise ValueError(f"projection_block must divide the inner width {channels}, got {block}")
        self.weight = nn.Parameter(torch.randn(channels // block, block, block) * math.sqrt(2 / (5 * block)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        matrix = torch.diag_embed(self.weight.movedim(0, -1)).permute(2, 0, 3, 1)  # [block, out, block, in]
        return F.linear(x, matrix.flatten(2).flatten(0, 1), self.bias)
