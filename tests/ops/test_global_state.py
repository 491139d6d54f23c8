"""Every operation gives the same whatever torch's defaults and modes are, and however its inputs lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import every_op
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_states import STATES, default_dtype

from pcdet_ext import ops
from pcdet_ext.ops import _native

CASES = list(every_op.calls())


class Recorder(TorchDispatchMode):
    """Keeps the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> object:
        self.names.add(function.name().split(".")[0])
        return function(*args, **kwargs or {})


ON_CUDA = {
    "pcdet_ext::group_attention_backward",
    "pcdet_ext::equal_groups",
}  # and nowhere else; see test_every_op_on_cuda.py


def test_no_operation_is_left_out() -> None:
    registered = {
        name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("pcdet_ext::")
    }
    with Recorder() as recorder:
        every_op.results(every_op.calls())
    assert {name for name in recorder.names if name.startswith("pcdet_ext::")} == registered - ON_CUDA
    named = {name.split(",")[0] for name in CASES}
    assert {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)} <= named


@pytest.fixture(params=["native", "reference"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With native kernels, and without."""
    if request.param == "reference":
        monkeypatch.setattr(_native, "library", lambda device: None)
    return request.param


EXPECTED: dict[tuple[str, str, torch.dtype], tuple[Tensor, ...]] = {}


def tensors(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else tuple(made)


def expected(name: str, kernels: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What the same call gives under torch's own defaults."""
    key = (name, kernels, dtype)
    if key not in EXPECTED:
        EXPECTED[key] = tensors(every_op.calls(dtype=dtype)[name]())
    return EXPECTED[key]


def check(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, plain in zip(found, wanted, strict=True):
        assert (ours.device, ours.dtype) == (plain.device, plain.dtype)
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", CASES)
def test_torch_defaults_and_modes_change_nothing(name: str, state: str, kernels: str) -> None:
    wanted = expected(name, kernels, torch.float32)
    call = every_op.calls()[name]
    with STATES[state]():
        found = tensors(call())
    check(found, wanted)


def transposed(tensor: Tensor) -> Tensor:
    """The same values, with the last dimension the slowest in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def spread(tensor: Tensor) -> Tensor:
    """The same values at every third place of a larger array, from the second on."""
    shape = [3 * n + 2 for n in tensor.shape]
    large = torch.full(shape, 77, dtype=tensor.dtype, device=tensor.device)
    places = tuple(slice(1, 3 * n + 1, 3) for n in tensor.shape)
    large[places] = tensor
    return large[places]


@pytest.mark.parametrize("change", [transposed, spread])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_memory_layout_changes_nothing(
    name: str, change: Callable[[Tensor], Tensor], dtype: torch.dtype, kernels: str
) -> None:
    found = tensors(every_op.calls(change, dtype)[name]())
    for ours, plain in zip(found, expected(name, kernels, dtype), strict=True):
        assert ours.dtype == plain.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # products of matrices depend on the layout
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_int32_indices_are_refused_by_name() -> None:
    values, points = every_op.rand(4, 3), every_op.rand(4, 3)
    short = every_op.table(0, 1, 2, 3).int()
    with pytest.raises(ValueError, match="index must be int64"):
        ops.segment_reduce(values, short, 4)
    with pytest.raises(ValueError, match="batch_index must be int64"):
        ops.dynamic_voxelize(points, short, every_op.EXTENT, every_op.SIZE)
    with pytest.raises(ValueError, match="coords must be int32"):
        ops.serialize(every_op.coords().long(), every_op.GRID, "zorder")
    with pytest.raises(ValueError, match="neighbours must be int64"):
        ops.octree_depthwise_conv(values, values[:1], short[:, None])
    with pytest.raises(ValueError, match="offsets must be int64"):
        ops.scattered_linear_attention(*[every_op.rand(3, 1, 4)] * 3, short)
    with pytest.raises(ValueError, match="keys must be int64"):
        ops.deserialize(short, "zorder", 4)


def test_the_reported_case() -> None:
    points = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 3
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        with default_dtype(dtype):
            voxels, _, _ = ops.voxelize(points, [0, 0, 0, 3, 3, 3], [1, 1, 1], 4, 10)
        assert voxels.dtype == torch.float32
        assert voxels[0, 0, 0].item() == pytest.approx(1.4888, abs=1e-4)


def test_numbers_that_no_kernel_could_take_are_refused() -> None:
    coords = every_op.coords()
    with pytest.raises(ValueError, match=r"batch_size must lie in \[0, 32768\], got -1"):
        ops.rotated_sets(coords, every_op.GRID, -1, (8, 5, 5), (0, 2, 2), 7)
    if _native.library("cpu") is not None:
        with pytest.raises(ValueError, match="32 bits"):
            ops.serialize(coords, (8, 16, 1 << 35), "window_x", window=(8, 16, 1 << 35))
