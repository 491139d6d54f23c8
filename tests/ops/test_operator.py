"""Operators are called past PyTorch's dispatcher where nobody would notice, and through it everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from every_op import EXTENT, SIZE, rand, table, whole
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_ext.ops import dynamic_voxelize, segment_reduce, serialize, voxelize
from pcdet_ext.ops._operator import watched

POINTS, BATCH = rand(40, 4) * 3, whole(2, 40)
VALUES, INDEX = rand(12, 3), whole(4, 12)
COORDS = table(0, 1, 2, 3, 1, 0, 0, 5, dtype=torch.int32).view(2, 4)
CALLS: dict[str, Callable[[], object]] = {
    "voxelize": lambda: voxelize(POINTS, EXTENT, SIZE, 3, 9),
    "dynamic_voxelize": lambda: dynamic_voxelize(POINTS, BATCH, EXTENT, SIZE),
    "segment_reduce": lambda: segment_reduce(VALUES, INDEX, 4, "mean"),
    "window_keys": lambda: serialize(COORDS, (8, 16, 32), "window_x", window=(8, 5, 5)),
    "curve_encode": lambda: serialize(COORDS, (8, 16, 32), "hilbert"),
}


class Seen(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    """The functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_modes_and_profilers_see_operators(name: str) -> None:
    with Seen() as dispatched:
        CALLS[name]()
    assert f"pcdet_ext::{name}" in dispatched.names
    with SeenFunctions() as functions:
        CALLS[name]()
    assert f"pcdet_ext.{name}.default" in functions.names
    with torch.profiler.profile() as profile:
        CALLS[name]()
    assert f"pcdet_ext::{name}" in {event.name for event in profile.events()}


def test_operators_stay_in_traced_graphs() -> None:
    def reduce(values: Tensor) -> Tensor:
        return segment_reduce(values, INDEX, 4, "mean")

    assert "pcdet_ext.segment_reduce" in make_fx(reduce)(VALUES).code
    assert "pcdet_ext::segment_reduce" in str(torch.jit.trace(reduce, VALUES, check_trace=False).graph)


def test_gradients_go_through_operators() -> None:
    values = VALUES.clone().requires_grad_()
    assert segment_reduce(values, INDEX, 4, "mean").grad_fn is not None
    with torch.no_grad():
        assert not segment_reduce(values, INDEX, 4, "mean").requires_grad


def test_what_is_watched() -> None:
    class Kind(Tensor):
        pass

    assert not watched((VALUES, 3, (1, 2)))
    assert watched((VALUES.as_subclass(Kind),))
    assert watched((3, VALUES.to("meta")))
    assert watched((VALUES.clone().requires_grad_(),))
    assert watched((torch._neg_view(VALUES),))
    with forward_ad.dual_level():
        assert watched((VALUES,))
    inside: list[bool] = []
    torch.func.vmap(lambda row: (inside.append(watched((row,))), row)[1])(VALUES)
    assert inside == [True]


def test_the_same_results_on_either_way() -> None:
    for call in CALLS.values():
        plain = call()
        with Seen():
            seen = call()
        for one, other in zip(
            [plain] if isinstance(plain, Tensor) else plain, [seen] if isinstance(seen, Tensor) else seen, strict=True
        ):
            assert torch.equal(one, other)


def test_negative_views_have_their_own_values() -> None:
    negative = torch._neg_view(VALUES)
    assert torch.equal(segment_reduce(negative, INDEX, 4, "sum"), segment_reduce(-VALUES, INDEX, 4, "sum"))
