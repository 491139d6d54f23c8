"""Transposed convolutions whose kernel is as long as their stride, against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv_transpose2d

from pcdet_ext.ops.enlarging_conv import enlarging_conv2d, enlarging_panels, takes_enlarging


def task(seed: int, x: tuple[int, ...], channels: int, factor: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    maps = rand(*x)
    maps[..., x[3] // 2 :] = rand(x[1], 1, 1)  # cells that repeat
    addend = rand(x[0], channels, factor * x[2], factor * x[3])
    return maps, rand(x[1], channels, factor, factor), rand(channels), addend, rand(channels), rand(channels)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 9), st.integers(1, 30)),
    st.sampled_from([16, 32, 48]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_definition(
    seed: int, size: tuple[int, ...], channels: int, factor: int, relu: bool, adds: bool, norms: bool
) -> None:
    x, weight, bias, addend, scale, shift = task(seed, size, channels, factor)
    assert takes_enlarging(x, weight)
    y = conv_transpose2d(x.double(), weight.double(), bias.double(), stride=factor)
    y = y.clamp(min=0) if relu else y
    y = y + addend if adds else y
    y = y * scale[:, None, None] + shift[:, None, None] if norms else y
    options = {"scale": scale, "shift": shift} if norms else {}
    more = addend if adds else None
    found = enlarging_conv2d(x, weight, bias, enlarging_panels(weight), more, relu=relu, **options)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, y.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_of_a_larger_map(dtype: torch.dtype) -> None:
    x, weight, bias = (t.to(dtype) for t in task(0, (2, 5, 4, 6), 16, 2)[:3])
    whole = torch.full((2, 40, 8, 12), 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    panels = enlarging_panels(weight)
    assert enlarging_conv2d(x, weight, bias, panels, out=whole, first=20) is whole
    torch.testing.assert_close(whole[:, 20:36], enlarging_conv2d(x, weight, bias, panels))
    assert (whole[:, :20] == 7).all()
    assert (whole[:, 36:] == 7).all()


def test_nan_stays() -> None:
    x, weight, bias, *_ = task(0, (1, 3, 4, 5), 16, 2)
    x[0, 1, 2, 0] = torch.nan
    found = enlarging_conv2d(x, weight, bias, enlarging_panels(weight), relu=True)
    assert found[0, :, 4:6, :2].isnan().all()
    assert found.isnan().sum() == 16 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 4, 4, 5)}, "must have the same C"),
        ({"bias": torch.zeros(15)}, r"bias must be \[16\]"),
        ({"scale": torch.zeros(16)}, "scale and shift must be given together"),
        ({"addend": torch.zeros(1, 16, 4, 5)}, r"addend must be torch.float32 \[1, 16, 8, 10\]"),
        ({"out": torch.zeros(1, 16, 8, 10)}, "channels-last"),
        ({"out": torch.zeros(1, 16, 8, 10), "first": 1}, "or have more channels"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    x, weight, bias, *_ = task(0, (1, 3, 4, 5), 16, 2)
    with pytest.raises(ValueError, match=message):
        enlarging_conv2d(**({"x": x, "weight": weight, "bias": bias, "panels": enlarging_panels(weight)} | change))
    with pytest.raises(ValueError, match="multiple of 16"):
        enlarging_panels(weight[:, :15])
