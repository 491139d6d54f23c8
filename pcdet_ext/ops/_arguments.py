"""Arguments of the operations held against their type hints, so that a wrong one is named before any kernel sees it."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Fault = Callable[[Any], str | None]  # what a value must be, where it is not

Forms = Mapping[str, Callable[..., Any]]
_forms: ContextVar[Forms] = ContextVar("forms", default={})  # noqa: B039  (nobody writes to it)

_LARGEST = (1 << 63) - 1
_LARGEST_FLOAT = sys.float_info.max
_MOST_KNOWN = 64  # tuples that an argument remembers


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The function with arguments that are checked against its type hints.

    A call then raises TypeError for an argument of another type, and ValueError for a number of another kind or one
    that 64 bits do not hold; both name the argument. What numbers mean is for the function to check.
    """
    hints = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name in hints]
    rules = {name: _Rule(name, hints[name]) for name in names}
    in_order = tuple(rules.values())

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if (forms := _forms.get()) and (form := forms.get(function.__name__)):
            return form(*args, **kwargs)
        ready, remembers = list[Any](args), not torch.compiler.is_compiling()
        for place, rule in enumerate(in_order[: len(ready)]):
            ready[place] = rule.take(ready[place], remembers)
        for name in [*kwargs]:
            if name in rules:
                kwargs[name] = rules[name].take(kwargs[name], remembers)
        return function(*ready, **kwargs)

    return checked


@contextmanager
def operations_as(forms: Forms) -> Iterator[None]:
    """Operations compute by other functions, given by their names, which get the arguments unchecked.

    For recording a model as a graph of basic operators, in which kernels of this library have no place.
    """
    token = _forms.set(forms)
    try:
        yield
    finally:
        _forms.reset(token)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which do not overflow."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)) and any(isinstance(item, np.generic) for item in value):
        return [_plain(item) for item in value]
    return value


class _Rule:
    """What an argument must be. Tuples of numbers that were right are known again by their identity, since modules give
    the same few in every call.
    """

    def __init__(self, name: str, hint: Any) -> None:
        self.name, self.fault = name, _fault_of(hint)
        self.exact = str if get_origin(hint) is Literal else hint  # of this very type every value is right
        if self.exact not in (Tensor, bool, str):
            self.exact = None
        items = get_args(hint)[:1] if _is_sequence(hint) else ()
        self.items: set[type] = {int, *items} if items in ((int,), (float,)) else set()
        self.known: dict[int, object] = {}

    def take(self, value: Any, remembers: bool) -> Any:
        """The value, numbers of NumPy as Python's, which do not overflow; raises for one that is not right."""
        if type(value) is self.exact or (remembers and self.known.get(id(value), self) is value):
            return value
        _check(self.name, value, self.fault)
        if type(value) is int:
            return value
        if remembers and type(value) is tuple and self.items.issuperset(map(type, value)):
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[id(value)] = value
        return _plain(value)


def _check(name: str, value: Any, fault: Fault) -> None:
    wanted = fault(value)
    if wanted is None:
        return
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be {wanted}, got a tensor {list(value.shape)}")
    shown = repr(value)
    raise TypeError(f"{name} must be {wanted}, got {shown if len(shown) < 60 else type(value).__name__}")


def _fault_of(hint: Any) -> Fault:
    """What is wrong with a value that a type hint describes."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [_fault_of(part) for part in parts if part is not type(None)]
        return _optional(options) if type(None) in parts else _any_of(options)
    if origin is Literal:
        words = " or ".join(repr(part) for part in parts)
        return lambda value: None if isinstance(value, str) else words
    if _is_sequence(hint):
        return _sequence(parts[0])
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: None if isinstance(value, hint) else f"of type {hint.__name__}"
    return _FAULTS.get(hint, lambda value: None)


def _is_sequence(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _optional(options: Sequence[Fault]) -> Fault:
    inner = _any_of(options)
    return lambda value: None if value is None else inner(value)


def _any_of(options: Sequence[Fault]) -> Fault:
    def fault(value: Any) -> str | None:
        found = [option(value) for option in options]
        return None if None in found else " or ".join(str(one) for one in found)

    return fault


def _sequence(item: Any) -> Fault:
    kind, fault_of_item = ("whole numbers", _not_whole) if item is int else ("numbers", _not_number)

    def fault(value: Any) -> str | None:
        fits = isinstance(value, (Sequence, np.ndarray, torch.Size)) and not isinstance(value, str)
        if fits and not any(fault_of_item(one) for one in value):
            return None
        return f"a sequence of {kind}"

    return fault


def _not_whole(value: Any) -> str | None:
    if type(value) is int:
        return None if -_LARGEST <= value <= _LARGEST else "a whole number"
    if isinstance(value, torch.SymInt):
        return None
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    return None if fits else "a whole number"


def _not_number(value: Any) -> str | None:
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return None
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return None if number and (value != value or abs(value) <= _LARGEST_FLOAT or math.isinf(value)) else "a number"


_FAULTS: dict[Any, Fault] = {
    Tensor: lambda value: None if isinstance(value, Tensor) else "a tensor",
    bool: lambda value: None if isinstance(value, (bool, np.bool_)) else "True or False",
    int: _not_whole,
    float: _not_number,
    str: lambda value: None if isinstance(value, str) else "a text",
}
