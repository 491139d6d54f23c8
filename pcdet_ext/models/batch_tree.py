"""Batches in torch's trees: what its functions that map over arguments see of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from torch.utils import _pytree

from pcdet_ext.structures import PointBatch

LEAVES = ("points", "batch_index")


def _rest(batch: PointBatch) -> tuple[tuple[str, Any], ...]:
    return tuple((each.name, getattr(batch, each.name)) for each in fields(batch) if each.name not in LEAVES)


def _rebuilt(children: Iterable[Any], rest: tuple[tuple[str, Any], ...]) -> PointBatch:
    return PointBatch(**dict(zip(LEAVES, children, strict=True)), **dict(rest))


# torch.export looks into its arguments before it calls anything: without this it would only say that it does not know
# the type, instead of what `features` says. Functions mapped over a batch see its points; its targets stay as they are.
_pytree.register_pytree_node(
    PointBatch,
    lambda batch: ([getattr(batch, name) for name in LEAVES], _rest(batch)),
    _rebuilt,
    flatten_with_keys_fn=lambda batch: (
        [(_pytree.GetAttrKey(name), getattr(batch, name)) for name in LEAVES],
        _rest(batch),
    ),
)
