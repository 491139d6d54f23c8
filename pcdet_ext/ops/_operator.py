"""Operators without gradient, at a third of the dispatch of `torch.library.custom_op`, which counts in small ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("pcdet_ext", "FRAGMENT")


def integer_operator(name: str) -> Callable[[Function], Function]:
    """Decorator: this function is the operator `pcdet_ext::name` on every device; the operator takes its place.

    For integer results, through which no gradient goes; the function's types are the schema, as of
    `torch.library.custom_op`, and it must return new tensors. Shapes for tracing: `shapes_of`.
    """

    def register(function: Function) -> Function:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.pcdet_ext, name).default

    return register


def shapes_of(name: str) -> Callable[[Function], Function]:
    """Decorator: this function gives empty results of `pcdet_ext::name` for tracing."""
    return torch.library.register_fake(f"pcdet_ext::{name}")
