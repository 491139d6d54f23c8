"""Operators without gradient, at a third of the dispatch of `torch.library.custom_op`, which counts in small ops; and
calls past PyTorch's dispatcher where nobody would notice, which count in all ops that take less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
_BODIES: dict[int, Callable[..., Any]] = {}  # functions by the identity of their operators, which stay
_LIBRARY = torch.library.Library("pcdet_ext", "FRAGMENT")


def integer_operator(name: str) -> Callable[[Function], Function]:
    """Decorator: this function is the operator `pcdet_ext::name` on every device; the operator takes its place.

    For integer results, through which no gradient goes; the function's types are the schema, as of
    `torch.library.custom_op`, and it must return new tensors. Shapes for tracing: `shapes_of`.
    """

    def register(function: Function) -> Function:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        operator: Function = getattr(torch.ops.pcdet_ext, name).default
        _BODIES[id(operator)] = function
        return operator

    return register


def differentiable_operator(name: str) -> Callable[[Callable[P, R]], CustomOpDef]:
    """Decorator: this function is the operator `pcdet_ext::name`, as by `torch.library.custom_op`; it changes none of
    its arguments.
    """

    def register(function: Callable[P, R]) -> CustomOpDef:
        operator: CustomOpDef = torch.library.custom_op(f"pcdet_ext::{name}", function, mutates_args=())
        _BODIES[id(operator)] = function
        return operator

    return register


def shapes_of(name: str) -> Callable[[Function], Function]:
    """Decorator: this function gives empty results of `pcdet_ext::name` for tracing."""
    return torch.library.register_fake(f"pcdet_ext::{name}")


def run(operator: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call an operator of the two decorators above; in plain eager computation, the function itself.

    PyTorch's dispatcher takes longer to find a function in Python (20 µs, and 150 µs where other work has taken its
    code out of the caches) than kernels take for thousands of voxels.
    """
    if kwargs or watched(args):
        return operator(*args, **kwargs)
    result: R = _BODIES[id(operator)](*args)
    return result


def watched(args: tuple[object, ...]) -> bool:
    """Whether a call of an operator does more than compute: it is compiled, traced, transformed, profiled or seen by a
    mode, or one of its tensors needs a gradient, is of a subclass, on a device without kernels, or a negative view,
    whose memory holds other values.
    """
    if torch.compiler.is_compiling():
        return True
    for value in args:
        if type(value) is Tensor:
            if (value.requires_grad and torch.is_grad_enabled()) or not (value.is_cpu or value.is_cuda):
                return True
            if value.is_neg():
                return True
        elif isinstance(value, Tensor):
            return True
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
        or _is_transformed()
    )


def needs_derivatives(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors must be differentiable, backwards or forwards, or is transformed by
    `torch.func`: kernels without derivatives then have no place.
    """
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return True
    return not torch.compiler.is_compiling() and _is_transformed()


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
