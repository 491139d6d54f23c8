"""What Python hands to kernels is what their C functions take, on CUDA too, where no device is needed to see it."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import every_op
import pytest
import torch
from torch import Tensor
from torch.library import CustomOpDef
from torch.overrides import TorchFunctionMode

from pcdet_ext.ops import _native

MODULES = (
    "boxes",
    "causal_conv1d",
    "group_attention",
    "linear_attention",
    "neighbours",
    "octree",
    "octree_conv",
    "octree_tokens",
)
boxes, causal_conv1d, group_attention, linear_attention, neighbours, octree, octree_conv, octree_tokens = (
    import_module(f"pcdet_ext.ops.{name}") for name in MODULES
)
rotated_sets, segment, selective_scan, serialize, voxelize, wkv = (
    import_module(f"pcdet_ext.ops.{name}")
    for name in ("rotated_sets", "segment", "selective_scan", "serialize", "voxelize", "wkv")
)
SOURCES = Path(__file__).parents[2] / "ops"
POINTER, I32, I64, F64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_double


def c_type(parameter: str) -> type:
    """The ctypes type of one parameter of a C function."""
    if "*" in parameter or "cudaStream_t" in parameter:
        return POINTER
    (name,) = [t for t in ("int64_t", "int32_t", "double", "int") if re.match(rf"(const )?{t}\b", parameter)]
    return {"int64_t": I64, "double": F64, "int": I32, "int32_t": I32}[name]


@cache
def signatures() -> dict[str, list[type]]:
    """The parameters of every exported kernel, read from the sources."""
    found = {}
    for path in [*SOURCES.rglob("*_cpu.cpp"), *SOURCES.rglob("*_cuda.cu")]:
        text = re.sub(r"\s*\\\n", "\n", path.read_text())
        for name, parameters in re.findall(r"PCDET_API int (pcdet_[\w#]+)\(([^)]*)\)", text):
            types = [c_type(p.strip()) for p in parameters.split(",")]
            for dtype in ("float32", "float64"):
                found[re.sub(r"##\w+##", dtype, name)] = types
    return found


def test_every_exported_function_is_found() -> None:
    names = signatures()
    assert len(names) > 50
    for device in ("cpu", "cuda"):
        library = _native.library_path(device)
        if library.exists():
            exported = set(re.findall(rb"pcdet_[a-z0-9_]+_(?:cpu|cuda)(?=\0)", library.read_bytes()))
            assert exported <= {name.encode() for name in names}


class Kernel:
    """Stands for a kernel on CUDA: does nothing, keeps its name and types."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def __call__(self, *arguments: object) -> int:
        assert self.argtypes == signatures()[self.name], self.name
        assert len(arguments) == len(self.argtypes)
        for argument, kind in zip(arguments, self.argtypes, strict=True):
            kind.from_param(argument)
        self.calls += 1
        return 0


class Library(dict):
    """Stands for a native library."""

    def __missing__(self, name: str) -> Kernel:
        self[name] = Kernel(name)
        return self[name]


class OnCuda(Tensor):
    """A tensor that says it is on CUDA, and lies in the memory of the CPU."""

    is_cuda = True
    device = torch.device("cuda", 0)


class Pretend(TorchFunctionMode):
    """Makes tensors `OnCuda` where they were to be on CUDA."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            return function(*args, **kwargs | {"device": "cpu"}).as_subclass(OnCuda)
        return function(*args, **kwargs)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A CUDA library of kernels that do nothing."""
    library = Library()
    monkeypatch.setattr(_native, "library", lambda kind: library)
    _native._function.cache_clear()
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    with Pretend():
        yield library
    _native._function.cache_clear()


def body(operator: CustomOpDef) -> Callable[..., Any]:
    """The function behind a custom operator."""
    return operator._init_fn


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


I = torch.int64  # noqa: E741
REDUCED_TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_box_kernels_on_cuda(launched: Library, dtype: torch.dtype) -> None:
    a, b, name = zeros(5, 7, dtype=dtype), zeros(3, 7, dtype=dtype), str(dtype)[6:]
    body(boxes._iou_matrix)(a, b, 0)
    body(boxes._iou_paired)(a, a, 1)
    body(boxes._points_in_boxes)(zeros(9, 4, dtype=dtype), b, 0.1)
    assert len(body(boxes._nms)(a, 0.5, 0, 5)) == 0
    kernels = ("iou_matrix", "iou_paired", "points_in_boxes", "nms")
    assert set(launched) == {f"pcdet_{kernel}_{name}_cuda" for kernel in kernels}


@REDUCED_TYPES
@pytest.mark.parametrize("full", [True, False])
def test_selective_scan_on_cuda(launched: Library, dtype: torch.dtype, full: bool) -> None:
    u, delta, z = (zeros(2, 70, 5, dtype=dtype).mT for _ in range(3))
    A, B, C, D = zeros(5, 16), *(zeros(2, 16, 70, dtype=dtype) for _ in range(2)), zeros(5)
    inputs = (u, delta, A, B, C, *((D, z, D) if full else (None, None, None)))
    _, states = body(selective_scan._scan)(*inputs, True, False, True)
    grads = body(selective_scan._backward)(*inputs, True, False, u, states)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert tensor is None or (grad.shape, grad.dtype) == (tensor.shape, tensor.dtype)
    assert set(launched) == {f"pcdet_selective_scan_{d}_cuda" for d in ("forward", "backward")}


@REDUCED_TYPES
@pytest.mark.parametrize("full", [True, False])
def test_wkv_on_cuda(launched: Library, dtype: torch.dtype, full: bool) -> None:
    r, k, v, w = (zeros(2, 70, 3, 16, dtype=dtype) for _ in range(4))
    inputs = (r, k, v, w, zeros(3, 16) if full else None)
    _, states = body(wkv._scan)(*inputs, True, True)
    grads = body(wkv._backward)(*inputs, True, r, states)
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs if t is not None]
    assert set(launched) == {f"pcdet_wkv_{d}_cuda" for d in ("forward", "backward")}


@REDUCED_TYPES
@pytest.mark.parametrize("full", [True, False])
def test_causal_conv1d_on_cuda(launched: Library, dtype: torch.dtype, full: bool) -> None:
    inputs = (zeros(2, 70, 5, dtype=dtype).mT, zeros(5, 4), zeros(5) if full else None)
    body(causal_conv1d._convolve)(*inputs, True, True)
    grads = body(causal_conv1d._backward)(*inputs, True, True, inputs[0])
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs if t is not None]
    assert set(launched) == {f"pcdet_causal_conv1d_{d}_cuda" for d in ("forward", "backward")}


@REDUCED_TYPES
def test_linear_attention_on_cuda(launched: Library, dtype: torch.dtype) -> None:
    q, offsets = zeros(0, 2, 16, dtype=dtype), zeros(4, dtype=I)
    body(linear_attention._attend)(q, q, q, offsets, 1e-6)
    body(linear_attention._backward)(q, q, q, offsets, 1e-6, q)
    assert set(launched) == {f"pcdet_linear_attention_{d}_cuda" for d in ("forward", "backward")}


@REDUCED_TYPES
@pytest.mark.parametrize("full", [True, False])
def test_group_attention_on_cuda(
    launched: Library, dtype: torch.dtype, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_attention, "segment_reduce", lambda values, index, n: values[:n])
    index, cells, table = zeros(3, 4, dtype=I), zeros(9, 3, dtype=torch.int32), zeros(15, 2)
    options = (zeros(3, 4, dtype=torch.bool), index, cells, table) if full else (None,) * 4
    inputs = (zeros(9, 12, dtype=dtype), index, zeros(9, dtype=I), 2, *options)
    out = body(group_attention._attend)(*inputs)
    grads = body(group_attention._backward)(*inputs, out)
    assert [(g.shape, g.dtype) for g in grads] == [((9, 12), dtype), ((15 * full, 2), torch.float32)]
    kernels = ("group_attention", "group_attention_backward")
    assert set(launched) == {f"pcdet_{kernel}_cuda" for kernel in kernels}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_octree_conv_and_segments_on_cuda(launched: Library, dtype: torch.dtype) -> None:
    features, table, index, name = zeros(9, 4, dtype=dtype), zeros(700, 27, dtype=I), zeros(9, dtype=I), str(dtype)[6:]
    body(octree_conv._convolve)(features, zeros(27, 4, dtype=dtype), table)
    body(octree_conv._weight_grad)(zeros(700, 4, dtype=dtype), features, table)
    for kind in range(4):
        _, chosen, count = body(segment._segment_reduce)(features, index, 3, kind)
        body(segment._segment_spread)(zeros(3, 4, dtype=dtype), index, chosen, count, kind)
    kernels = ("octree_conv_forward", "octree_conv_weight_grad", "segment_reduce", "segment_spread")
    assert set(launched) == {f"pcdet_{kernel}_{name}_cuda" for kernel in kernels}


def test_kernels_of_coordinates_on_cuda(launched: Library) -> None:
    coords, grid = zeros(9, 4, dtype=torch.int32), voxelize._grid([0.0, 0, 0, 3, 3, 3], [1.0, 1, 1])
    serialize._make_keys(
        "curve_encode", coords, (4, 4, 4), _native.int32_array((4, 4, 4)), _native.Int32(0), _native.Int32(2)
    )
    serialize._make_keys("window_keys", coords, (4, 4, 4), serialize._WindowOrder())
    rotated_sets._sets_on_cuda(coords, (4, 4, 4), 1, [1] * 12, 8, 8, 3)
    for frames in (None, zeros(9, dtype=I)):
        cells = voxelize._cells(zeros(9, 5), frames, grid)
    voxelize._coords(cells, grid)
    octree._neighbours_by_kernel(zeros(5, 27, dtype=I), zeros(5, dtype=torch.int32), zeros(2, dtype=I))
    kernels = ("curve_encode", "window_keys", "rotated_windows", "rotated_fill", "point_cells", "cell_coords")
    octree._leaves_on_cuda(zeros(9, 3), torch.tensor([4, 5]), 3, False)
    neighbours.neighbour_table(zeros(9, dtype=I), zeros(3, dtype=I))
    kernels += ("octree_neighbours", "octree_keys", "neighbours")
    octree_tokens._encode_on_cuda(zeros(9, dtype=I), 3, 2)
    kernels += ("octree_token_starts", "octree_tokens")
    assert set(launched) == {f"pcdet_{kernel}_cuda" for kernel in kernels}


@pytest.mark.skipif(_native.library("cpu") is None, reason="no native library")
def test_declarations_agree_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, function = set(), _native._function

    def checked(name: str, kind: str, dtype: torch.dtype | None, types: tuple[type, ...]) -> tuple[str, Any]:
        full_name, kernel = function(name, kind, dtype, types)
        assert kernel.argtypes == signatures()[full_name]
        launches.add(full_name)
        return full_name, kernel

    monkeypatch.setattr(_native, "_function", checked)
    every_op.results(every_op.calls())
    expected = {n.removesuffix("_cpu") for n in signatures() if n.endswith("_cpu") and "float64" not in n}
    assert {n.removesuffix("_cpu") for n in launches} == expected - {"pcdet_detection_match"}
