"""Poolings against loops over clouds and rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcdet_ext.models.pooling import (
    POOLINGS,
    GeM,
    PyramidAttentionPooling,
    PyramidGeM,
    RowFeatures,
    TokenAttentionPooling,
)
from pcdet_ext.models.pooling.attention import QueryPooling
from pcdet_ext.structures import SparseVoxels


def rows(counts: tuple[int, ...], channels: int, seed: int = 0, shuffled: bool = True) -> RowFeatures:
    generator = torch.Generator().manual_seed(seed)
    frame = torch.repeat_interleave(torch.tensor(counts))
    if shuffled:
        frame = frame[torch.randperm(len(frame), generator=generator)]
    x = torch.randn(len(frame), channels, generator=generator, dtype=torch.float64)
    return RowFeatures(x, frame, len(counts))


def test_rows_are_padded_in_their_order() -> None:
    given = rows((3, 0, 5), 2)
    padded, valid = given.padded()
    assert padded.shape == (3, 5, 2)
    for frame in range(3):
        mine = given.features[given.batch_index == frame]
        assert torch.equal(padded[frame][valid[frame]], mine)
        assert not padded[frame][~valid[frame]].any()


def test_rows_of_voxels() -> None:
    voxels = SparseVoxels(torch.ones(2, 3), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1]]).int(), (1, 1, 2), 2)
    assert RowFeatures.of_voxels(voxels).batch_index.tolist() == [1, 0]


def test_generalized_mean() -> None:
    given, pooling = rows((4, 0, 7), 6), GeM([6, 8]).double()
    found = pooling([given])
    for frame in (0, 2):
        mine = given.features[given.batch_index == frame].clamp(min=1e-6)
        torch.testing.assert_close(found[frame], (mine**3).mean(0) ** (1 / 3))
    assert not found[1].any()


@pytest.mark.parametrize("gated", [False, True])
def test_pyramid_of_generalized_means(gated: bool) -> None:
    torch.manual_seed(0)
    levels = [rows((4, 5), 6), rows((2, 3), 4, 1)]
    pooling = PyramidGeM([6, 4], 8, gated).double().eval()
    torch.nn.init.uniform_(pooling.power, 1, 4)
    parts = []
    for level, power in zip(levels, pooling.power, strict=True):
        means = [(level.features[level.batch_index == b].clamp(min=1e-6) ** power).mean(0) for b in range(2)]
        parts.append(torch.stack(means) ** (1 / power))
    expected = torch.cat(parts, 1) @ pooling.linear.weight.T / (1 + 1e-5) ** 0.5
    if gated:
        expected = expected * torch.sigmoid(expected @ pooling.gate.weight / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(pooling(levels), expected)


def slow_queries(pool: QueryPooling, given: RowFeatures) -> Tensor:
    out = torch.zeros(given.batch_size, *pool.queries.shape, dtype=torch.float64)
    for frame in range(given.batch_size):
        mine = given.features[given.batch_index == frame]
        if len(mine):
            for k, query in enumerate(pool.queries):
                out[frame, k] = ((mine @ query) / mine.shape[1] ** 0.5).softmax(0) @ mine
    return out


def test_queries_pool_each_cloud() -> None:
    torch.manual_seed(0)
    given, pool = rows((4, 0, 9), 6), QueryPooling(6, 5).double()
    torch.testing.assert_close(pool(given), slow_queries(pool, given))


def test_gradients_of_query_pooling() -> None:
    torch.manual_seed(0)
    given, pool = rows((3, 0, 2), 4), QueryPooling(4, 3).double()
    x = given.features.requires_grad_()
    torch.autograd.gradcheck(lambda x: pool(RowFeatures(x, given.batch_index, 3)), (x,))


def test_pyramid_attention_mixes_tokens_then_channels() -> None:
    torch.manual_seed(0)
    levels = [rows((4, 5), 6), rows((2, 3), 4, 1)]
    pooling = PyramidAttentionPooling([6, 4], [5, 3], 10).double()
    assert isinstance(pooling.project[0], torch.nn.Identity)
    parts = zip(levels, pooling.pool, pooling.project, strict=True)
    tokens = torch.cat([project(slow_queries(pool, level)) for level, pool, project in parts], 1)
    for layer in pooling.descriptor.mix:
        inner = torch.nn.functional.gelu(layer.in_proj(layer.norm(tokens)))
        tokens = tokens + layer.out_proj(inner)
    over, across = pooling.descriptor.over_tokens, pooling.descriptor.over_channels
    tokens = torch.einsum("bkc,ok->boc", tokens, over.weight) + over.bias[:, None]
    expected = (tokens @ across.weight.T + across.bias).reshape(2, 10)
    torch.testing.assert_close(pooling(levels), expected)


def test_token_attention_pools_all_depths_together() -> None:
    torch.manual_seed(0)
    levels = [rows((4, 5), 6), rows((2, 0), 6, 1)]
    joined = RowFeatures(torch.cat([r.features for r in levels]), torch.cat([r.batch_index for r in levels]), 2)
    pooling = TokenAttentionPooling([6, 6], 8, 6, "gem").double()
    tokens, mix = slow_queries(pooling.pool, joined), pooling.descriptor.mix
    tokens = tokens + mix.out_proj(torch.nn.functional.gelu(mix.in_proj(mix.norm(tokens))))
    torch.testing.assert_close(pooling(levels), (tokens.clamp(min=1e-6) ** 3).mean(1) ** (1 / 3))
    assert TokenAttentionPooling([6, 6], 8, 10).double()(levels).shape == (2, 10)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "GeM"},
        {"name": "PyramidGeM", "gated": True},
        {"name": "PyramidAttentionPooling", "num_queries": [8, 8]},
        {"name": "TokenAttentionPooling"},
    ],
)
def test_every_parameter_learns(node: dict) -> None:
    pooling = POOLINGS.build(node, channels=[8, 8])
    levels = [rows((4, 5, 2), 8), rows((2, 3, 1), 8, 1)]
    levels = [RowFeatures(r.features.float(), r.batch_index, 3) for r in levels]
    found = pooling(levels)
    assert found.shape == (3, pooling.out_channels)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pooling.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PyramidAttentionPooling([8, 8], [8]), "one number for each of 2 depths"),
        (lambda: PyramidAttentionPooling([8, 8], [8, 4], 16), "a quarter of the 12 queries, 3, must divide"),
        (lambda: PyramidAttentionPooling([8], [3], 16), "a quarter of the 3 queries, 0"),
        (lambda: PyramidAttentionPooling([8], [0], 16), "num_queries must be at least 1"),
        (lambda: TokenAttentionPooling([8], 8, 16, "gem"), "the 8 channels of the tokens, not 16"),
        (lambda: TokenAttentionPooling([8], 8, 16, "mean"), "aggregator must be mixer or gem"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
