"""Operations of mixers, and convolutions of maps, written with basic operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.export import operators
from pcdet_ext.export.basics import count_up, repeat_each, starts
from pcdet_ext.export.operators import scatter_rows

BLOCK = 64  # rows of a segment that linear attention sums up by one product


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The form of `pcdet_ext.ops.causal_conv1d` for export. Arguments as in that function."""
    channels, width = weight.shape
    padded = F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    y = F.conv1d(padded, (weight.flip(1) if reverse else weight)[:, None], bias, groups=channels)
    return F.silu(y) if activation == "silu" else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """The form of `pcdet_ext.ops.selective_scan` for export. Arguments as in that function."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    y = operators.selective_scan(u, delta, A, B, C, reverse)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def wkv(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None = None, reverse: bool = False) -> Tensor:
    """The form of `pcdet_ext.ops.wkv` for export. Arguments as in that function."""
    bonus = torch.zeros(r.shape[2:]) if u is None else u
    return operators.wkv(r, k, v, torch.exp(-torch.exp(w)), bonus, reverse)


def inner_steps(
    state: Tensor,
    queries: Tensor,
    keys: Tensor,
    update: Tensor,
    last: Tensor,
    offset: Tensor,
    scale: Tensor,
    eps: float,
) -> Tensor:
    """The form of `pcdet_ext.mixers.ttt.inner_steps` for export. Arguments as in that function."""
    each = state + torch.zeros_like(queries[0, :, :, :1, :1])  # as many states as sequences
    return operators.ttt_steps(each, queries, keys, update, last, offset, scale, torch.tensor([eps]))


def scattered_linear_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float = 1e-6) -> Tensor:
    """The form of `pcdet_ext.ops.scattered_linear_attention` for export. Arguments as in that function.

    Segments are cut into blocks of `BLOCK` rows, whose sums are products of matrices; a column of ones beside the
    values gives Σ k.
    """
    heads, width = q.shape[1:]
    counts = offsets[1:] - offsets[:-1]
    blocks = torch.div(counts + BLOCK - 1, BLOCK, rounding_mode="floor")
    owner = repeat_each(blocks)
    local = count_up(owner) - starts(blocks)[owner]
    place = local[:, None] * BLOCK + torch.arange(BLOCK)
    outside = torch.ones_like(place) * q.shape[0]  # the row of zeros behind the last one
    row = torch.where(place < counts[owner][:, None], offsets[:-1][owner][:, None] + place, outside)
    values = torch.cat([v, torch.ones_like(v[:, :, :1])], 2)
    queries, keys, values = (_blocks(t, row) for t in (q, k, values))
    outer = (keys.transpose(2, 3) @ values).flatten(1)
    sums = scatter_rows(outer.new_zeros(counts.shape[0], heads * width * (width + 1)), owner, outer, "add")
    read = (queries @ sums[owner].view(-1, heads, width, width + 1)).transpose(1, 2).flatten(0, 1)
    slots = row.flatten()
    back = scatter_rows(
        torch.zeros_like(torch.cat([q[:, 0, 0], q[:1, 0, 0] * 0])).long(), slots, count_up(slots), "max"
    )
    read = read[back[: q.shape[0]]]
    return read[:, :, :width] / (read[:, :, width:] + eps)


def _blocks(x: Tensor, row: Tensor) -> Tensor:
    """Rows [N, H, D] to blocks [G, H, BLOCK, D] by their numbers [G, BLOCK], N being a row of zeros."""
    padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return padded[row].transpose(1, 2)


def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, at_points: Tensor, addend: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The plain convolution that `pcdet_ext.ops.winograd_conv2d` computes. Arguments as in that function."""
    y = F.conv2d(x, weight, bias, padding=1)
    y = y if addend is None else y + addend
    return y.relu() if relu else y
