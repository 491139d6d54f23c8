"""Sparse convolutions over gathered neighbours, as they run on CUDA: the results and gradients of those in pairs."""

from __future__ import annotations

import copy

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from torch import Tensor

from pcdet_ext.models.layers import gathered_conv
from pcdet_ext.models.layers.gathered_conv import convolve_gathered, strided_gather, submanifold_gather
from pcdet_ext.models.layers.sparse_conv import SparseConv3d, SubMConv3d, submanifold_table
from pcdet_ext.structures import SparseVoxels

LAYERS = {
    "submanifold": SubMConv3d(5, 6, 3, bias=True, engine="native"),
    "submanifold 1x3x5": SubMConv3d(5, 6, (1, 3, 5), engine="native"),
    "stride 2": SparseConv3d(5, 6, 3, 2, 1, bias=True, engine="native"),
    "stride beyond the kernel": SparseConv3d(5, 6, (1, 1, 2), (3, 1, 3), engine="native"),
    "padding": SparseConv3d(5, 6, (3, 1, 1), (2, 1, 1), (0, 0, 2), engine="native"),
}


def some_voxels(rows: int, dtype: torch.dtype = torch.float32) -> SparseVoxels:
    """Voxels in a random order of two frames, and a third without any."""
    generator = torch.Generator().manual_seed(rows)
    grid = (5, 6, 7)
    cell = torch.randperm(2 * 5 * 6 * 7, generator=generator)[:rows]
    coords = torch.stack(torch.unravel_index(cell, (2, *grid)), 1).int()
    return SparseVoxels(torch.randn(rows, 5, generator=generator, dtype=dtype), coords, grid, 3)


def run(layer: SparseConv3d, voxels: SparseVoxels) -> tuple[SparseVoxels, list[Tensor]]:
    """The output, and the gradients of a sum of it that depends on the cell."""
    features = voxels.features.detach().requires_grad_()
    out = layer(SparseVoxels(features, voxels.coords, voxels.grid, voxels.batch_size))
    weights = torch.arange(6, device=features.device) + (
        out.coords.float() @ out.coords.new_tensor([[9.0], [3], [2], [1]]).float()
    )
    return out, list(torch.autograd.grad((out.features * weights.sin()).sum(), [features, *layer.parameters()]))


@pytest.mark.parametrize("rows", [0, 1, 130])
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_what_pairs_compute(
    accelerator: Accelerator, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered_conv, "MOST_BYTES", 27 * 5 * 4 * 50)  # several pieces
    voxels = some_voxels(rows)
    expected, expected_grads = run(LAYERS[name], voxels)
    layer = copy.deepcopy(LAYERS[name]).to(accelerator.device)
    there = SparseVoxels(
        voxels.features.to(accelerator.device), voxels.coords.to(accelerator.device), voxels.grid, voxels.batch_size
    )
    with accelerator:
        found, grads = run(layer, there)
    assert found.grid == expected.grid
    assert found.coords.cpu().equal(expected.coords)
    torch.testing.assert_close(found.features.cpu(), expected.features, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("strided", [False, True])
def test_gradients_are_right_in_float64(strided: bool) -> None:
    voxels = some_voxels(30, torch.float64)
    if strided:
        table = strided_gather(voxels, (3, 3, 3), (2, 2, 2), (1, 1, 1), (3, 3, 4))
    else:
        table = submanifold_gather(voxels, submanifold_table(voxels, (3, 3, 3)))
    weight = torch.randn(2, 3, 3, 3, 5, dtype=torch.float64).requires_grad_()
    inputs = voxels.features.requires_grad_(), weight
    assert torch.autograd.gradcheck(lambda f, w: convolve_gathered(f, w, table), inputs)


def test_tables_are_made_once_for_one_geometry(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = submanifold_gather
    monkeypatch.setattr(
        "pcdet_ext.models.layers.sparse_conv.submanifold_gather", lambda *a: made.append(a) or original(*a)
    )
    voxels = some_voxels(40)
    there = SparseVoxels(
        voxels.features.to(accelerator.device), voxels.coords.to(accelerator.device), voxels.grid, voxels.batch_size
    )
    layers = [SubMConv3d(5, 5, 3, engine="native").to(accelerator.device) for _ in range(2)]
    with accelerator:
        layers[1](layers[0](there))
    assert len(made) == 1
