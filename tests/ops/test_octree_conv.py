"""Depth-wise convolution over neighbour tables against a loop, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops import octree_depthwise_conv
from pcdet_ext.ops.octree_conv import (
    _convolve,
    _readers,
    _weight_grad,
    _weight_grad_reference,
    octree_depthwise_conv_reference,
)


def random_case(seed: int, rows: int, outputs: int, kernel: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    """Features, weights, and a table in which no row stands twice in a column."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, channels, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(kernel, channels, generator=generator, dtype=torch.float64).to(dtype)
    columns = []
    for _ in range(kernel):
        column = torch.cat([torch.randperm(rows, generator=generator), torch.full((outputs,), -1)])
        columns.append(column[torch.randperm(len(column), generator=generator)][:outputs])
    table = torch.stack(columns, 1) if kernel else torch.empty(outputs, 0, dtype=torch.int64)
    return [features, weights, table]


def by_hand(features: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    out = torch.zeros(len(table), features.shape[1], dtype=features.dtype)
    for m, row in enumerate(table.tolist()):
        for k, neighbour in enumerate(row):
            if neighbour >= 0:
                out[m] = out[m] + weights[k] * features[neighbour]
    return out


SIZES = st.tuples(st.integers(0, 7), st.integers(0, 7), st.sampled_from([1, 3, 8]), st.sampled_from([1, 5, 16]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SIZES)
def test_values_and_gradients_equal_a_loop(seed: int, sizes: tuple[int, int, int, int]) -> None:
    features, weights, table = random_case(seed, *sizes, torch.float64)
    inputs = [features.requires_grad_(), weights.requires_grad_()]
    ours, plain = octree_depthwise_conv(*inputs, table), by_hand(*inputs, table)
    torch.testing.assert_close(ours, plain)
    probe = torch.rand_like(plain)
    mine = torch.autograd.grad((ours * probe).sum(), inputs)
    theirs = (
        torch.autograd.grad((plain * probe).sum(), inputs, allow_unused=True, materialize_grads=True)
        if (plain.requires_grad)
        else [torch.zeros_like(t) for t in inputs]
    )
    for ours_grad, plain_grad in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours_grad, plain_grad)


def test_gradients_of_first_and_second_order() -> None:
    features, weights, table = random_case(1, 5, 6, 3, 2, torch.float64)
    inputs = (features.requires_grad_(), weights.requires_grad_())
    torch.autograd.gradcheck(lambda x, w: octree_depthwise_conv(x, w, table), inputs)
    torch.autograd.gradgradcheck(lambda x, w: octree_depthwise_conv(x, w, table), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    features, weights, table = random_case(2, 40, 40, 27, 8, dtype)
    exact = octree_depthwise_conv_reference(features.double(), weights.double(), table)
    torch.testing.assert_close(octree_depthwise_conv(features, weights, table), exact.to(dtype))


def test_many_rows_on_any_number_of_threads() -> None:
    features, weights, table = random_case(3, 9000, 9000, 27, 12, torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((_convolve(features, weights, table), _weight_grad(features, features, table)))
    torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(results[0][0], octree_depthwise_conv_reference(features, weights, table))
    wide = _weight_grad_reference(features.double(), features.double(), table)
    torch.testing.assert_close(results[0][1].double(), wide, rtol=1e-4, atol=1e-3)


def test_registered_operators_hold_their_promises() -> None:
    features, weights, table = random_case(4, 6, 6, 3, 4, torch.float32)
    torch.library.opcheck(_convolve, (features.requires_grad_(), weights.requires_grad_(), table))
    torch.library.opcheck(_readers, (table, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3)}, "features must be floating point"),
        ({"weights": torch.zeros(2, 2)}, r"weights must be \[K, C\], here \[1, 2\]"),
        ({"neighbours": torch.zeros(3, 1, dtype=torch.int32)}, "neighbours must be int64"),
        ({"neighbours": torch.full((3, 1), 3)}, "rows of features below 3"),
        ({"neighbours": torch.full((3, 1), -2)}, "or -1"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    arguments = {"features": torch.zeros(3, 2), "weights": torch.zeros(1, 2), "neighbours": torch.zeros(3, 1).long()}
    with pytest.raises(ValueError, match=message):
        octree_depthwise_conv(**(arguments | change))


def test_a_row_that_is_read_twice_through_a_column_has_no_gradient() -> None:
    features = torch.zeros(3, 2, requires_grad=True)
    out = octree_depthwise_conv(features, torch.zeros(1, 2), torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="twice"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cuda_equals_cpu(accelerator: Accelerator, dtype: torch.dtype) -> None:
    case = random_case(5, 1500, 1500, 27, 20, dtype)
    wide = [case[0].float(), case[0].float(), case[2]]
    expected, grad = octree_depthwise_conv(*case), _weight_grad(*wide)
    on_gpu, wide = ([t.to(accelerator.device) for t in tensors] for tensors in (case, wide))
    with accelerator:
        torch.testing.assert_close(octree_depthwise_conv(*on_gpu).cpu(), expected)
        torch.testing.assert_close(_weight_grad(*wide).cpu(), grad, rtol=1e-4, atol=1e-3)
