"""Softmax attention inside groups of rows, with a learnt bias of the distance between their cells (OctFormer)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import TYPE_CODES, Argument, Int32, has_kernels, launch, on_cuda
from pcdet_ext.ops._reference import own_precision, reference_gradients
from pcdet_ext.ops.segment import segment_reduce

_WIDEST_HEAD = 256  # channels of a head that the kernels have room for
_CHUNKS = 1024  # of a table's gradient on CUDA, all heads together; partial sums that are then added up


@typed
def group_attention(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None = None,
    owner: Tensor | None = None,
    cells: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Multi-head attention of rows inside their groups: softmax(q kᵀ / √D + bias) v (Wang, SIGGRAPH 2023, section 3.2).

    The bias of two slots is the sum over the axes x, y, z of table[a (2 b + 1) + b + clamp(cell_i - cell_j, -b, b)]
    with a = 0, 1, 2; pairs of which one row has no place get none.

    Args:
        qkv: float [N, 3 C], queries, keys and values side by side, heads major in each C.
        index: int64 [G, L], the row in each slot of each group.
        inverse: int64 [N], the flat slot g · L + l that each row reads back, one that holds the row itself.
        num_heads: H, which divides C.
        valid: bool [G, L], False where a slot is seen by none.
        owner: int64 [G, L], slots of different owners do not see each other.
        cells: int32 [N, 3] as (z, y, x), negative where a row has no place; needed with a table.
        table: [3 (2 b + 1), H], biases of distances up to b cells.

    Returns:
        [N, C]; zeros for a row whose slot sees nothing. Differentiable in qkv and table.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(qkv, index, inverse, num_heads, valid, owner, cells, table)
    if not _has_kernel(qkv, num_heads):
        return group_attention_reference(qkv, index, inverse, num_heads, valid, owner, cells, table)
    wide = qkv if on_cuda(qkv) or qkv.dtype == torch.float64 else qkv.float()
    biases = None if table is None else table.to(torch.promote_types(wide.dtype, torch.float32))
    plan = [None if t is None else t.contiguous() for t in (valid, owner, cells)]
    out = _attend(wide.contiguous(), index.contiguous(), inverse.contiguous(), num_heads, *plan, biases)
    return out.to(qkv.dtype)


def _has_kernel(qkv: Tensor, num_heads: int) -> bool:
    """Whether a native kernel covers these rows; that for CUDA computes in float32, also with narrower types."""
    covered = qkv.dtype in TYPE_CODES or (qkv.dtype == torch.float64 and not on_cuda(qkv))
    return covered and qkv.shape[1] // (3 * num_heads) <= _WIDEST_HEAD and has_kernels(qkv)


def _check(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
) -> None:
    if qkv.ndim != 2 or not qkv.is_floating_point() or num_heads < 1 or qkv.shape[1] % (3 * num_heads):
        wanted = f"floating point [N, 3 C] with C a multiple of num_heads {num_heads}, which is at least 1"
        raise ValueError(f"qkv must be {wanted}, got {qkv.dtype} {list(qkv.shape)}")
    if index.ndim != 2 or not index.shape[1]:
        raise ValueError(f"index must have the shape [G, L] with slots in each group, got {list(index.shape)}")
    for name, tensor, dtype, shape in (
        ("index", index, torch.int64, index.shape),
        ("inverse", inverse, torch.int64, (len(qkv),)),
        ("valid", valid, torch.bool, index.shape),
        ("owner", owner, torch.int64, index.shape),
        ("cells", cells, torch.int32, (len(qkv), 3)),
    ):
        if tensor is not None and (tensor.dtype != dtype or tensor.shape != shape or tensor.device != qkv.device):
            found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be {dtype} {list(shape)} on {qkv.device}, got {found}")
    if table is None:
        return
    if cells is None:
        raise ValueError("a table needs cells, whose distances its biases are for")
    if table.ndim != 2 or len(table) % 6 != 3 or table.shape[1] != num_heads or not table.is_floating_point():
        raise ValueError(f"table must be floating point [3 (2 b + 1), {num_heads}], got {list(table.shape)}")


def group_attention_reference(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None = None,
    owner: Tensor | None = None,
    cells: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `group_attention`."""
    groups, slots = index.shape
    parts = qkv[index].view(groups, slots, 3, num_heads, qkv.shape[1] // (3 * num_heads))
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    mask: Tensor | None = None
    if table is not None and cells is not None:
        mask = relative_bias(cells[index], table).to(q.dtype)
    visible, sees = _visible(valid, owner), None
    if visible is not None:
        visible = visible[:, None]
        sees = visible.any(-1, keepdim=True)
        shown = visible | ~sees  # a softmax over nothing would be NaN, also in the gradient
        mask = shown if mask is None else mask.masked_fill(~shown, -torch.inf)
    with own_precision(qkv):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y if sees is None else torch.where(sees, y, 0.0)
    return y.transpose(1, 2).flatten(2).flatten(0, 1)[inverse]


def _visible(valid: Tensor | None, owner: Tensor | None) -> Tensor | None:
    """Which slots (last dimension) each slot sees, bool [G, L or 1, L]; None: all."""
    same = None if owner is None else owner[:, :, None] == owner[:, None, :]
    if valid is None:
        return same
    return valid[:, None] if same is None else same & valid[:, None]


def relative_bias(cells: Tensor, table: Tensor) -> Tensor:
    """Biases [G, H, L, L] of the distances between cells int [G, L, 3] (z, y, x), from a table [3 (2 b + 1), H]."""
    bound, none = _bound(table), len(table)
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
    placed = (cells >= 0).all(-1)
    both = placed[:, :, None] & placed[:, None]
    parts = []
    for axis, cell in enumerate(cells.flip(-1).unbind(-1)):  # the table has x, y, z
        distance = (cell[:, :, None] - cell[:, None]).clamp(-bound, bound)
        row = distance + bound + axis * (2 * bound + 1)
        parts.append(_lookup(padded, torch.where(both, row, none)))
    return (parts[0] + parts[1] + parts[2]).permute(0, 3, 1, 2)


def _lookup(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows], its gradient summed up by `segment_reduce`: torch's takes most of the time of a training step."""
    if not (table.requires_grad and torch.is_grad_enabled()):
        return F.embedding(rows, table)
    return _applied(_Lookup, table, rows)


def _applied(function: Any, *inputs: Any) -> Tensor:
    """The result of a function of autograd, whose types torch does not tell."""
    result: Tensor = function.apply(*inputs)
    return result


class _Lookup(torch.autograd.Function):
    """table [T, H] and whole rows [...] to table[rows]."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.length = len(table)
        return F.embedding(rows, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _applied(_SumByRow, grad, *ctx.saved_tensors, ctx.length), None


class _SumByRow(torch.autograd.Function):
    """The transpose of `_Lookup`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, rows: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(rows)
        return segment_reduce(grad.reshape(-1, grad.shape[-1]), rows.flatten().long(), length)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _applied(_Lookup, grad, *ctx.saved_tensors), None, None


@torch.library.custom_op("pcdet_ext::group_attention", mutates_args=())
def _attend(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
) -> Tensor:
    rows, channels = len(qkv), qkv.shape[1] // 3
    out, wrong = qkv.new_zeros(rows, channels), index.new_zeros(1)
    inputs = _arguments(qkv, index, inverse, num_heads, valid, owner, cells, table)
    results: list[Argument] = [(out, qkv.dtype, rows * channels), (wrong, torch.int64, 1)]
    if on_cuda(qkv):
        launch("group_attention", qkv.device, *inputs, *results, Int32(TYPE_CODES[qkv.dtype]))
    else:
        launch("group_attention", qkv.device, *inputs, *results, dtype=qkv.dtype)
    if int(wrong):
        raise ValueError(
            f"index must hold rows of qkv below {rows}, and inverse a slot that holds the row itself, "
            f"{int(wrong)} slots or rows do not"
        )
    return out


def _arguments(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
) -> list[Argument]:
    """What the kernels of both directions take first."""
    (groups, slots), rows, width = index.shape, len(qkv), qkv.shape[1]
    biases, bound = None, 0
    if table is not None:
        biases, bound = table if on_cuda(qkv) else torch.cat([table, table.new_zeros(1, num_heads)]), _bound(table)
        biases = biases.t().contiguous()
    return [
        (qkv, qkv.dtype, rows * width),
        (index, torch.int64, groups * slots),
        (inverse, torch.int64, rows),
        (valid, torch.bool, groups * slots),
        (owner, torch.int64, groups * slots),
        (None if table is None else cells, torch.int32, 3 * rows),
        (biases, torch.promote_types(qkv.dtype, torch.float32), 0 if biases is None else biases.numel()),
        *(groups, slots, rows, num_heads, width // (3 * num_heads), bound),
    ]


def _bound(table: Tensor) -> int:
    """The largest distance that a table [3 (2 b + 1), H] tells from others."""
    return (len(table) // 3 - 1) // 2


@_attend.register_fake
def _(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
) -> Tensor:
    return qkv.new_empty(len(qkv), qkv.shape[1] // 3)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, index, inverse, ctx.num_heads, valid, owner, cells, table = inputs
    ctx.save_for_backward(qkv, index, inverse, valid, owner, cells, table)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes the weights anew, on the CPU by the reference; nothing but the inputs is kept between the passes."""
    qkv, index, inverse, valid, owner, cells, table = ctx.saved_tensors

    def attend(qkv: Tensor, table: Tensor | None) -> Tensor:
        return group_attention_reference(qkv, index, inverse, ctx.num_heads, valid, owner, cells, table)

    if on_cuda(qkv) and _has_kernel(qkv, ctx.num_heads):
        to_qkv, to_table = _backward(qkv, index, inverse, ctx.num_heads, valid, owner, cells, table, grad)
        return (to_qkv, *[None] * 6, None if table is None else to_table)
    to_qkv, to_table = reference_gradients(attend, (qkv, table), grad)
    return (to_qkv, *[None] * 6, to_table)


_attend.register_autograd(_differentiate, setup_context=_setup)


@torch.library.custom_op("pcdet_ext::group_attention_backward", mutates_args=())
def _backward(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and of the table (of no entries without one), by the kernels for CUDA."""
    (groups, slots), (rows, width), kind = index.shape, qkv.shape, torch.float32
    channels = width // 3
    entries, chunks = 0 if table is None else len(table), max(1, min(groups, _CHUNKS // num_heads))
    to_qkv, statistics = torch.empty_like(qkv), qkv.new_empty(rows, num_heads, 3, dtype=kind)
    to_slots = qkv.new_empty(groups * slots, 2 * channels, dtype=kind)
    to_table = qkv.new_zeros(chunks, num_heads, entries, dtype=kind)
    launch(
        "group_attention_backward",
        qkv.device,
        *_arguments(qkv, index, inverse, num_heads, valid, owner, cells, table),
        (grad.contiguous(), qkv.dtype, rows * channels),
        (statistics, kind, rows * num_heads * 3),
        (to_qkv, qkv.dtype, rows * width),
        (to_slots, kind, groups * slots * 2 * channels),
        chunks,
        (to_table, kind, chunks * num_heads * entries),
        Int32(TYPE_CODES[qkv.dtype]),
    )
    to_qkv[:, channels:] = segment_reduce(to_slots, index.flatten(), rows)
    return to_qkv, to_table.sum(0).t().contiguous()


@_backward.register_fake
def _(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    num_heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor | None,
    table: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    entries = 0 if table is None else len(table)
    return torch.empty_like(qkv), qkv.new_empty(entries, num_heads, dtype=torch.float32)
