"""Operators of a recorded graph that torch has no ONNX form for, or only a slow one.

Each is a torch operator in the namespace `pcdet_ext_onnx`, so that recording can run it, and a translation to ONNX.
Those that repeat something are ONNX functions with a loop in them, which `inline` puts in where they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "pcdet_ext_onnx"
DOMAIN = "pcdet_ext.functions"  # of ONNX functions, before they are put in
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def _define(schema: str, function: Any) -> Any:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _argsort(keys: Tensor) -> Tensor:
    return torch.argsort(keys, stable=True)


def _scatter_rows(base: Tensor, index: Tensor, rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return base.index_copy(0, index, rows)
    if reduction == "add":
        return base.index_add(0, index, rows)
    places = index.view(-1, *[1] * (rows.dim() - 1)).expand_as(rows)
    return base.scatter_reduce(0, places, rows, "amax" if reduction == "max" else "amin")


def _keep_greedily(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    alive = torch.ones(len(scores), dtype=torch.bool)
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        if alive[i]:
            alive[j] = False
    return alive


# Positions int64 [N] of keys [N] in ascending order, equal keys in theirs.
argsort = _define("argsort(Tensor keys) -> Tensor", _argsort)
# base [S, ...] with rows [P, ...] written to, added to, or the maximum or minimum taken with the rows index int64 [P].
scatter_rows = _define("scatter_rows(Tensor base, Tensor index, Tensor rows, str reduction) -> Tensor", _scatter_rows)
# bool [K]: which boxes stay of K scores, best first, where box first[q] removes second[q], int64 [Q], if it stays.
keep_greedily = _define("keep_greedily(Tensor first, Tensor second, Tensor scores) -> Tensor", _keep_greedily)

# Repeats "a box stays unless one that stays removes it" from all boxes staying until nothing changes: after k steps the
# marks of the first k boxes are right, mostly after a few steps those of all.
KEEP_GREEDILY = """
<domain: "pcdet_ext.functions", opset_import: ["" : OPSET]>
keep_greedily (first, second, scores) => (alive) {
    shape = Shape (scores)
    all = ConstantOfShape <value: tensor = int32[1] {1}> (shape)
    none = ConstantOfShape <value: tensor = int32[1] {0}> (shape)
    one = Constant <value: tensor = int32 {1}> ()
    zero = Constant <value: tensor = int32 {0}> ()
    axis = Constant <value: tensor = int64[1] {1}> ()
    column = Unsqueeze (second, axis)
    yes = Constant <value: tensor = bool {1}> ()
    size = Size (scores)
    more = Constant <value: tensor = int64 {1}> ()
    limit = Add (size, more)
    marks = Loop (limit, yes, all) <body = step (int64 number, bool on, int32[K] now) => (bool again, int32[K] then) {
        staying = Gather <axis: int = 0> (now, first)
        removed = ScatterND <reduction: string = "max"> (none, column, staying)
        then = Sub (one, removed)
        same = Equal (now, then)
        different = Not (same)
        counted = Cast <to: int = 6> (different)
        changes = ReduceSum <keepdims: int = 0> (counted)
        again = Greater (changes, zero)
    }>
    alive = Cast <to: int = 9> (marks)
}
"""

FUNCTIONS = {"keep_greedily": KEEP_GREEDILY}


def _write_argsort(g: Any, keys: Any) -> Any:
    return g.op("TopK", keys, g.op("Shape", keys), axis_i=0, largest_i=0, sorted_i=1, outputs=2)[1]


def _write_scatter_rows(g: Any, base: Any, index: Any, rows: Any, reduction: Any) -> Any:
    column = g.op("Unsqueeze", index, g.op("Constant", value_t=torch.tensor([1])))
    return g.op("ScatterND", base, column, rows, reduction_s=reduction.node().s("value"))


def _write_keep_greedily(g: Any, first: Any, second: Any, scores: Any) -> Any:
    return g.op(f"{DOMAIN}::keep_greedily", first, second, scores).setType(scores.type().with_dtype(torch.bool))


WRITERS: dict[str, Callable[..., Any]] = {
    "argsort": _write_argsort,
    "scatter_rows": _write_scatter_rows,
    "keep_greedily": _write_keep_greedily,
}


def register(opset: int) -> None:
    """Tell torch's exporter how the operators are written in an opset."""
    exporter: Any = torch.onnx  # its registration of writers has no annotation
    for name, write in WRITERS.items():
        exporter.register_custom_op_symbolic(f"{NAMESPACE}::{name}", write, opset)


def inline(model: Any, opset: int) -> Any:
    """An ONNX model in which calls of `FUNCTIONS` are replaced by what these do: standard operators alone."""
    import onnx.inliner
    import onnx.parser

    called = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    texts = (FUNCTIONS[name].replace("OPSET", str(opset)) for name in called)
    model.functions.extend(map(onnx.parser.parse_function, texts))
    return onnx.inliner.inline_local_functions(model)
