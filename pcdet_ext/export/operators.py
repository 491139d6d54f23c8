"""Operators of a recorded graph that torch has no ONNX form for, or only a slow one.

Each is a torch operator in the namespace `pcdet_ext_onnx`, so that recording can run it, and a writer of ONNX nodes.
Those that repeat a step become calls of ONNX functions, which `inlining.inline` replaces by what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.mixers.ttt import inner_steps
from pcdet_ext.ops import nms
from pcdet_ext.ops import selective_scan as scan
from pcdet_ext.ops import wkv as wkv_scan
from pcdet_ext.ops._arguments import operations_as

NAMESPACE = "pcdet_ext_onnx"
DOMAIN = "pcdet_ext.functions"  # of ONNX functions, before they are put in
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def _define(schema: str, function: Callable[..., Tensor]) -> Any:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _argsort(keys: Tensor) -> Tensor:
    return torch.argsort(keys, stable=True)


def _bits(a: Tensor, b: Tensor, operation: str) -> Tensor:
    return {"and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}[operation](a, b)


def _scatter_rows(base: Tensor, index: Tensor, rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return base.index_copy(0, index, rows)
    if reduction == "add":
        return base.index_add(0, index, rows)
    places = index.view(-1, *[1] * (rows.dim() - 1)).expand_as(rows)
    return base.scatter_reduce(0, places, rows, "amax" if reduction == "max" else "amin")


def _suppress(boxes: Tensor, threshold: Tensor, most: Tensor, kind: str) -> Tensor:
    with operations_as({}):
        descending = -torch.arange(len(boxes)).to(boxes)
        return nms(boxes, descending, float(threshold), kind, post_max=int(most))  # type: ignore[arg-type]


def _selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool) -> Tensor:
    with operations_as({}):
        return scan(u, delta, A, B, C, reverse=reverse).contiguous()


def _wkv(r: Tensor, k: Tensor, v: Tensor, decay: Tensor, u: Tensor, reverse: bool) -> Tensor:
    with operations_as({}):
        return wkv_scan(r, k, v, torch.log(-torch.log(decay)), u, reverse)


def _ttt_steps(
    state: Tensor,
    queries: Tensor,
    keys: Tensor,
    update: Tensor,
    learn: Tensor,
    offset: Tensor,
    scale: Tensor,
    eps: Tensor,
) -> Tensor:
    return inner_steps(state, queries, keys, update, learn, offset, scale, float(eps))


# Positions int64 [N] of keys [N] in ascending order, equal keys in theirs.
argsort = _define("argsort(Tensor keys) -> Tensor", _argsort)
# "and", "or" and "xor" of the bits of int64.
bits = _define("bits(Tensor a, Tensor b, str operation) -> Tensor", _bits)
# base [S, ...] with rows [P, ...] written to, added to, or the maximum or minimum taken with the rows index int64 [P].
scatter_rows = _define("scatter_rows(Tensor base, Tensor index, Tensor rows, str reduction) -> Tensor", _scatter_rows)
# Rows int64 [M] of boxes [K, 7], best first, that stay of those that overlap: see `pcdet_ext.ops.nms`. threshold:
# float64 []; most: int64 [1], how many stay at most; kind: "rotated" or "circle".
suppress = _define("suppress(Tensor boxes, Tensor threshold, Tensor most, str kind) -> Tensor", _suppress)
# See `pcdet_ext.ops.selective_scan`; delta is Δ itself.
selective_scan = _define(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, bool reverse) -> Tensor", _selective_scan
)
# See `pcdet_ext.ops.wkv`; decay is e = exp(−exp(w)).
wkv = _define("wkv(Tensor r, Tensor k, Tensor v, Tensor decay, Tensor u, bool reverse) -> Tensor", _wkv)
# See `pcdet_ext.mixers.ttt.inner_steps`; the state is [G, H, D + 1, D], eps [1].
ttt_steps = _define(
    "ttt_steps(Tensor state, Tensor queries, Tensor keys, Tensor update, Tensor learn, Tensor offset, Tensor scale, "
    "Tensor eps) -> Tensor",
    _ttt_steps,
)


def _write_argsort(g: Any, keys: Any) -> Any:
    return g.op("TopK", keys, g.op("Shape", keys), axis_i=0, largest_i=0, sorted_i=1, outputs=2)[1]


def _write_bits(g: Any, a: Any, b: Any, operation: Any) -> Any:
    return g.op(f"Bitwise{operation.node().s('value').title()}", a, b).setType(a.type())


def _write_scatter_rows(g: Any, base: Any, index: Any, rows: Any, reduction: Any) -> Any:
    column = g.op("Unsqueeze", index, g.op("Constant", value_t=torch.tensor([1])))
    return g.op("ScatterND", base, column, rows, reduction_s=reduction.node().s("value")).setType(base.type())


def _write_suppress(g: Any, boxes: Any, threshold: Any, most: Any, kind: Any) -> Any:
    name = f"suppress_{kind.node().s('value')}"
    return g.op(f"{DOMAIN}::{name}", boxes, threshold, most).setType(most.type().with_sizes([None]))


def _writes_scan(name: str) -> Callable[..., Any]:
    def write(g: Any, first: Any, *arguments: Any) -> Any:
        *rest, reverse = arguments
        way = "_reversed" if bool(reverse.node().t("value")) else ""
        return g.op(f"{DOMAIN}::{name}{way}", first, *rest).setType(first.type())

    return write


def _write_ttt_steps(g: Any, state: Any, queries: Any, *arguments: Any) -> Any:
    return g.op(f"{DOMAIN}::ttt_steps", state, queries, *arguments).setType(arguments[3].type())


WRITERS: dict[str, Callable[..., Any]] = {
    "argsort": _write_argsort,
    "bits": _write_bits,
    "scatter_rows": _write_scatter_rows,
    "selective_scan": _writes_scan("selective_scan"),
    "suppress": _write_suppress,
    "ttt_steps": _write_ttt_steps,
    "wkv": _writes_scan("wkv"),
}


def register(opset: int) -> None:
    """Tell torch's exporter how the operators are written in an opset."""
    exporter: Any = torch.onnx  # its registration of writers has no annotation
    for name, write in WRITERS.items():
        exporter.register_custom_op_symbolic(f"{NAMESPACE}::{name}", write, opset)
