"""xLSTM as a mixer: a Vision-LSTM layer (Alkin et al., 2024; matrix LSTM: Beck et al., NeurIPS 2024)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.sequence import SequenceMixer
from pcdet_ext.ops.causal_conv1d import causal_conv1d
from pcdet_ext.ops.retention import mlstm


@MIXERS.register
class XLSTM(SequenceMixer):
    """A matrix LSTM between two projections, with a gate and a learnt skip beside it; it reads in one direction.

    Args:
        channels: C.
        num_heads: of the matrix memory.
        expand: inner width over C.
        kernel_size: of the causal convolution.
        projection_block: channels that the projections to queries, keys and values join.
        direction: from the first token to the last, or from the last to the first.
        chunk: tokens that are worked on at once, without influence on results.

    Raises:
        ValueError: where num_heads or projection_block do not divide the inner width, and for an unknown direction.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 4,
        expand: int = 2,
        kernel_size: int = 4,
        projection_block: int = 4,
        direction: Literal["forward", "backward"] = "forward",
        chunk: int = 64,
    ) -> None:
        super().__init__()
        inner = expand * channels
        if num_heads < 1 or inner % num_heads:
            raise ValueError(f"num_heads must divide the inner width {inner}, got {num_heads}")
        if direction not in ("forward", "backward"):
            raise ValueError(f'direction must be "forward" or "backward", got {direction!r}')
        self.backwards = direction == "backward"
        self.in_proj = nn.Linear(channels, 2 * inner)
        self.conv = nn.Conv1d(inner, inner, kernel_size, groups=inner)
        self.q_proj, self.k_proj, self.v_proj = (BlockDiagonalLinear(inner, projection_block) for _ in range(3))
        self.memory = MatrixLSTM(inner, num_heads, chunk)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels)
        nn.init.normal_(self.in_proj.weight, std=math.sqrt(2 / (5 * channels)))
        nn.init.normal_(self.out_proj.weight, std=2 / math.sqrt(channels))
        for layer in (self.in_proj, self.out_proj):
            nn.init.zeros_(layer.bias)

    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""
        if self.backwards:
            return self._read(sequences.flip(1)).flip(1)
        return self._read(sequences)

    def _read(self, x: Tensor) -> Tensor:
        values, gate = self.in_proj(x).chunk(2, -1)
        active = causal_conv1d(values.mT, self.conv.weight.squeeze(1), self.conv.bias, "silu").mT
        h = self.memory(self.q_proj(active), self.k_proj(active), self.v_proj(values))
        return self.out_proj((h + self.skip * active) * F.silu(gate))


class MatrixLSTM(nn.Module):
    """Gates, matrix memory and a norm for each head; see `mlstm`.

    Args:
        inner: I, channels.
        num_heads: of the memory.
        chunk: see `XLSTM`.
    """

    def __init__(self, inner: int, num_heads: int, chunk: int) -> None:
        super().__init__()
        self.num_heads, self.chunk = num_heads, chunk
        self.input_gate = nn.Linear(3 * inner, num_heads)
        self.forget_gate = nn.Linear(3 * inner, num_heads)
        self.norm = HeadNorm(inner, num_heads)
        for gate in (self.input_gate, self.forget_gate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.input_gate.bias, std=0.1)
        with torch.no_grad():
            self.forget_gate.bias.copy_(torch.linspace(3, 6, num_heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mLSTM cell with its gates and its norm (xLSTM, Beck et al., NeurIPS 2024).

        Args:
            q: floating-point [G, L, I], queries.
            k: [G, L, I], keys.
            v: [G, L, I], values.

        Returns:
            [G, L, I].
        """
        joined = torch.cat([q, k, v], -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        h = mlstm(q, k, v, self.input_gate(joined), self.forget_gate(joined), chunk=self.chunk)
        return self.norm(h.flatten(2))


class HeadNorm(nn.Module):
    """Layer norm over the channels of each head; weight and bias: [C].

    Args:
        channels: C.
        num_heads: into how many equal parts the channels are cut.
        eps: added to the variance.
    """

    def __init__(self, channels: int, num_heads: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        heads = x.unflatten(-1, (self.num_heads, -1))
        return F.layer_norm(heads, heads.shape[-1:], eps=self.eps).flatten(-2) * self.weight + self.bias


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
