"""Pooling by Fourier transforms: what shifts and turns leave alone, and sums of waves by their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcdet_ext.data.normalize import CloudNormalization
from pcdet_ext.models.networks.hotformerloc import HOTFormerLoc
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.models.pooling import FourierPooling, RowFeatures
from pcdet_ext.models.pooling.fourier import root, seen_from_above, window
from pcdet_ext.structures import SparseVoxels

SIDE = 32


def rows(cells: Tensor, features: Tensor, grid: tuple[int, int, int] = (1, SIDE, SIDE)) -> RowFeatures:
    """Features [N, C] of cells [N, 2] (y, x) of one cloud."""
    coords = torch.cat([torch.zeros(len(cells), 2), cells], 1).int()
    return RowFeatures.of_voxels(SparseVoxels(features, coords, grid, 1))


def some_cells(seed: int, count: int = 12) -> Tensor:
    """Cells of the middle of a map, each once."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(100)[:count]
    return torch.from_numpy(np.stack([chosen // 10 + 11, chosen % 10 + 11], 1)).float()


def pooling() -> FourierPooling:
    torch.manual_seed(0)
    return FourierPooling([2], 16, rings=6, directions=24, orders=5).eval()


def test_the_spectrum_is_the_sum_of_waves() -> None:
    model, cells, features = pooling(), some_cells(0), torch.rand(12, 2)
    maps = seen_from_above(rows(cells, features))
    taper = window(maps)[cells[:, 0].long(), cells[:, 1].long()]
    # On the axes the positions are whole frequencies, so that nothing is read between them.
    sampled = model._polar(root(torch.fft.fftshift(torch.fft.fft2(maps * window(maps)).abs(), dim=(2, 3))))
    radius = 4  # rings 0 to 5 reach 0.25 cycles per cell, ring 2 therefore 0.125: 4 periods over 32 cells
    for direction, (y, x) in {0: (0, radius), 12: (radius, 0)}.items():
        wave = torch.exp(-2j * math.pi * (y * cells[:, 0] + x * cells[:, 1]) / SIDE)
        expected = (wave[:, None] * (taper[:, None] * features)).sum(0).abs()
        torch.testing.assert_close(sampled[0, :, 2, direction], expected.sqrt(), rtol=1e-4, atol=1e-4)


def test_turning_a_map_by_a_quarter_changes_nothing() -> None:
    model, cells, features = pooling(), some_cells(1), torch.rand(12, 2)
    turned = torch.stack([cells[:, 1], SIDE - 1 - cells[:, 0]], 1)
    one, other = (model.spectra(seen_from_above(rows(c, features))) for c in (cells, turned))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_shifted_map_is_far_more_alike_than_another_one() -> None:
    model = pooling()
    features = torch.rand(12, 2)

    def spectrum(cells: Tensor) -> Tensor:
        return model.spectra(seen_from_above(rows(cells, features))).flatten()

    own, shifted, other = spectrum(some_cells(2)), spectrum(some_cells(2) + 2), spectrum(some_cells(3))
    assert (own - shifted).norm() < 0.3 * (own - other).norm()


def test_clouds_of_a_batch_do_not_mix_and_heights_are_summed() -> None:
    coords = torch.tensor([[0, 0, 3, 4], [0, 1, 3, 4], [1, 0, 5, 6]]).int()
    voxels = SparseVoxels(torch.tensor([[1.0], [2.0], [4.0]]), coords, (2, 8, 10), 3)
    maps = seen_from_above(RowFeatures.of_voxels(voxels))
    assert maps.shape == (3, 1, 8, 10)
    assert maps[0, 0, 3, 4] == 3
    assert maps[1, 0, 5, 6] == 4
    assert maps.sum() == 7


def test_gradients_are_right_and_finite_where_nothing_is() -> None:
    model = FourierPooling([1], 3, rings=2, directions=8, orders=2).double()
    values = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.spectra, (values,))
    empty = torch.zeros(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    model.spectra(empty).sum().backward()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def test_an_octree_has_no_cells_to_pool() -> None:
    with pytest.raises(ValueError, match="pools voxels with their cells, which an octree's nodes do not have"):
        HOTFormerLoc(OctreeInput(4), nn.Identity(), pooling(), CloudNormalization())  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="pools one depth, got the channels of 2"):
        FourierPooling([4, 4])
    for wrong in ({"rings": 0}, {"orders": 49}, {"orders": 0}, {"cutoff": 0.6}, {"cutoff": 0.0}):
        with pytest.raises(ValueError, match="rings must be at least 1, orders between 1 and half of directions"):
            FourierPooling([4], **wrong)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"out_channels must be at least 1, got {size}"):
            FourierPooling([4], out_channels=size)
    with pytest.raises(ValueError, match="pools voxels, which have cells in a grid"):
        pooling()([RowFeatures(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 1)])
