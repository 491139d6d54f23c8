"""Linear attention inside groups of any length (ScatterFormer, He et al., ECCV 2024).

After Katharopoulos et al. (ICML 2020) softmax(q·k) becomes φ(q)·φ(k), with φ = ReLU, so that a group is summed up by
one matrix Σ k vᵀ and one vector Σ k: the cost grows with the number of voxels, however they are spread over groups.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.grouping.partitions import window_segments
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.ops.linear_attention import scattered_linear_attention
from pcdet_ext.structures import Groups, Segments, is_tracing


@MIXERS.register
class LinearAttention(nn.Module):
    """Every voxel reads the sums over its group: yᵢ = qᵢᵀ Σ k vᵀ / (qᵢ · Σ k + eps), with q and k through a ReLU.

    The position is added to queries and keys.

    Args:
        channels: C.
        num_heads: heads of consecutive channels; must divide them.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        eps: gives voxels whose query meets no key zeros.

    Raises:
        ValueError: for heads that do not divide the channels, fewer than one of either, or an eps that is not positive.
    """

    plan_types: ClassVar[tuple[type, ...]] = (Groups, Segments)

    def __init__(self, channels: int, num_heads: int = 4, qkv_bias: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        if channels < 1 or num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads must be positive and divide channels, got {num_heads} and {channels} channels")
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}")
        self.num_heads, self.eps = num_heads, eps
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, plan: Groups | Segments, position: Tensor | None = None) -> Tensor:
        """Mix features inside their groups or segments.

        Slots that are not `valid` are read by none, and slots of different `owner` do not see each other.

        Args:
            x: floating-point [N, C], features of the voxels.
            plan: groups of equal size, or segments.
            position: [N, C], what is added to the features for the queries and keys, or None.

        Returns:
            [N, C].
        """
        qkv = self._project(x, position)
        mixed = self._segments(qkv, plan) if isinstance(plan, Segments) else self._groups(qkv, plan)
        return self.out_proj(mixed)

    def _project(self, x: Tensor, position: Tensor | None) -> Tensor:
        """Queries, keys and values side by side [N, 3C]; float32 on CPU, whose kernel has no half precision."""
        qkv = self.qkv(x)
        if position is not None:
            moved = F.linear(position, self.qkv.weight[: 2 * x.shape[1]])
            qkv = qkv + F.pad(moved, (0, x.shape[1]))
        return qkv.float() if qkv.device.type == "cpu" and qkv.dtype != torch.float64 else qkv

    def _segments(self, qkv: Tensor, plan: Segments) -> Tensor:
        return plan.scatter(self._attend(plan.gather(qkv), plan.offsets))

    def _groups(self, qkv: Tensor, plan: Groups) -> Tensor:
        groups, length = plan.index.shape
        slots = plan.gather(qkv).flatten(0, 1)
        valid = None if plan.valid is None else plan.valid.reshape(-1, 1)
        if plan.owner is not None:
            parts = segments_of_owners(plan.owner)
            valid = None if valid is None else parts.gather(valid)
            return plan.scatter(parts.scatter(self._attend(parts.gather(slots), parts.offsets, valid)))
        offsets = torch.arange(0, groups * length + 1, length, device=slots.device)
        return plan.scatter(self._attend(slots, offsets, valid))

    def _attend(self, qkv: Tensor, offsets: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attention [R, C] of rows [R, 3C] inside segments; valid: bool [R, 1], rows whose keys count, None for all."""
        q, k, v = qkv.chunk(3, dim=1)
        if not (torch.is_grad_enabled() or self.qkv._forward_hooks or is_tracing()):  # nobody else sees these
            qkv[:, : 2 * q.shape[1]].relu_()
        else:
            q, k = q.relu(), k.relu()
        k = k if valid is None else k.masked_fill(~valid, 0)
        q, k, v = (t.unflatten(1, (self.num_heads, -1)) for t in (q, k, v))
        return scattered_linear_attention(q, k, v, offsets, self.eps).flatten(1)


def segments_of_owners(owner: Tensor) -> Segments:
    """Slots of one group and owner gathered: segments of the flat slots of int64 [G, L]."""
    group = torch.arange(len(owner), device=owner.device)[:, None]
    first = owner.amin() if owner.numel() else 0
    span = owner.amax() - first + 1 if owner.numel() else 1
    return window_segments((group * span + owner - first).reshape(-1))
