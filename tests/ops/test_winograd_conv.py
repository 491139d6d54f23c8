"""3x3 convolutions by Winograd's filtering against torch's in float64, and what repeats in a map computed once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from pcdet_ext.ops import _native
from pcdet_ext.ops.winograd_conv import (
    computed_tiles,
    takes_winograd,
    winograd_conv2d,
    winograd_conv2d_reference,
    winograd_weight,
)

CHANNELS = st.sampled_from([16, 32, 48])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_is_convolution(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
    assert takes_winograd(x, weight)
    found = winograd_conv2d(x, weight, bias, winograd_weight(weight), addend, relu)
    wide = [None if t is None else t.double() for t in (x, weight, bias, addend)]
    expected = winograd_conv2d_reference(*wide, relu)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 21),
    st.integers(1, 38),
    CHANNELS,
    CHANNELS,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_it_is_a_convolution(frames, height, width, channels, out, with_addend, relu, channels_last, seed) -> None:
    x, weight, bias = rand(frames, channels, height, width, seed=seed), rand(out, channels, 3, 3) / 10, rand(out)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    addend = rand(frames, out, height, width, seed=seed + 1) if with_addend else None
    assert_is_convolution(x, weight, bias, addend, relu)


@pytest.mark.parametrize("period", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 2])
def test_what_repeats_is_computed_once(period: int, frames: int) -> None:
    x = rand(1, 16, period, period).repeat(frames, 1, 76 // period, 60 // period)
    x[-1, :, 30:35, 20:30] = rand(16, 5, 10)
    weight, bias = rand(32, 16, 3, 3) / 10, rand(32)
    addend = rand(frames, 32, 76, 60)
    found = assert_is_convolution(x, weight, bias, None, True)
    assert_is_convolution(x, weight, bias, addend, False)
    border, changed = 2 * (19 + 15) - 4, 2 * 4
    assert computed_tiles(x, winograd_weight(weight)) == frames * border + changed + 1
    far = found[0, :, 44:72, 4:56]  # bits, too, repeat as soon as in the input, for the next convolution
    assert torch.equal(far[:, period:], far[:, :-period])
    assert torch.equal(far[:, :, period:], far[:, :, :-period])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63)), max_size=6), st.integers(33, 64), st.integers(33, 64)
)
def test_any_changes_of_an_empty_map_are_seen(cells: list[tuple[int, int]], height: int, width: int) -> None:
    x, weight, bias = torch.zeros(1, 16, height, width), rand(16, 16, 3, 3) / 10, rand(16)
    for y, column in cells:
        x[0, :, y % height, column % width] = rand(16)
    assert_is_convolution(x, weight, bias, None, False)


def test_a_chain_of_layers_keeps_what_repeats() -> None:
    """An empty map through convolutions, one of stride 2 and one that doubles: each finds again what repeats."""
    x, weight = torch.zeros(1, 16, 96, 96), rand(16, 16, 3, 3) / 10
    points, bias = winograd_weight(weight), rand(16)
    for _ in range(2):
        x = winograd_conv2d(x, weight, bias, points, None, True)
    x = winograd_conv2d(conv2d(x, weight, bias, stride=2, padding=1), weight, bias, points)
    assert computed_tiles(x, points) == 12 * 12 - 8 * 8 + 1  # the border reaches two tiles far by now
    x = conv_transpose2d(x, weight[:, :, :2, :2], bias, stride=2)
    assert computed_tiles(x, points) < 24 * 24 / 2


def test_not_a_number_stays_one_with_relu() -> None:
    x, weight = torch.full((1, 16, 5, 5), torch.nan), rand(16, 16, 3, 3)
    assert winograd_conv2d(x, weight, rand(16), winograd_weight(weight), relu=True).isnan().all()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight, before = rand(1, 32, 50, 70), rand(16, 32, 3, 3), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(winograd_conv2d(x, weight, rand(16), winograd_weight(weight)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_rounding_of_many_channels_is_that_of_few() -> None:
    """Long sums are made of short ones, so that their rounding does not grow with their length."""
    errors = []
    for channels in (64, 512):
        x, weight = rand(1, channels, 24, 24).relu(), rand(16, channels, 3, 3) / channels**0.5
        found = winograd_conv2d(x, weight, torch.zeros(16), winograd_weight(weight))
        errors.append((found - conv2d(x.double(), weight.double(), padding=1)).square().mean().sqrt())
    assert errors[1] < 1.5 * errors[0]  # 1.1; in one sum 2.6


def test_without_a_kernel_it_is_the_plain_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = rand(1, 16, 6, 7), rand(32, 16, 3, 3), rand(32)
    points = winograd_weight(weight)
    wanted = torch.relu(conv2d(x, weight, bias, padding=1))
    narrow = conv2d(x[:, :9], weight[:7, :9], bias[:7], padding=1)
    assert torch.equal(winograd_conv2d(x[:, :9], weight[:7, :9], bias[:7], points), narrow)
    weight.requires_grad_()
    assert winograd_conv2d(x, weight, bias, points, relu=True).requires_grad
    monkeypatch.setattr(_native, "library", lambda _: None)
    with torch.no_grad():
        assert torch.equal(winograd_conv2d(x, weight, bias, points, relu=True), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": rand(1, 32, 6, 7)}, "must have the same C"),
        ({"x": rand(16, 6, 7)}, "must have the same C"),
        ({"bias": rand(3)}, r"bias must be \[16\]"),
        ({"addend": rand(1, 16, 7, 6)}, "addend must be"),
        ({"at_points": rand(36, 1, 32)}, "argument 2 of pcdet_winograd_conv_cpu"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    weight = rand(16, 16, 3, 3)
    given = {"x": rand(1, 16, 6, 7), "weight": weight, "bias": rand(16), "at_points": winograd_weight(weight)}
    with pytest.raises(ValueError, match=message):
        winograd_conv2d(**given | changes)


def test_a_weight_for_which_there_is_no_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[D, C, 3, 3\] with multiples of 16"):
        winograd_weight(rand(16, 8, 3, 3))
