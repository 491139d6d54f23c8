"""Segment reductions against loops over rows, with gradients, ties, and every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops import segment_reduce, segment_softmax
from pcdet_ext.ops.segment import (
    KINDS,
    _segment_reduce,
    _segment_spread,
    segment_reduce_reference,
    segment_spread_reference,
)

SEEDS = st.integers(0, 2**31 - 1)


def random_rows(seed: int, rows: int, columns: int, segments: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Small whole numbers, so that there are ties and sums are exact in any order, and an index with gaps."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3, 4, (rows, columns), generator=generator).to(dtype)
    return values, torch.randint(-2, max(segments, 1), (rows,), generator=generator)


def reduced_by_hand(values: Tensor, index: Tensor, segments: int, kind: str) -> tuple[Tensor, Tensor]:
    """The result, and the row that each maximum or minimum comes from, one row at a time."""
    out = torch.zeros(segments, values.shape[1], dtype=values.dtype)
    chosen = torch.full(out.shape, -1, dtype=torch.int32)
    for segment in range(segments):
        rows = [i for i, s in enumerate(index.tolist()) if s == segment]
        for column in range(values.shape[1]):
            if not rows:
                continue
            held = [values[i, column].item() for i in rows]
            if kind in ("sum", "mean"):
                out[segment, column] = sum(held) / (len(held) if kind == "mean" else 1)
                continue
            best = max(held) if kind == "max" else min(held)
            out[segment, column] = best
            chosen[segment, column] = rows[held.index(best)]
    return out, chosen


@settings(max_examples=40, deadline=None)
@given(
    SEEDS, st.integers(0, 60), st.integers(0, 9), st.integers(1, 12), st.sampled_from([torch.float32, torch.float64])
)
def test_every_reduction_equals_the_definition(
    seed: int, rows: int, columns: int, segments: int, dtype: torch.dtype
) -> None:
    values, index = random_rows(seed, rows, columns, segments, dtype)
    for kind, number in KINDS.items():
        expected, chosen = reduced_by_hand(values, index, segments, kind)
        native = _segment_reduce(values, index, segments, number)
        reference = segment_reduce_reference(values, index, segments, number)
        for out, rows_chosen, count in (native, reference):
            torch.testing.assert_close(out, expected)
            assert count.tolist() == [index.tolist().count(s) for s in range(segments)]
            if number >= KINDS["max"]:
                assert torch.equal(rows_chosen, chosen)
        grad = torch.arange(segments * columns, dtype=dtype).view(segments, columns)
        spread = _segment_spread(grad, index, native[1], native[2], number)
        assert torch.equal(spread, segment_spread_reference(grad, index, reference[1], reference[2], number))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 7])
def test_gradients(kind: str, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(12, columns, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 3, 3, -1, 0, 5, 3, 1, 1, 0, -1, 5])
    assert torch.autograd.gradcheck(lambda v: segment_reduce(v, index, 6, kind), values)
    assert torch.autograd.gradgradcheck(lambda v: segment_reduce(v, index, 6, kind) ** 3, values)


@pytest.mark.parametrize("kind", ["max", "min"])
def test_the_first_row_of_a_tie_gets_the_gradient(kind: str) -> None:
    values = torch.tensor([[2.0], [1.0], [1.0], [2.0]], requires_grad=True)
    segment_reduce(values, torch.zeros(4, dtype=torch.int64), 1, kind).sum().backward()
    assert values.grad.flatten().tolist() == ([1, 0, 0, 0] if kind == "max" else [0, 1, 0, 0])


@pytest.mark.parametrize("kind", ["max", "min"])
def test_nan_and_infinity(kind: str) -> None:
    values = torch.tensor([[1.0], [math.nan], [5.0], [-math.inf], [-math.inf], [math.inf]])
    index = torch.tensor([0, 0, 0, 1, 1, 2])
    for out, chosen, _ in (
        _segment_reduce(values, index, 4, KINDS[kind]),
        segment_reduce_reference(values, index, 4, KINDS[kind]),
    ):
        assert math.isnan(out[0])
        assert out[1:].flatten().tolist() == [-math.inf, math.inf, 0.0]
        assert chosen.flatten().tolist() == [1, 3, 5, -1]


def test_sums_do_not_depend_on_the_threads() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(30_000, 16, generator=generator)
    index = torch.randint(700, (30_000,), generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([segment_reduce(values, index, 700, kind) for kind in KINDS])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    torch.testing.assert_close(results[0][0], torch.zeros(700, 16).index_add(0, index, values), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    values = torch.full((4096, 2), 0.1, dtype=dtype, requires_grad=True)
    out = segment_reduce(values, torch.zeros(4096, dtype=torch.int64), 1)
    assert out.dtype == dtype
    assert torch.equal(out, values.detach().double().sum(0, keepdim=True).to(dtype))
    out.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_inputs(kind: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    values = torch.zeros(0, 3, requires_grad=True)
    out = segment_reduce(values, none, 2, kind)
    assert torch.equal(out, torch.zeros(2, 3))
    out.sum().backward()
    assert values.grad.shape == (0, 3)
    assert segment_reduce(torch.zeros(0, 3), none, 0, kind).shape == (0, 3)
    assert segment_reduce(torch.ones(4, 0), torch.zeros(4, dtype=torch.int64), 2, kind).shape == (2, 0)
    assert torch.equal(segment_reduce(torch.ones(2, 1), torch.tensor([-1, -5]), 1, kind), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(3)}, r"values must be floating point \[P, C\]"),
        ({"values": torch.zeros(3, 2, dtype=torch.int64)}, "values must be floating point"),
        ({"index": torch.zeros(2, dtype=torch.int64)}, r"index must be int64 \[3\]"),
        ({"index": torch.zeros(3)}, "index must be int64"),
        ({"index": torch.tensor([0, 4, 1])}, "index must be below num_segments 4, got 4"),
        ({"num_segments": -1}, "num_segments must not be negative"),
        ({"reduce": "median"}, "reduce must be one of sum, mean, max, min, got 'median'"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"values": torch.zeros(3, 2), "index": torch.zeros(3, dtype=torch.int64), "num_segments": 4}
    with pytest.raises(ValueError, match=message):
        segment_reduce(**(arguments | change))


@pytest.mark.parametrize("kind", KINDS.values())
def test_ops_are_well_registered(kind: int) -> None:
    values, index = random_rows(0, 20, 3, 5, torch.float32)
    torch.library.opcheck(_segment_reduce, (values.requires_grad_(), index, 5, kind))
    _, chosen, count = _segment_reduce(values.detach(), index, 5, kind)
    torch.library.opcheck(_segment_spread, (torch.randn(5, 3, requires_grad=True), index, chosen, count, kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_equals_cpu_and_repeats(accelerator: Accelerator, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    values = torch.randn(10_000, 7, generator=generator, dtype=dtype)
    index = torch.randint(-1, 300, (10_000,), generator=generator)
    weights = torch.randn(300, 7, generator=generator, dtype=dtype)

    def run(device: str) -> tuple[Tensor, Tensor]:
        rows = values.to(device).requires_grad_()
        out = segment_reduce(rows, index.to(device), 300, kind)
        return out.detach().cpu(), torch.autograd.grad(out, rows, weights.to(device))[0].cpu()

    expected = run("cpu")
    with accelerator:
        for _ in range(2):  # rows are added in order on both, so that even sums are equal
            assert all(map(torch.equal, run(accelerator.device), expected))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 20), st.integers(1, 3), st.integers(1, 5))
def test_softmax_is_that_of_each_segment(seed: int, rows: int, columns: int, segments: int) -> None:
    values, index = random_rows(seed, rows, columns, segments, torch.float64)
    values = (values * 300).requires_grad_()  # far beyond what exp can take
    expected = torch.zeros_like(values)
    for segment in range(segments):
        mine = index == segment
        expected = expected.index_add(0, mine.nonzero().squeeze(1), values[mine].softmax(0))
    ours = segment_softmax(values, index, segments)
    torch.testing.assert_close(ours, expected)
    probe = torch.rand_like(ours)
    grads = [torch.autograd.grad((out * probe).sum(), values)[0] for out in (ours, expected)]
    torch.testing.assert_close(*grads)


def test_softmax_of_nothing_and_of_minus_infinity_is_zero() -> None:
    values = torch.tensor([[-math.inf], [-math.inf], [1.0], [2.0]])
    out = segment_softmax(values, torch.tensor([0, 0, -1, 2]), 3)
    assert out.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]
