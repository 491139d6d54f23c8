"""Multi-head softmax attention inside groups (Vaswani et al., 2017, section 3.2.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.structures import Groups, Segments


@MIXERS.register
class SoftmaxAttention(nn.Module):
    """Multi-head self-attention inside the groups of a plan: softmax(q kᵀ / √(C / num_heads)) v.

    The position is added to queries and keys, not to values, and weights are initialised Xavier-uniformly, both as in
    FlatFormer and DSVT. State-dict keys are those of `torch.nn.MultiheadAttention`.

    Args:
        channels: C.
        num_heads: must divide the channels.

    Raises:
        ValueError: for heads that do not divide the channels, or fewer than one of either.
    """

    plan_types: ClassVar[tuple[type, ...]] = (Groups,)

    def __init__(self, channels: int, num_heads: int = 8) -> None:
        super().__init__()
        if channels < 1 or num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must be positive and divide channels, got {num_heads} and {channels} channels")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        for weight in (self.in_proj_weight, self.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, plan: Groups | Segments, position: Tensor | None = None) -> Tensor:
        """Mix features inside their groups.

        Slots that are not `valid` are seen by none, and slots of different `owner` do not see each other. A slot that
        sees nothing gets the bias of the output projection.

        Args:
            x: floating-point [N, C], features of the voxels.
            plan: groups of equal size.
            position: [N, C], what is added to the features for the queries and keys, or None.

        Returns:
            [N, C].

        Raises:
            ValueError: the plan is one of segments.
        """
        if not isinstance(plan, Groups):
            raise ValueError(f"softmax attention needs equal-size groups, got {type(plan).__name__}")
        return self.out_proj(self._attend(self._project(x, position), plan))

    def _attend(self, qkv: Tensor, plan: Groups) -> Tensor:
        """Attention of voxels [N, C] from their queries, keys and values [N, 3C]."""
        return grouped_attention(qkv, plan, self.num_heads)

    def _project(self, x: Tensor, position: Tensor | None) -> Tensor:
        """Queries, keys and values side by side [N, 3C]: of voxels, not of slots, because many slots hold a voxel."""
        if position is None:
            return F.linear(x, self.in_proj_weight, self.in_proj_bias)
        cut = 2 * x.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries_keys = F.linear(x + position, weight[:cut], bias[:cut])
        return torch.cat([queries_keys, F.linear(x, weight[cut:], bias[cut:])], 1)


def grouped_attention(qkv: Tensor, plan: Groups, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention inside groups, from queries, keys and values that stand side by side.

    Args:
        qkv: floating-point [N, 3C], in each third the heads one after the other.
        plan: which voxels are together, and which of their slots see each other.
        num_heads: H.
        bias: added to the logits, for instance of relative positions, [G or 1, H or 1, L, L] for G groups of L slots.

    Returns:
        [N, C]; a slot that sees nothing gets zeros.
    """
    groups, length = plan.index.shape
    slots = plan.gather(qkv).view(groups, length, 3, num_heads, qkv.shape[1] // (3 * num_heads))
    q, k, v = slots.permute(2, 0, 3, 1, 4)
    bias = None if bias is None else bias.to(q.dtype)
    visible = visible_keys(plan)
    if visible is None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    else:
        visible = visible[:, None]
        sees = visible.any(-1, keepdim=True)
        mask = visible | ~sees  # a softmax over nothing would be NaN, also in the gradient
        if bias is not None:
            mask = bias.masked_fill(~mask, -torch.inf)
        y = torch.where(sees, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), 0.0)
    return plan.scatter(y.transpose(1, 2).flatten(2))


def visible_keys(plan: Groups) -> Tensor | None:
    """Which slots (last dimension) each slot sees, bool [G, L, L], or [G, 1, L] where all see the same; None: all."""
    if plan.owner is None:
        return None if plan.valid is None else plan.valid[:, None]
    same = plan.owner[:, :, None] == plan.owner[:, None, :]
    return same if plan.valid is None else same & plan.valid[:, None]
