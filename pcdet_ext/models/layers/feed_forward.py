"""Feed-forward parts of a mixer block: what happens to each voxel after its group was mixed.

Each is called as `part(x, plan)` on features [N, C] and gives [N, C]; most look at no other voxel, and so not at the
plan. Their last linear layer is `out_proj`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import Registry
from pcdet_ext.mixers.rwkv import Place, previous_token
from pcdet_ext.structures import Groups, Segments

FEED_FORWARDS = Registry("feed-forward part")
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@FEED_FORWARDS.register
class MLP(nn.Module):
    """out_proj(activation(in_proj(x))) (Vaswani et al., 2017, section 3.3).

    Args:
        channels: C.
        ffn_channels: inner width, twice the channels by default.
        activation: between the two linear layers.
        dropout: share of inner activations that is dropped in training.
        xavier: initialise both weights Xavier-uniformly, as FlatFormer and DSVT do.

    Raises:
        ValueError: for an inner width below one.
    """

    def __init__(
        self,
        channels: int,
        ffn_channels: int | None = None,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        dropout: float = 0.0,
        xavier: bool = False,
    ) -> None:
        super().__init__()
        hidden = inner_width(channels, ffn_channels, 2)
        self.in_proj, self.out_proj = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        if xavier:
            nn.init.xavier_uniform_(self.in_proj.weight)
            nn.init.xavier_uniform_(self.out_proj.weight)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def forward(self, x: Tensor, plan: Groups | Segments) -> Tensor:
        """Features [N, C] to [N, C]."""
        return self.out_proj(self.dropout(self.activation(self.in_proj(x))))


@FEED_FORWARDS.register
class SwiGLU(nn.Module):
    """out_proj(SiLU(gate_proj(x)) · in_proj(x)), without biases (Shazeer, 2020). Arguments as in `MLP`."""

    def __init__(self, channels: int, ffn_channels: int | None = None) -> None:
        super().__init__()
        hidden = inner_width(channels, ffn_channels, 2)
        self.gate_proj = nn.Linear(channels, hidden, bias=False)
        self.in_proj = nn.Linear(channels, hidden, bias=False)
        self.out_proj = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor, plan: Groups | Segments) -> Tensor:
        """Features [N, C] to [N, C]."""
        return self.out_proj(F.silu(self.gate_proj(x)) * self.in_proj(x))


@FEED_FORWARDS.register
class ChannelMix(nn.Module):
    """σ(receptance) · out_proj(ReLU(in_proj)²), of tokens mixed with the ones before them (RWKV, Peng et al., 2023).

    Args:
        channels: C.
        ffn_channels: inner width, four times the channels by default.
        mix: what each token is mixed with: the one before it ("shifted", as in RWKV), or the difference to that one
            ("difference", as LION was trained).
        layer_id: number of the layer among all layers, for the initialisation.
        num_layers: how many there are.

    Raises:
        ValueError: for an inner width below one.
    """

    def __init__(
        self,
        channels: int,
        ffn_channels: int | None = None,
        mix: Literal["shifted", "difference"] = "shifted",
        layer_id: int = 0,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        hidden = inner_width(channels, ffn_channels, 4)
        self.with_difference = mix == "difference"
        share = (torch.arange(channels, dtype=torch.float32) / channels) ** Place.of(layer_id, num_layers).remaining
        self.share_in, self.share_receptance = nn.Parameter(share), nn.Parameter(share.clone())
        self.in_proj = nn.Linear(channels, hidden, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.out_proj = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor, plan: Groups | Segments) -> Tensor:
        """Features [N, C] to [N, C]. Raises ValueError for a plan of segments."""
        if not isinstance(plan, Groups):
            raise ValueError(f"ChannelMix takes equal-size Groups, got {type(plan).__name__}")
        tokens = plan.gather(x)
        other = previous_token(tokens) - tokens if self.with_difference else previous_token(tokens)
        key = torch.lerp(other, tokens, self.share_in.to(x.dtype))
        receptance = torch.lerp(other, tokens, self.share_receptance.to(x.dtype))
        return plan.scatter(
            torch.sigmoid(self.receptance(receptance)) * self.out_proj(F.relu(self.in_proj(key)).square())
        )


def inner_width(channels: int, ffn_channels: int | None, ratio: int) -> int:
    """Width of the hidden layer of a feed-forward network.

    Args:
        channels: of its input.
        ffn_channels: the width itself, or None.
        ratio: how many times the channels it is otherwise.

    Raises:
        ValueError: the width is below one.
    """
    hidden = ratio * channels if ffn_channels is None else ffn_channels
    if hidden < 1:
        raise ValueError(f"ffn_channels must be positive, got {hidden}")
    return hidden
