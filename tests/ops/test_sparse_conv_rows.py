"""The sparse convolution of inference against its definition; `models/test_sparse_conv` has dense ones beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.sparse_conv import reads_of_pairs, sparse_conv, sparse_conv_reference, takes_sparse_conv


def task(seed: int, inputs: int, outputs: int, cells: int, depth: int, channels: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features, bias = torch.randn(inputs, depth, generator=generator), torch.randn(channels, generator=generator)
    weight = torch.randn(channels, cells, depth, generator=generator)
    reads = torch.randint(-1, inputs, (outputs, cells), generator=generator, dtype=torch.int32)
    return features, weight, reads, bias


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 40),
    st.sampled_from([0, 1, 7, 8, 9, 100, 1030]),  # more than a block, too
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([16, 32, 48]),
)
def test_equals_the_definition(seed: int, inputs: int, outputs: int, cells: int, depth: int, channels: int) -> None:
    features, weight, reads, bias = task(seed, inputs, outputs, cells, depth, channels)
    assert takes_sparse_conv(features, weight)
    wide = [t.double() for t in (features, weight)]
    expected = sparse_conv_reference(*wide, reads, bias.double()).float()
    torch.testing.assert_close(sparse_conv(features, weight, reads, bias), expected, atol=1e-4, rtol=1e-5)
    without = sparse_conv(features, weight, reads)
    torch.testing.assert_close(without, expected - bias, atol=1e-4, rtol=1e-5)
    addend = torch.randn(outputs, channels, generator=torch.Generator().manual_seed(seed))
    found = sparse_conv(features, weight, reads, bias, addend, relu=True)
    torch.testing.assert_close(found, (expected + addend).clamp(min=0), atol=1e-4, rtol=1e-5)


def test_what_has_no_kernel_takes_the_definition() -> None:
    features, weight, reads, bias = task(0, 9, 20, 3, 5, 6)
    assert not takes_sparse_conv(features, weight)  # six channels
    expected = sum(
        torch.where((reads[:, k] >= 0)[:, None], features[reads[:, k].long()], 0) @ weight[:, k].T for k in range(3)
    )
    torch.testing.assert_close(sparse_conv(features, weight, reads, bias), expected + bias)
    assert not takes_sparse_conv(features, torch.randn(16, 3, 5, requires_grad=True))


@pytest.mark.parametrize("row", [-2, -9, 9, 1000])
@pytest.mark.parametrize("channels", [16, 6])  # by the kernel and by the definition
def test_a_row_that_is_not_there_is_an_error(row: int, channels: int) -> None:
    features, weight, reads, _ = task(0, 9, 20, 3, 5, channels)
    assert takes_sparse_conv(features, weight) == (channels == 16)
    reads[7, 1] = row
    with pytest.raises(ValueError, match=rf"reads must be rows of the 9 features, .*, got {row}"):
        sparse_conv(features, weight, reads)
    with pytest.raises(ValueError, match="reads must be rows"):
        sparse_conv_reference(features, weight, reads)


def test_without_features_every_read_is_none() -> None:
    features, weight, reads, bias = (
        torch.empty(0, 5),
        torch.randn(16, 3, 5),
        torch.full((4, 3), -1).int(),
        torch.ones(16),
    )
    for way in (sparse_conv, sparse_conv_reference):
        assert torch.equal(way(features, weight, reads, bias), torch.ones(4, 16))
        with pytest.raises(ValueError, match="reads must be rows of the 0 features"):
            way(features, weight, reads + 1, bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4, 6)}, "must have the same C"),
        ({"features": torch.zeros(4, 5, dtype=torch.float64)}, "must be of one floating type"),
        ({"reads": torch.zeros(4, 3, dtype=torch.int64)}, r"reads must be int32 \[M, 3\]"),
        ({"bias": torch.zeros(15)}, r"bias must be torch.float32 \[16\]"),
        ({"addend": torch.zeros(4, 15)}, r"addend must be torch.float32 \[4, 16\]"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    names = ("features", "weight", "reads", "bias")
    arguments = dict(zip(names, task(0, 4, 4, 3, 5, 16), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        sparse_conv(**arguments)


def test_reads_of_pairs() -> None:
    pairs = [(torch.tensor([3, 1]), torch.tensor([0, 2])), (torch.tensor([]).long(), torch.tensor([]).long())]
    assert reads_of_pairs(pairs, 3).tolist() == [[3, -1], [-1, -1], [1, -1]]
