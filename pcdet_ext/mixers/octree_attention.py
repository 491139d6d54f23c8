"""Softmax attention with a bias of relative positions in cells (OctFormer, Wang, SIGGRAPH 2023, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.ops.group_attention import group_attention
from pcdet_ext.structures import Groups


@MIXERS.register
class OctreeAttention(SoftmaxAttention):
    """Multi-head attention inside groups whose logits get a learnt bias of the distance between cells, axis by axis.

    A distance along an axis counts up to ⌊0.8 · group_size · √dilation⌋ cells; the biases of the three axes are added.
    Pairs of rows of which one has no place (see `Groups`) get none. Groups that do not know the cells of their voxels
    are refused.

    Args:
        channels: C.
        num_heads: must divide the channels.
        group_size: slots of a window that the table of biases is made for.
        dilation: the same, distance in the sequence between two slots of a window.
        relative_position: False for plain attention, without the bias.

    Raises:
        ValueError: for heads that do not divide the channels, and sizes below one.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        group_size: int = 32,
        dilation: int = 1,
        relative_position: bool = True,
    ) -> None:
        super().__init__(channels, num_heads)
        if group_size < 1 or dilation < 1:
            raise ValueError(f"group_size and dilation must be at least 1, got {group_size} and {dilation}")
        self.bound = int(0.8 * group_size * math.sqrt(dilation))
        self.relative_bias = None
        if relative_position:
            self.relative_bias = nn.Parameter(torch.empty(3 * (2 * self.bound + 1), num_heads))
            nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def _attend(self, qkv: Tensor, plan: Groups) -> Tensor:
        if self.relative_bias is None:
            return super()._attend(qkv, plan)
        if plan.cells is None:
            raise ValueError("OctreeAttention needs groups that know the cells of their voxels")
        slots = plan.index, plan.inverse
        sight = plan.valid, plan.owner
        return group_attention(qkv, *slots, self.num_heads, *sight, plan.cells.int(), self.relative_bias)
