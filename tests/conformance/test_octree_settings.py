"""Settings of octree cases that no published case uses, against what they must come to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pcdet_ext.conformance.cases.octree import octree_build as build_case
from pcdet_ext.conformance.cases.octree import octree_ops
from pcdet_ext.conformance.cases.octree_models import octformer_block
from pcdet_ext.conformance.golden import Case
from pcdet_ext.grouping.octree import build_octree
from pcdet_ext.models.layers.octree import octree_interpolate

DEPTH = 3


@pytest.mark.parametrize("nempty", [True, False])
def test_published_cells_of_points_below_the_cube_are_cut_off_towards_zero(nempty: bool) -> None:
    """(x + 1) · 2^(depth - 1) loses its fraction towards zero and keeps its lowest bits, axis by axis."""
    side = torch.arange(2**DEPTH)
    full = (torch.cartesian_prod(side, side, side).float() + 0.5) * 2.0 ** (1 - DEPTH) - 1
    octree = build_octree([full], DEPTH, wrap=True)
    cells = octree.coords(DEPTH, nempty)[:, 1:]
    features = cells.flip(1).float()  # what is found at a point tells the cell (x, y, z)
    points = torch.empty(200, 3).uniform_(-1.6, 1.6, generator=torch.Generator().manual_seed(0))
    points = torch.cat([points, torch.tensor([[-1.01, 0.0, 0.0], [1.0, -1.0, -1.26]])])
    found = octree_interpolate(features, octree, DEPTH, points, torch.zeros(len(points)), nempty, wrap=True)
    scaled = ((points.numpy() + np.float32(1)) * np.float32(2 ** (DEPTH - 1))).tolist()
    expected = [[int(c) & (2**DEPTH - 1) for c in row] for row in scaled]
    assert found.int().tolist() == expected


def octree_case(kind: str, config: dict, arrays: dict) -> Case:
    return Case(None, "octree", kind, config, {}, arrays)  # type: ignore[arg-type]


def test_eight_grouped_convolutions_of_one_channel_are_a_depth_wise_one() -> None:
    generator = torch.Generator().manual_seed(1)
    block = {"dim": 8, "num_heads": 2, "patch_size": 8, "dilation": 1, "mlp_ratio": 2.0, "nempty": True}
    config = {
        "octree": {"depth": 4, "full_depth": 2},
        "depth": 3,
        "block": block,
        "octree_t": {"patch_size": 8, "dilation": 2},
    }
    points = torch.rand(90, 3, generator=generator) * 1.8 - 0.9
    rows = int(build_octree([points], 4, 2).levels[3].occupied.sum())
    shapes = {
        "cpe.conv.weights": (27, 1, 8),
        "cpe.bn.weight": (8,),
        "cpe.bn.bias": (8,),
        "cpe.bn.running_mean": (8,),
        "norm1.weight": (8,),
        "norm1.bias": (8,),
        "attention.qkv.weight": (24, 8),
        "attention.qkv.bias": (24,),
        "attention.rpe.rpe_table": (3 * 13, 2),
        "attention.proj.weight": (8, 8),
        "attention.proj.bias": (8,),
        "norm2.weight": (8,),
        "norm2.bias": (8,),
        "mlp.fc1.weight": (16, 8),
        "mlp.fc1.bias": (16,),
        "mlp.fc2.weight": (8, 16),
        "mlp.fc2.bias": (8,),
    }
    arrays = {f"param.{key}": torch.randn(shape, generator=generator).numpy() for key, shape in shapes.items()}
    arrays["param.cpe.bn.running_var"] = np.ones(8, np.float32)
    arrays["param.cpe.bn.num_batches_tracked"] = np.array(0)
    arrays |= {"in.points_0": points.numpy(), "in.data": torch.randn(rows, 8, generator=generator).numpy()}
    plain = octformer_block(octree_case("octformer_block", config, arrays), False)["out.data"]
    grouped, weights = copy.deepcopy(config), arrays.pop("param.cpe.conv.weights")
    grouped["block"]["use_dwconv"] = False
    for i in range(8):
        arrays[f"param.cpe.conv.convs.{i}.weights"] = weights[:, :, i : i + 1]
    found = octformer_block(octree_case("octformer_block", grouped, arrays), False)["out.data"]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["131", "113", "331", "313"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_of_kernels_that_no_case_has(kernel: str, stride: int) -> None:
    """All cells are occupied, so that a convolution is one of a dense grid with zeros around."""
    generator = torch.Generator().manual_seed(2)
    side = torch.arange(2**DEPTH)
    full = (torch.cartesian_prod(side, side, side).float() + 0.5) * 2.0 ** (1 - DEPTH) - 1
    octree = build_octree([full], DEPTH, wrap=True)
    x, y, z = octree.coords(DEPTH - 1)[:, [3, 2, 1]].T
    size = [int(c) for c in kernel]
    weights = torch.randn(size[0] * size[1] * size[2], 2, 3, generator=generator)
    grid = torch.randn(2, 4, 4, 4, generator=generator)
    dense = torch.nn.functional.conv3d(
        grid[None], weights.reshape(*size, 2, 3).permute(4, 3, 0, 1, 2), padding=[c // 2 for c in size], stride=stride
    )[0]
    name = f"conv{kernel}" + ("_s2" if stride == 2 else "")
    arrays = {
        "in.points_0": full.numpy(),
        "in.data": grid[:, x, y, z].T.numpy(),
        "in.data_coarse": np.zeros((8, 3), np.float32),
        "in.query_pts": np.zeros((0, 4), np.float32),
        f"param.{name}.weights": weights.numpy(),
    }
    config = {"octree": {"depth": DEPTH, "full_depth": 1}, "depth": DEPTH - 1, "nempty": True}
    found = octree_ops(octree_case("octree_ops", config, arrays), False)[f"out.{name}"]
    at = octree.coords(DEPTH - stride)[:, [3, 2, 1]].T
    torch.testing.assert_close(found.detach(), dense[:, at[0], at[1], at[2]].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("section", "key"), [(None, "octant_order"), ("preprocess", "voxel_size"), ("octree", "nempty")]
)
def test_settings_of_octrees_that_nobody_reads_are_named(section: str | None, key: str) -> None:
    config = {
        "preprocess": {"normalize": None, "coordinates": "cartesian"},
        "octree": {"depth": 3, "full_depth": 1},
        "input_features": [],
        "neigh_tables": [],
        "xyzb_depth": 2,
    }
    case = octree_case("octree_build", config, {"in.raw_points_0": np.zeros((1, 3), np.float32)})
    assert build_case(case, False)["out.octree.nnum_nempty"].tolist() == [1, 1, 1, 1]
    (config[section] if section else config)[key] = True
    with pytest.raises(ValueError, match=f"{key}: the setting is not known here"):
        build_case(case, False)
