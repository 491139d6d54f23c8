"""Integer mappings of the published backbones: orders, groups, and the tables that go with them."""

from __future__ import annotations

import torch

from pcdet_ext.conformance.golden import Case, Values, every_setting, runs
from pcdet_ext.grouping.orders import WindowX, WindowY
from pcdet_ext.grouping.partitions import equal_groups
from pcdet_ext.mixers.position import sinusoidal_embedding
from pcdet_ext.structures import Groups, SparseVoxels


def _voxels(coords: torch.Tensor, grid: tuple[int, int, int], batch_size: int) -> SparseVoxels:
    return SparseVoxels(coords.new_zeros(len(coords), 0, dtype=torch.float32), coords, grid, batch_size)


def _tables(groups: Groups, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The published pair of tables: sequence place of each slot, and slot of each sequence place."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return {"out.flat2win": place[groups.index.flatten()], "out.win2flat": groups.inverse[order]}


@runs("flatformer", "mapping")
@every_setting
def flatformer_mapping(case: Case, _grads: bool) -> Values:
    """Four orders, the group tables, and the position embeddings."""
    config = case.config
    (wx, wy, _), (nx, ny, nz) = config["window_shape"], config["sparse_shape"]
    voxels = _voxels(case.tensor("in.coords"), (nz, ny, nx), config["batch_size"])
    window, shift = (nz, wy, wx), (0, wy // 2, wx // 2)
    values = {}
    for name, order in (("x", WindowX), ("y", WindowY)):
        values[f"out.{name}"] = order(window, path="snake")(voxels).order
        values[f"out.{name}_shift"] = order(window, shift, "snake")(voxels).order
    ordering = WindowX(window, path="snake")(voxels)
    values |= _tables(equal_groups(ordering, config["group_size"]), ordering.order)
    rows = voxels.coords[case.tensor("in.pe_rows")]
    for i, pe in enumerate(config["pe"]):
        grid = (nx, ny) if pe["normalize_pos"] else None
        embedding = sinusoidal_embedding(rows[:, [3, 2]], pe["feat_dim"], pe["pos_temperature"], grid)
        values[f"out.pe{i}"] = embedding
    return values


@runs("lion", "window_mapping")
@every_setting
def lion_mapping(case: Case, _grads: bool) -> Values:
    """Both orders and the group tables."""
    config = case.config
    window = tuple(reversed(config["window_shape"]))
    shift = tuple(w // 2 for w in window) if config["shift"] else (0, 0, 0)
    voxels = _voxels(case.tensor("in.voxel_coords"), tuple(config["sparse_shape_zyx"]), config["batch_size"])
    ordering = WindowX(window, shift)(voxels)
    values = {"out.x": ordering.order, "out.y": WindowY(window, shift)(voxels).order}
    return values | _tables(equal_groups(ordering, config["group_size"]), ordering.order)
