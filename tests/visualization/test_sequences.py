"""Pictures of orders, partitions and mixers: what they show is what the objects do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcdet_ext.grouping.orders import Hilbert, Window, WindowX
from pcdet_ext.grouping.partitions import EqualGroups, RotatedSets, Windows
from pcdet_ext.mixers import SoftmaxAttention
from pcdet_ext.structures import SparseVoxels
from pcdet_ext.visualization.sequences import draw_influence, draw_orders, draw_plans, influence, pillars_of


@pytest.fixture(scope="module")
def voxels() -> SparseVoxels:
    points = np.random.default_rng(0).uniform([-2, -10, -3], [18, 10, 1], (300, 3)).astype(np.float32)
    return pillars_of(points, (0, -8, 16, 8), 1.0)


def test_pillars_are_the_cells_that_hold_points() -> None:
    points = np.array([[0.2, -7.9, 5.0], [0.9, -7.1, -2.0], [15.9, 7.9, 0.0], [16.0, 0.0, 0.0]], np.float32)
    found = pillars_of(points, (0, -8, 16, 8), 1.0)
    assert found.coords.tolist() == [[0, 0, 0, 0], [0, 0, 15, 15]]
    assert found.grid == (1, 16, 16)


def test_influence_is_the_norm_of_the_gradient() -> None:
    matrix = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = influence(lambda x: matrix @ x, 3, 4, 0)
    assert found[[0, 2]].tolist() == [0, 0]
    assert found[1] > 0
    assert influence(lambda x: matrix @ x, 3, 4, 2)[0] == pytest.approx(float(found[1]) / 2)


def test_attention_reaches_its_group_and_nothing_else(voxels: SparseVoxels) -> None:
    plan = RotatedSets(8)(voxels, WindowX((1, 8, 8)))
    mixer = SoftmaxAttention(channels=16, num_heads=2)
    row = 17
    reached = influence(lambda x: mixer(x, plan), len(voxels), 16, row) > 0
    group = plan.index[int(plan.group_of_voxel()[row])]
    assert reached.nonzero().flatten().tolist() == sorted(set(group.tolist()))


def test_groups_have_one_colour_each(voxels: SparseVoxels, tmp_path: Path) -> None:
    plans = {"windows": Windows()(voxels, Window((1, 8, 8)))}
    draw_plans(voxels, plans, tmp_path / "plans.png", dpi=200)
    image = np.asarray(Image.open(tmp_path / "plans.png").convert("RGB"))
    drawn = image[(image.max(2) - image.min(2)) > 12]  # neither background nor text
    _, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    assert (counts > 1000).sum() == plans["windows"].num_groups == 4


def test_curves_and_influence_are_drawn(voxels: SparseVoxels, tmp_path: Path) -> None:
    draw_orders(voxels, {"h": Hilbert(), "x": WindowX((1, 8, 8))}, tmp_path / "orders.png", dpi=40)
    groups = EqualGroups(16)(voxels, Hilbert())
    mixer = SoftmaxAttention(channels=16, num_heads=2)
    draw_influence(voxels, {"a": lambda x: mixer(x, groups)}, 3, tmp_path / "influence.png", 16, dpi=40)
    for name, width in (("orders", 288), ("influence", 144)):
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        assert image.shape[1] == width
        assert ((image.max(2) - image.min(2)) > 60).sum() > 50  # bright colours are on it


def test_the_figures_of_the_page_are_there(root: Path) -> None:
    page = (root / "docs" / "idea.md").read_text(encoding="utf-8")
    for name in ("orders", "partitions", "mixers"):
        assert f"figures/{name}.png" in page
        assert 5_000 < (root / "docs" / "figures" / f"{name}.png").stat().st_size < 300_000
