"""Writes in place while a network is recorded: which of them a graph would have, and which tensors would not follow.

A graph has values, not memory. torch's tracer replaces a tensor that is written into by a new value, also the tensor
that an indexed one belongs to; others in the same memory keep their old values in the graph, unlike in PyTorch.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class RecordingError(RuntimeError):
    """Something in a model depends on values in a way that a graph cannot hold."""


# Writes of which torch's tracer makes no graph, or one in which other names of the tensor do not see them.
UNSEEN_WRITES: Mapping[Any, str] = {
    Tensor.index_copy_: "y = y.index_copy(dim, index, rows)",
    **{
        getattr(Tensor, f"__i{name}__"): f"y = y {sign} x" for name, sign in {"and": "&", "or": "|", "xor": "^"}.items()
    },
    Tensor.__ilshift__: "y = y << x",
    Tensor.__irshift__: "y = y >> x",
}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
WRITES = {
    *(getattr(Tensor, f"__i{name}__") for name in OPERATORS if hasattr(Tensor, f"__i{name}__")),
    Tensor.__setitem__,
}
ABOUT: set[Any] = {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
ABOUT |= {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")}  # no values are read


class Writes:
    """The tensors of one recording by the memory that they share, and what was written there."""

    def __init__(self) -> None:
        self._sharing: dict[int, dict[int, weakref.ref[Tensor]]] = {}

    def check(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> None:
        """Look at a call before it is made.

        Args:
            func: the function of torch.
            args: its arguments.
            kwargs: its named arguments.

        Raises:
            RecordingError: it writes in place in a way that a graph cannot hold, or reads what would be out of date.
        """
        name = getattr(func, "__name__", "")
        if func in UNSEEN_WRITES:
            raise RecordingError(f"{name} writes in place, which is not recorded: write {UNSEEN_WRITES[func]}")
        if kwargs.get("out") is not None:
            raise RecordingError(f"{name} writes into `out`, which is not recorded: write y = {name}(...)")
        if name.startswith("index_put") and any(given is True for given in (*args[3:], kwargs.get("accumulate"))):
            raise RecordingError(
                f"{name} with accumulate=True is not recorded where an index stands twice: use index_add"
            )
        if func not in ABOUT:
            for x in _tensors((args, list(kwargs.values()))):
                if write := getattr(x, "out_of_date", None):
                    raise RecordingError(
                        f"{name} reads a tensor whose memory {write} wrote into by another name, which is not "
                        "recorded: take views again after a write, or make a new tensor"
                    )
        target = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
        if _writes(func) and isinstance(target, (list, tuple)):
            raise RecordingError(f"{name} writes into a list of tensors in place, which is not recorded")
        if not isinstance(target, Tensor):
            return
        if _writes(func):
            self._check_target(name, target)
            base = target._base if target._is_view() else None
            self._wrote(name, target, base, func is not Tensor.__setitem__ or base is None)
        elif _has_inplace(func, args, kwargs):
            self._wrote(f"{name} with inplace=True", target, None, True)

    def made(self, func: Callable[..., Any], args: Any, found: Any) -> None:
        """Remember what a call made.

        Args:
            func: the function of torch.
            args: its arguments.
            found: its result.
        """
        for x in _tensors(found):
            same = self._sharing.setdefault(x.untyped_storage()._cdata, {})
            same[id(x)] = weakref.ref(x)
        if func is Tensor.__getitem__ and isinstance(found, Tensor) and not _is_other_view(args[0]):
            found.was_indexed = True  # type: ignore[attr-defined]

    def _check_target(self, name: str, x: Tensor) -> None:
        if _is_other_view(x):
            raise RecordingError(
                f"{name} writes in place into a view, which is not recorded: write into the tensor itself, by "
                "indexing, or make a new one"
            )
        if write := getattr(x, "was_written", None):
            raise RecordingError(
                f"{name} writes in place into a view that {write} wrote into before, of which only one is recorded: "
                "write into the tensor itself, by indexing"
            )

    def _wrote(self, name: str, x: Tensor, base: Tensor | None, itself: bool) -> None:
        """What shares memory with x is out of date, except the base and, where `itself` is True, x."""
        for reference in self._sharing.get(x.untyped_storage()._cdata, {}).values():
            other = reference()
            if other is not None and other is not x and other is not base:
                other.out_of_date = name  # type: ignore[attr-defined]
        if not itself:
            x.out_of_date = name  # type: ignore[attr-defined]
        elif base is not None:
            x.was_written = name  # type: ignore[attr-defined]


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return func in WRITES or (name.endswith("_") and not name.endswith("__"))


def _has_inplace(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of torch.nn.functional is asked to write its result into its argument."""
    if getattr(func, "__module__", "") != "torch.nn.functional" or not inspect.isfunction(func):
        return False
    arguments = inspect.signature(func).bind_partial(*args, **kwargs).arguments
    return bool(arguments.get("inplace"))


def _is_other_view(x: Any) -> bool:
    """Whether a tensor is a view of another one that was not made by indexing alone."""
    return isinstance(x, Tensor) and x._is_view() and not hasattr(x, "was_indexed")


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results, also in tuples and lists."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for each in given:
            yield from _tensors(each)
