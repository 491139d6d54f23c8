"""Generative transposed convolution, unions and pruning, against dense tensors and loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from pcdet_ext.models.layers.sparse_up import GenerativeTransposedConv3d, prune, scores_below, union
from pcdet_ext.structures import SparseVoxels


def voxels(seed: int, channels: int = 3, grid: tuple[int, int, int] = (3, 4, 5), share: float = 0.4) -> SparseVoxels:
    """Some cells of two frames in no order, with float64 features."""
    generator = torch.Generator().manual_seed(seed)
    cells = (torch.rand(2, *grid, generator=generator) < share).nonzero().int()
    cells = cells[torch.randperm(len(cells), generator=generator)]
    features = torch.randn(len(cells), channels, generator=generator, dtype=torch.float64)
    return SparseVoxels(features, cells, grid, 2)


def test_generative_convolution_is_the_dense_transposed_one_on_all_children() -> None:
    layer, given = GenerativeTransposedConv3d(3, 4).double(), voxels(0)
    found = layer(given)
    assert (found.grid, len(found)) == ((6, 8, 10), 8 * len(given))
    kernel = layer.weight.permute(4, 0, 1, 2, 3)  # torch: [in, out, kz, ky, kx]
    expected = torch.nn.functional.conv_transpose3d(given.dense(), kernel, stride=2)
    torch.testing.assert_close(found.dense(), expected)
    occupied = SparseVoxels(torch.ones(len(found), 1), found.coords, found.grid, 2).dense()[:, 0]
    parents = SparseVoxels(torch.ones(len(given), 1), given.coords, given.grid, 2).dense()[:, 0]
    assert torch.equal(occupied, parents.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_generative_convolution_has_right_gradients() -> None:
    given = voxels(1, share=0.1)
    layer = GenerativeTransposedConv3d(3, 2).double()

    def result(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (given.with_features(features),)).features

    features = given.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(result, (features, layer.weight))


def test_a_union_has_the_cells_of_both_and_their_sums() -> None:
    a, b = voxels(2), voxels(3)
    joined = union(a, b)
    torch.testing.assert_close(joined.dense(), a.dense() + b.dense(), rtol=0, atol=0)
    cells = {tuple(cell) for part in (a, b) for cell in part.coords.tolist()}
    assert [tuple(cell) for cell in joined.coords.tolist()] == sorted(cells)
    assert len(cells) < len(a) + len(b)  # some cells are in both
    with pytest.raises(ValueError, match=r"on one grid, got \(3, 4, 5\) and \(6, 8, 10\)"):
        union(a, GenerativeTransposedConv3d(3, 3).double()(b))


def test_pruning_keeps_the_best_cells_of_each_frame_in_their_order() -> None:
    given = voxels(4)
    scores = torch.randint(0, 4, (len(given),), generator=torch.Generator().manual_seed(0)).float()  # with ties
    found = prune(given, scores, 7)
    expected = []
    for frame in range(2):
        mine = [i for i, cell in enumerate(given.coords.tolist()) if cell[0] == frame]
        assert len(mine) > 7
        expected += sorted(mine, key=lambda i: (-float(scores[i]), i))[:7]
    expected.sort()
    assert torch.equal(found.coords, given.coords[expected])
    assert torch.equal(found.features, given.features[expected])
    assert prune(given, scores, len(given)) is given
    nothing = SparseVoxels(torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int32), (3, 4, 5), 2)
    assert prune(nothing, torch.zeros(0), 7) is nothing


def interpolated(scores: dict[tuple[int, ...], float], cell: list[int]) -> float:
    """Trilinear interpolation between the lower corners of coarse cells, absent ones being 0."""
    total = 0.0
    for corner in itertools.product(*({c // 2, c // 2 + 1} for c in cell[1:])):
        weight = 1.0
        for c, at in zip(cell[1:], corner, strict=True):
            weight *= 1 - abs(c - 2 * at) / 2
        total += weight * scores.get((cell[0], *corner), 0.0)
    return total


def test_scores_of_coarse_cells_are_those_of_the_parent_or_interpolated() -> None:
    coarse, fine = voxels(5, channels=1), voxels(6, grid=(6, 8, 10))
    scores = {tuple(cell): float(v) for cell, v in zip(coarse.coords.tolist(), coarse.features, strict=True)}
    parents = scores_below(coarse, fine, "parent")
    between = scores_below(coarse, fine, "interpolated")
    for i, cell in enumerate(fine.coords.tolist()):
        assert float(parents[i]) == scores.get((cell[0], *(c // 2 for c in cell[1:])), -float("inf"))
        assert float(between[i]) == pytest.approx(interpolated(scores, cell))
    assert parents.isinf().any()
