"""Attention inside groups against a loop over queries, in values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.group_attention import _attend, group_attention, group_attention_reference


def random_case(seed: int, rows: int, slots: int, heads: int, dim: int, bound: int) -> tuple[Tensor | int, ...]:
    """Arguments with groups that repeat rows, hide slots and mix owners; float64."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-rows // slots)
    index = torch.randint(rows, (groups * slots,), generator=generator)
    place = torch.randperm(groups * slots, generator=generator)[:rows]
    index[place] = torch.arange(rows)
    valid = torch.rand(groups, slots, generator=generator) < 0.8
    owner = torch.randint(2, (groups, slots), generator=generator)
    cells = torch.randint(-1, 9, (rows, 3), generator=generator, dtype=torch.int32)
    qkv = torch.randn(rows, 3 * heads * dim, generator=generator, dtype=torch.float64)
    table = torch.randn(3 * (2 * bound + 1), heads, generator=generator, dtype=torch.float64)
    return qkv, index.view(groups, slots), place, heads, valid, owner, cells, table


def by_hand(
    qkv: Tensor,
    index: Tensor,
    inverse: Tensor,
    heads: int,
    valid: Tensor | None,
    owner: Tensor | None,
    cells: Tensor,
    table: Tensor | None,
) -> Tensor:
    rows, channels = len(qkv), qkv.shape[1] // 3
    q, k, v = qkv.view(rows, 3, heads, channels // heads).unbind(1)
    out = torch.zeros(rows, heads, channels // heads, dtype=qkv.dtype)
    for row in range(rows):
        group, slot = divmod(int(inverse[row]), index.shape[1])
        seen = [
            int(other)
            for place, other in enumerate(index[group])
            if (valid is None or valid[group, place]) and (owner is None or owner[group, place] == owner[group, slot])
        ]
        if not seen:
            continue
        for head in range(heads):
            logits = k[seen, head] @ q[row, head] / math.sqrt(channels // heads)
            if table is not None:
                side = len(table) // 3
                for at, other in enumerate(seen):
                    if min(int(cells[row].min()), int(cells[other].min())) < 0:
                        continue
                    for axis in range(3):
                        away = int(cells[row, 2 - axis] - cells[other, 2 - axis])
                        away = max(-(side // 2), min(side // 2, away))
                        logits[at] = logits[at] + table[axis * side + side // 2 + away, head]
            out[row, head] = logits.softmax(0) @ v[seen, head]
    return out.flatten(1)


SIZES = st.tuples(
    st.integers(1, 14), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 4, 16]), st.integers(0, 4)
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SIZES, st.booleans(), st.booleans(), st.booleans())
def test_values_equal_a_loop(seed: int, sizes: tuple[int, ...], hidden: bool, owned: bool, biased: bool) -> None:
    qkv, index, inverse, heads, valid, owner, cells, table = random_case(seed, *sizes)
    options = (valid if hidden else None, owner if owned else None, cells, table if biased else None)
    expected = by_hand(qkv, index, inverse, heads, *options)
    torch.testing.assert_close(group_attention(qkv, index, inverse, heads, *options), expected)
    torch.testing.assert_close(group_attention_reference(qkv, index, inverse, heads, *options), expected)
    narrow = [t.float() if t is not None and t.is_floating_point() else t for t in (qkv, *options)]
    ours = group_attention(narrow[0], index, inverse, heads, *narrow[1:])
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)


CUDA_SIZES = [  # rows, slots, heads, channels of a head, bound: some fill no tile, and some of all are many
    (5, 1, 1, 1, 0),
    (40, 37, 2, 16, 5),
    (70, 33, 3, 24, 2),
    (30, 8, 1, 60, 40),
    (20, 9, 2, 100, 1),
    (8, 4, 1, 256, 400),
]


@pytest.mark.parametrize("sizes", CUDA_SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_and_gradients_on_cuda(accelerator: Accelerator, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    qkv, *plan, table = random_case(sum(sizes), *sizes)
    if sizes[0] % 4 == 1:
        plan[-1], plan[-2], plan[-3], table = None, None, None, None  # no options
    qkv = qkv.to(dtype)
    given = [t for t in (qkv, table) if t is not None]
    exact = [t.double().requires_grad_() for t in given]
    expected = by_hand(exact[0], *plan, *exact[1:]) if table is not None else by_hand(exact[0], *plan, None)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = torch.autograd.grad((expected * probe).sum(), exact, materialize_grads=True, allow_unused=True)
    device = accelerator.device
    places = [t.to(device) if isinstance(t, Tensor) else t for t in plan]
    inputs = [given[0].to(device).requires_grad_(), *(t.float().to(device).requires_grad_() for t in given[1:])]
    with accelerator:
        found = group_attention(inputs[0], *places, *(inputs[1:] or [None]))
        grads = torch.autograd.grad(found, inputs, probe.to(device))
    bound = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for ours, theirs in ((found, expected), *zip(grads, wanted, strict=True)):
        scale = max(1.0, float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach(), rtol=bound, atol=bound * scale)


def test_slots_on_cuda_without_rows_are_an_error(accelerator: Accelerator) -> None:
    index, inverse = torch.tensor([[0, 1, 2]]).to(accelerator.device), torch.arange(3).to(accelerator.device)
    qkv = torch.zeros(3, 12).to(accelerator.device)
    for wrong in ((index + 1, inverse), (index, inverse.flip(0)), (index, inverse + 10**9)):
        with accelerator, pytest.raises(ValueError, match=r"index must hold rows of qkv below 3, .* \d slots or rows"):
            group_attention(qkv, *wrong, 2)


def test_nothing_on_cuda(accelerator: Accelerator) -> None:
    empty = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    qkv, *plan = (t.to(accelerator.device) for t in (torch.zeros(0, 12), *empty))
    with accelerator:
        out = group_attention(qkv.requires_grad_(), *plan, 2)
        (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert (out.shape, grad.shape) == ((0, 4), (0, 12))


def test_gradients_are_right() -> None:
    qkv, *plan, table = random_case(3, 7, 4, 2, 2, 2)
    inputs = (qkv.requires_grad_(), table.requires_grad_())
    torch.autograd.gradcheck(lambda x, t: group_attention(x, *plan, t), inputs)


@pytest.mark.parametrize(("slots", "dim"), [(32, 16), (48, 32), (37, 24)])
def test_wide_groups_on_any_number_of_threads(slots: int, dim: int) -> None:
    qkv, *plan, table = random_case(4, 700, slots, 3, dim, 20)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(group_attention(qkv.float(), *plan, table.float()))
    torch.set_num_threads(before)
    assert results[0].equal(results[1])
    expected = group_attention_reference(qkv, *plan, table).float()
    torch.testing.assert_close(results[0], expected, rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow_and_nothing_leaks_between_owners() -> None:
    qkv, index, inverse, heads, _, owner, *_ = random_case(5, 40, 8, 2, 4, 1)
    out = group_attention(qkv * 1e4, index, inverse, heads, None, owner)
    assert bool(out.isfinite().all())
    changed = qkv.clone()
    mine = owner.flatten()[inverse] == 0
    changed[~mine] += 5.0
    repeated = torch.zeros(40, dtype=torch.bool)  # rows that the other owner sees too
    repeated[index[owner == 0]] = True
    changed[repeated & ~mine] = qkv[repeated & ~mine]
    ours = group_attention(qkv, index, inverse, heads, None, owner)
    assert group_attention(changed, index, inverse, heads, None, owner)[mine].equal(ours[mine])


def test_nothing_comes_of_nothing() -> None:
    empty = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert group_attention(torch.zeros(0, 12), *empty, 2).shape == (0, 4)


def test_the_registered_operator_holds_its_promises() -> None:
    qkv, *plan, table = random_case(6, 6, 4, 2, 3, 1)
    torch.library.opcheck(_attend, (qkv.requires_grad_(), *plan, table.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_not_finite_stays_so(part: int, value: float, dtype: torch.dtype) -> None:
    """A broken model must not look healthy: whoever sees a NaN becomes NaN, and nobody else where it is hidden."""
    qkv, index, place, heads, valid, owner, cells, table = random_case(3, 21, 5, 3, 4, 2)
    qkv[2, part * 12 + 5] = value
    wanted = by_hand(qkv, index, place, heads, valid, owner, cells, table)
    found = group_attention(qkv.to(dtype), index, place, heads, valid, owner, cells, table.to(dtype))
    assert not wanted.isfinite().all()
    assert not (wanted.isfinite() < found.isfinite()).any()
    if part < 2:  # a hidden value is multiplied by a weight of 0
        assert torch.equal(wanted.isfinite(), found.isfinite())


QKV, INDEX, INVERSE = torch.zeros(3, 12), torch.tensor([[0, 1, 2]]), torch.arange(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(3, 10)}, r"qkv must be floating point \[N, 3 C\]"),
        ({"qkv": torch.zeros(3, 12).long()}, "qkv must be floating point"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"index": INDEX.int()}, "index must be torch.int64"),
        ({"index": INDEX[:, :0]}, "with slots in each group"),
        ({"index": INDEX + 1}, "index must hold rows of qkv below 3"),
        ({"inverse": INVERSE.flip(0)}, "inverse a slot that holds the row itself, 2 slots or rows do not"),
        ({"inverse": torch.tensor([0, 1, 10**9])}, "inverse a slot that holds the row itself"),
        ({"inverse": INVERSE[:2]}, r"inverse must be torch.int64 \[3\]"),
        ({"valid": INDEX}, "valid must be torch.bool"),
        ({"owner": INDEX.bool()}, "owner must be torch.int64"),
        ({"table": torch.zeros(9, 2)}, "a table needs cells"),
        ({"cells": INDEX, "table": torch.zeros(9, 2)}, "cells must be torch.int32"),
        ({"cells": torch.zeros(3, 3).int(), "table": torch.zeros(8, 2)}, r"table must be .* \[3 \(2 b \+ 1\), 2\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"qkv": QKV, "index": INDEX, "inverse": INVERSE, "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        group_attention(**(arguments | change))
