"""Linear layers with what follows them in one pass, against the definition in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.packed_linear import WIDE_ENOUGH, linear_panels, packed_linear, takes_packed_linear


def task(seed: int, rows: tuple[int, ...], depth: int, channels: int) -> tuple[Tensor, ...]:
    """x, weight, bias and addend."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (*rows, depth), (channels, depth), (channels,), (*rows, channels)
    x, weight, bias, addend = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias, addend


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 12), max_size=2).map(tuple) | st.tuples(st.integers(60, 200)),
    st.integers(1, 40),
    st.sampled_from([16, 32, 48, 64]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_definition(
    seed: int, rows: tuple[int, ...], depth: int, channels: int, biased: bool, adds: bool, relu: bool
) -> None:
    x, weight, bias, addend = task(seed, rows, depth, channels)
    wanted = x.double() @ weight.double().t()
    wanted = wanted + bias if biased else wanted
    wanted = wanted + addend if adds else wanted
    wanted = wanted.clamp(min=0) if relu else wanted
    found = packed_linear(
        x, weight, bias if biased else None, linear_panels(weight), addend if adds else None, relu=relu
    )
    torch.testing.assert_close(found, wanted.float(), atol=2e-5, rtol=1e-5)


def test_rows_that_do_not_lie_side_by_side() -> None:
    x, weight, bias, addend = task(0, (70,), 24, 32)
    options = {"weight": weight, "bias": bias, "panels": linear_panels(weight)}
    apart = packed_linear(x.t().contiguous().t(), addend=addend.t().contiguous().t(), **options)
    assert torch.equal(apart, packed_linear(x, addend=addend, **options))


def test_rows_do_not_depend_on_others() -> None:
    x, weight, bias, _ = task(1, (131,), 40, 32)
    panels = linear_panels(weight)
    alone = torch.cat([packed_linear(row[None], weight, bias, panels) for row in x])
    assert torch.equal(packed_linear(x, weight, bias, panels), alone)


def test_nan_stays() -> None:
    x, weight, bias, _ = task(0, (9,), 4, 16)
    x[3, 2] = torch.nan
    found = packed_linear(x, weight, bias, linear_panels(weight), relu=True)
    assert found.isnan().all(1).tolist() == [row == 3 for row in range(9)]


def test_what_the_kernel_takes() -> None:
    x, weight, _, _ = task(0, (9,), 4, 16)
    assert takes_packed_linear(x, weight) == (torch.backends.cpu.get_cpu_capability() in WIDE_ENOUGH)
    assert not takes_packed_linear(x, weight[:8])
    assert not takes_packed_linear(x.double(), weight.double())
    assert not takes_packed_linear(x, weight.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_linear(x, weight, None, linear_panels(weight)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9, 5)}, "must have the same C"),
        ({"bias": torch.zeros(15)}, r"bias must be torch.float32 \[16\]"),
        ({"bias": torch.zeros(16, dtype=torch.float64)}, "got torch.float64"),
        ({"panels": torch.zeros(1, 63)}, r"panels must be torch.float32 \[1, 64\]"),
        ({"panels": torch.zeros(1, 64, dtype=torch.float64)}, "panels must be torch.float32"),
        ({"bias": torch.zeros(16, device="meta")}, "must be on one device"),
        ({"weight": torch.zeros(16, 4, dtype=torch.float64)}, "of one type"),
        ({"addend": torch.zeros(9, 4)}, r"addend must be torch.float32 \[9, 16\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    x, weight, bias, _ = task(0, (9,), 4, 16)
    with pytest.raises(ValueError, match=message):
        packed_linear(**({"x": x, "weight": weight, "bias": bias, "panels": linear_panels(weight)} | change))
    with pytest.raises(ValueError, match="multiple of 16"):
        linear_panels(weight[:15])
