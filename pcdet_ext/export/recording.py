"""Recording a detector as a graph of basic operators, with torch's tracer.

A trace knows one run alone, so everything that depends on the number of points must be in the graph. While it is
recorded
  - operations of this library with kernels compute by basic operators (`operations_as`),
  - functions of torch without an ONNX form, or with a slow one, are exchanged (`Exchanged`),
  - `len` of a tensor is a recorded size, as `tensor.shape[0]` is, in the modules of networks,
  - a choice that Python makes by the values of a tensor is an error, not a constant.
"""

from __future__ import annotations

import builtins
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode

from pcdet_ext import structures
from pcdet_ext.export import basics, boxes, mixers, sequences, sparse, voxels
from pcdet_ext.export.operators import argsort, bits, scatter_rows
from pcdet_ext.export.writes import RecordingError, Writes
from pcdet_ext.mixers import ttt
from pcdet_ext.models import detector
from pcdet_ext.models.bev import flatten_to_bev
from pcdet_ext.models.heads import sites
from pcdet_ext.models.layers import packed_linear, sparse_conv
from pcdet_ext.ops._arguments import operations_as
from pcdet_ext.ops.enlarging_conv import enlarging_conv2d_reference
from pcdet_ext.ops.equal_groups import equal_group_slots_reference
from pcdet_ext.structures import SparseVoxels

OPERATIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d": mixers.causal_conv1d,
    "dynamic_voxelize": voxels.dynamic_voxelize,
    "enlarging_conv2d": lambda x, weight, bias, panels, *more: enlarging_conv2d_reference(x, weight, bias, *more),
    "equal_group_slots": lambda order, inverse, counts, size, sizes: equal_group_slots_reference(
        order, inverse, counts, size
    ),
    "neighbour_table": sparse.neighbour_table,
    "nms": boxes.nms,
    "octree_depthwise_conv": sparse.depthwise_conv,
    "rotated_sets": sequences.rotated_sets,
    "scattered_linear_attention": mixers.scattered_linear_attention,
    "segment_reduce": basics.segment_reduce,
    "segment_softmax": basics.segment_softmax,
    "selective_scan": mixers.selective_scan,
    "serialize": sequences.serialize,
    "unique_numbers": lambda numbers, end: basics.unique(numbers)[:2],  # none is left out in what is recorded
    "voxelize": voxels.voxelize,
    "winograd_conv2d": mixers.winograd_conv2d,
    "wkv": mixers.wkv,
}
SPARSE_CONVOLUTIONS = {  # functions of the module that are no operations
    "_apply": sparse.apply,
    "_resolve": lambda engine, device: "native",
    "strided_table": sparse.strided_table,
    "submanifold_pairs": sparse.submanifold_pairs,
    "takes_sparse_conv": lambda *_: False,
}
ROOMS = ("pcdet_ext.models", "pcdet_ext.grouping", "pcdet_ext.mixers")  # whose `len` is recorded, and those of users


_on_map: ContextVar[bool] = ContextVar("on_map", default=False)  # whether voxels have become a map


def _argsort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    return argsort(-x if descending else x)


def _index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return scatter_rows(x, index, source, "none")


def _index_fill(x: Tensor, dim: int, index: Tensor, value: int) -> Tensor:
    return scatter_rows(x, index, (torch.zeros_like(index) + int(value)).to(x.dtype), "none")


def _repeat_interleave(x: Tensor, repeats: Any = None, dim: int | None = None, **_: Any) -> Tensor:
    if repeats is None:
        return basics.repeat_each(x)
    return x[basics.repeat_each(repeats)]


def _unique(
    x: Tensor,
    sorted: bool = True,  # noqa: A002
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: None = None,
) -> Any:
    return _chosen(basics.unique(x), return_inverse, return_counts)


def _unique_consecutive(x: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: None = None) -> Any:
    new = basics.new_runs(x)
    first, counts = basics.run_lengths(new)
    return _chosen((x[first], new.long().cumsum(0) - 1, counts), return_inverse, return_counts)


def _chosen(found: tuple[Tensor, Tensor, Tensor], inverse: bool, counts: bool) -> Any:
    parts = [found[0], *([found[1]] if inverse else []), *([found[2]] if counts else [])]
    return tuple(parts) if len(parts) > 1 else parts[0]


def _bincount(x: Tensor, weights: None = None, minlength: int = 0) -> Tensor:
    """Of the numbers of frames, of which there is one."""
    return scatter_rows(torch.zeros(minlength, dtype=torch.int64), x.long(), torch.ones_like(x).long(), "add")


def _reshape(x: Tensor, *sizes: Any) -> Tensor:
    """A reshape whose sizes are all told: ONNX cannot infer one (-1) of a tensor without elements."""
    wanted = list(sizes[0]) if builtins.len(sizes) == 1 and isinstance(sizes[0], Sequence) else list(sizes)
    open_ends = [i for i, n in enumerate(wanted) if isinstance(n, int) and n == -1]
    if open_ends:
        known = math.prod(n for i, n in enumerate(wanted) if i != open_ends[0])
        wanted[open_ends[0]] = math.prod(_shape_of(x)) // known
    return x.reshape(wanted)


def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    start, end = start_dim % x.dim(), end_dim % x.dim()
    shape = _shape_of(x)
    return x.reshape([*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


def _unflatten(x: Tensor, dim: int, sizes: Any) -> Tensor:
    dim, parts = dim % x.dim(), list(sizes)
    known = math.prod(n for n in parts if not (isinstance(n, int) and n == -1))
    shape = _shape_of(x)
    parts = [shape[dim] // known if isinstance(n, int) and n == -1 else n for n in parts]
    return x.reshape([*shape[:dim], *parts, *shape[dim + 1 :]])


def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Of rows [N, C]: a norm for each group of channels."""
    parts = x.reshape([*_shape_of(x)[:1], groups, _plain_shape(x)[1] // groups])
    centred = parts - parts.mean(2, keepdim=True)
    normed = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return _flatten(normed, 1) * weight + bias


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if builtins.len(shape) != 1:
        raise NotImplementedError(f"rms_norm over {builtins.len(shape)} dimensions has no ONNX form")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed if weight is None else normed * weight


def _diag_embed(x: Tensor) -> Tensor:
    return x[..., None] * torch.eye(_plain_shape(x)[-1])


class Highest(NamedTuple):
    """Running maxima; where they are is not told."""

    values: Tensor


def _cummax(x: Tensor, dim: int) -> Highest:
    """Along the last dimension, by comparison with all before."""
    later = torch.ones(_plain_shape(x)[-1], _plain_shape(x)[-1], dtype=torch.bool).triu(1)
    return Highest(x[..., None, :].masked_fill(later, -torch.inf).amax(-1))


BITWISE = {f"__{form}__": form for form in ("and", "or", "xor")}


def _of_bits(name: str, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator on bits of numbers; on marks torch knows it."""

    def apply(x: Tensor, other: Any) -> Tensor:
        if x.dtype == torch.bool:
            return operator(x, other)
        return bits(x, other if isinstance(other, Tensor) else torch.tensor(other), name)

    return apply


_shape: Any = Tensor.shape.__get__  # type: ignore[attr-defined]


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    torch.argsort: _argsort,
    Tensor.argsort: _argsort,
    Tensor.index_copy: _index_copy,
    Tensor.index_fill: _index_fill,
    torch.repeat_interleave: _repeat_interleave,
    torch.unique: _unique,
    torch.unique_consecutive: _unique_consecutive,
    torch.bincount: _bincount,
    torch.diag_embed: _diag_embed,
    Tensor.cummax: _cummax,
    torch.nn.functional.group_norm: _group_norm,
    torch.nn.functional.rms_norm: _rms_norm,
    Tensor.reshape: _reshape,
    Tensor.view: _reshape,
    Tensor.flatten: _flatten,
    torch.flatten: _flatten,
    Tensor.unflatten: _unflatten,
    Tensor.__rshift__: lambda x, places: torch.div(x, 1 << places, rounding_mode="floor"),
    Tensor.__lshift__: lambda x, places: x * (1 << places),
    **{getattr(Tensor, form): _of_bits(name, getattr(Tensor, form)) for form, name in BITWISE.items()},
    Tensor.mT.__get__: lambda x: x.transpose(-1, -2),  # type: ignore[attr-defined]
    Tensor.numel: lambda x: math.prod(_shape_of(x)),
    _shape: lambda x: _shape_of(x),
}


CONVERSIONS = {getattr(Tensor, name) for name in ("__bool__", "__int__", "__index__", "__float__", "__len__", "item")}


class Exchanged(TorchFunctionMode):
    """Functions of torch take other forms, see `FUNCTIONS`, and numbers of Python are not made from tensors.

    Writes in place are errors where a graph would not have them, see `writes`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes = Writes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVERSIONS:
            return _converted(func, *args)
        kwargs = kwargs or {}
        self.writes.check(func, args, kwargs)
        found = FUNCTIONS.get(func, func)(*args, **kwargs)
        self.writes.made(func, args, found)
        return found


def _converted(func: Any, *args: Any) -> Any:
    """A number of Python; raises RecordingError where it comes from a tensor of the graph."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", TracerWarning)
        value = func(*args)
    if reasons := [str(w.message) for w in seen if issubclass(w.category, TracerWarning)]:
        raise RecordingError(reasons[0].partition(" might cause")[0] + ", on whose value something depends")
    return value


def _plain_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of a tensor in numbers that are not recorded."""
    with warnings.catch_warnings(), torch._C.DisableTorchFunction():
        warnings.simplefilter("ignore", TracerWarning)
        return torch.Size(int(n) for n in x.shape)


class Shape(tuple[Any, ...]):
    """Recorded numbers of rows and plain widths, equal to other shapes where the plain numbers are."""

    plain: tuple[int, ...]

    def __new__(cls, values: Any, plain: tuple[int, ...]) -> Shape:
        made = super().__new__(cls, values)
        made.plain = plain
        return made

    def __getitem__(self, place: Any) -> Any:
        values = super().__getitem__(place)
        return Shape(values, self.plain[place]) if isinstance(place, slice) else values

    def __eq__(self, other: object) -> bool:
        return self.plain == (other.plain if isinstance(other, Shape) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def _shape_of(x: Tensor) -> Any:
    """The shape of a tensor: a recorded number of rows, or groups, and plain numbers after it.

    What depends on points comes first everywhere, and from the map on, what begins with 1, the number of frames, does
    not depend on them. (A shape that breaks this rule is an error when the graph runs on other points, since reshapes
    do not fit then.)
    """
    plain = _plain_shape(x)
    fixed = not plain or isinstance(x, nn.Parameter) or (_on_map.get() and plain[0] == 1)
    return plain if fixed else Shape((_shape(x)[0], *plain[1:]), plain)


def _size(x: Any) -> Any:
    """`len`, of tensors and voxels as a recorded size."""
    if isinstance(x, SparseVoxels):
        return x.coords.shape[0]
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)


def _plain_size(x: Any) -> Any:
    """`len`, of tensors in numbers that are not recorded."""
    return _plain_shape(x)[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)


def _to_map(voxels: SparseVoxels) -> Tensor:
    """`flatten_to_bev`, from which on what begins with 1 is of one frame."""
    found = flatten_to_bev(voxels)
    _on_map.set(True)
    return found


@contextmanager
def recording(model: nn.Module) -> Iterator[None]:
    """What is called inside is recorded as it must be; see the module.

    Raises RecordingError where a choice depends on values.
    """
    names = {type(part).__module__ for part in model.modules()}
    modules = [m for name, m in sys.modules.items() if name in names or name.startswith(ROOMS)]
    with ExitStack() as stack:
        stack.enter_context(operations_as(OPERATIONS))
        for module in modules:
            if not module.__name__.startswith("torch"):
                stack.enter_context(patch.object(module, "len", _size, create=True))
        stack.enter_context(patch.object(ttt, "inner_steps", mixers.inner_steps))
        for name, form in SPARSE_CONVOLUTIONS.items():
            stack.enter_context(patch.object(sparse_conv, name, form))
        stack.enter_context(patch.object(sites, "best_sites", sparse.best_sites))
        stack.enter_context(patch.object(packed_linear, "takes_packed_linear", lambda *_: False))
        stack.callback(_on_map.reset, _on_map.set(False))
        stack.enter_context(patch.object(detector, "flatten_to_bev", _to_map))
        for name in [name for name in sys.modules if name.startswith(structures.__name__)]:
            stack.enter_context(patch.object(sys.modules[name], "len", _plain_size, create=True))  # which checks use
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        stack.enter_context(Exchanged())
        yield
