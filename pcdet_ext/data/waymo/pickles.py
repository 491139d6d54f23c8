"""Pickled tables of other code bases, read without running anything that they name."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, MissingFileError

_CORES = ("numpy.core", "numpy._core")  # before and since NumPy 2
_KINDS = re.compile(r"[?bBhHiIlLqQefdg]|[biuf][0-9]+|[SUO][0-9]*")  # types of numbers, texts, and of any objects
_reconstruct: Any = np.zeros(0).__reduce__()[0]
MOST_NESTED = 1000  # tuples inside one tuple: infos of frames have three
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_NESTING = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


class _Maker:
    """What a pickle gets for a name that it may use: it can be called, and in no way be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it changes what it names")


def _no_array(*_: Any) -> None:
    raise pickle.UnpicklingError("it makes an array in an unusual way")


_NDARRAY = _Maker(_no_array)  # stands for `numpy.ndarray`, which pickles name, but do not call


class _Type:
    """Stands for `numpy.dtype`: of its state, with which one could have bytes taken for objects, nothing but the order
    of bytes is taken over."""

    def __init__(self, kind: Any, *_: Any) -> None:
        kind = kind.decode("latin1") if isinstance(kind, bytes) else kind
        if not isinstance(kind, str) or not _KINDS.fullmatch(kind):
            raise pickle.UnpicklingError(f"it has an array of type {kind!r}")
        self.dtype = np.dtype("O" if kind[0] == "O" else kind)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has an array of a compound type")
        self.dtype = self.dtype.newbyteorder("=" if order == "|" else order)


class _Array(np.ndarray):
    """An array that a pickle fills, with what fits it; none is left in what `read_pickle` gives."""

    def __setstate__(self, state: Any) -> None:
        shape, kind, fortran, content = state[-4:]
        dtype = _dtype(kind)
        if isinstance(content, str):  # as Python 2 wrote bytes
            content = content.encode("latin1")
        size = math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if not isinstance(content, list if dtype.hasobject else bytes) or min(shape, default=0) < 0:
            raise pickle.UnpicklingError("it fills an array in an unusual way")
        if size != len(content):
            raise pickle.UnpicklingError(f"it has an array of {size} bytes or objects, filled with {len(content)}")
        _check_text(dtype, content)
        if dtype.hasobject:
            seen: set[int] = set()
            content = [_with_base_arrays(item, seen) for item in content]
        filled: Any = (1, tuple(shape), dtype, bool(fortran), content)
        super().__setstate__(filled)


def _with_base_arrays(value: Any, seen: set[int]) -> Any:
    """A value with `numpy.ndarray` for each `_Array`; lists and dicts are changed where they are, once each.

    The arrays are copies: a pickle may fill one again, and what shared its memory would then point nowhere.
    """
    if isinstance(value, _Array):
        return np.array(value)
    if isinstance(value, tuple):
        return tuple(_with_base_arrays(item, seen) for item in value)
    if isinstance(value, list | dict) and id(value) not in seen:
        seen.add(id(value))
        places: Any = range(len(value)) if isinstance(value, list) else value
        for place in places:
            value[place] = _with_base_arrays(value[place], seen)
    return value


def _dtype(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("it makes an array in an unusual way")
    return kind.dtype


def _check_text(dtype: np.dtype[Any], content: Any) -> None:
    """Raise UnpicklingError where an array of text holds numbers of no character, a SystemError in NumPy."""
    if dtype.kind == "U" and (np.frombuffer(content, f"{dtype.byteorder}u4") > sys.maxunicode).any():
        raise pickle.UnpicklingError("it has text of no characters")


def _array(subtype: Any, shape: tuple[int, ...], _: Any) -> Any:
    """As `numpy._core.multiarray._reconstruct`: an empty array that is filled afterwards."""
    if subtype is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("it makes an array in an unusual way")
    return _reconstruct(_Array, shape, b"b")


def _array_of_bytes(content: Any, kind: Any, shape: tuple[int, ...], order: str) -> Any:
    """As `numpy._core.numeric._frombuffer`, how protocol 5 writes arrays."""
    dtype = _dtype(kind)
    if not isinstance(content, bytes | bytearray) or dtype.hasobject:
        raise pickle.UnpicklingError("it makes an array in an unusual way")
    _check_text(dtype, content)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _number(kind: Any, content: Any = b"") -> Any:
    """As `numpy._core.multiarray.scalar`."""
    dtype = _dtype(kind)
    if isinstance(content, str):
        content = content.encode("latin1")
    if dtype.hasobject or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError("it makes a number in an unusual way")
    _check_text(dtype, content)
    return np.frombuffer(content, dtype)[0] if content else dtype.type()


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """As `_codecs.encode`, how protocols below 3 write bytes, or `bytes` where there are none."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it has bytes in encoding {encoding!r}")
    return text.encode("latin1")


# What a pickle may name: the makers of arrays, numbers and their types. Lists, dicts and the like need no name.
ALLOWED: dict[tuple[str, str], _Maker] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Maker(_array) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Maker(_number) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Maker(_array_of_bytes) for core in _CORES},
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Maker(_Type),
    ("builtins", "set"): _Maker(set),
    ("builtins", "frozenset"): _Maker(frozenset),
    ("builtins", "bytes"): _Maker(_bytes),
    ("collections", "OrderedDict"): _Maker(dict),
    ("_codecs", "encode"): _Maker(_bytes),
}


# What a damaged pickle may raise besides its own error.
DAMAGE = (
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    MemoryError,
    OverflowError,
    RecursionError,
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to the outside ({pid!r})")


def _check_steps(data: bytes) -> None:
    """Go through the steps of a pickle without taking any. Raises UnpicklingError for those that end the process:

    tuples deep inside each other, whose hash overflows the stack of C, and numbers that make the memo of any size.
    """
    stack: list[int | None] = []  # how many tuples each object has inside; None: a mark
    memo: dict[int, int | None] = {}
    argument: Any  # of a type that depends on the step
    for step, argument, _ in pickletools.genops(data):
        if step.name in _PUTS:
            place = len(memo) if argument is None else argument
            if not 0 <= place <= len(data):
                raise pickle.UnpicklingError(f"it numbers an object {place}, and has {len(data)} bytes")
            memo[place] = stack[-1]
        elif step.name in _GETS:
            stack.append(memo[argument])
        elif step.name == "DUP":
            stack.append(stack[-1])
        else:
            taken = [nested for nested in _taken(stack, step) if nested is not None]
            nested = 1 + sum(taken) if step.name in _NESTING else max(taken, default=0)
            if nested > MOST_NESTED:
                raise pickle.UnpicklingError(f"it has a tuple with more than {MOST_NESTED} others inside")
            stack.extend(None if kind is pickletools.markobject else nested for kind in step.stack_after)


def _taken(stack: list[int | None], step: pickletools.OpcodeInfo) -> list[int | None]:
    """What a step takes from the stack, removed there."""
    count = len(step.stack_before)
    if pickletools.markobject in step.stack_before:
        mark = len(stack) - 1
        while mark >= 0 and stack[mark] is not None:
            mark -= 1
        if mark < 0:
            raise pickle.UnpicklingError("it goes back to a mark that it never set")
        count = len(stack) - mark + step.stack_before.index(pickletools.markobject)
    if count > len(stack):
        raise pickle.UnpicklingError("it takes more than there is")
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle that holds builtin containers, numbers, text and NumPy arrays; nothing in it is run.

    Raises DataError naming the file, and what it names that is none of these; MissingFileError where there is none.
    """
    try:
        data = Path(path).read_bytes()
        _check_steps(data)
        return _with_base_arrays(_Unpickler(io.BytesIO(data)).load(), set())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: not read, {error}; only lists, dicts, numbers, text and arrays are") from error
    except DAMAGE as error:
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error
