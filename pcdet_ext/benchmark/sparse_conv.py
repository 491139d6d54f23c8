"""Benchmarks of sparse convolutions: our engine, which needs no library, against spconv's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from pcdet_ext.benchmark.registry import Contest, Workload, all_close, benchmark
from pcdet_ext.benchmark.sequences import frames_of, occupied
from pcdet_ext.benchmark.voxels import KITTI_VOXELS, Extent
from pcdet_ext.models.layers.depthwise_conv import DepthwiseSubMConv3d
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d, submanifold_table
from pcdet_ext.ops.octree_conv import octree_depthwise_conv_reference
from pcdet_ext.structures import SparseVoxels

WAYMO_COARSE: Extent = (-76.8, -76.8, -2.0, 76.8, 76.8, 4.0), (0.32, 0.32, 0.1875)  # ScatterFormer's
CHANNELS = 32


@benchmark("sparse_conv")
def engines(load: Workload) -> Iterator[Contest]:
    """3x3x3 convolutions of 32 channels on SECOND's voxels (KITTI) and on ScatterFormer's (Waymo)."""
    for place, setting in (("kitti", KITTI_VOXELS), ("waymo", WAYMO_COARSE)):
        voxels = _voxels(load, setting)
        for name, make in (
            ("submanifold", lambda engine: SubMConv3d(CHANNELS, CHANNELS, 3, engine=engine)),
            ("stride 2", lambda engine: SparseConv3d(CHANNELS, CHANNELS, 3, 2, 1, engine=engine)),
        ):
            yield _contest(f"{name}, {place}, with tables", voxels, make, _forward)
            yield _contest(f"{name}, {place}, tables kept", voxels, make, _forward_again)
        yield _contest(f"submanifold, {place}, with gradient, tables kept", voxels, _submanifold, _with_gradient)


@benchmark("depthwise_conv")
def depthwise(load: Workload) -> Iterator[Contest]:
    """Depth-wise convolutions of ScatterFormer on Waymo: 32 of 128 channels each, tables kept."""
    voxels = _voxels(load, WAYMO_COARSE)
    for kernel in ((3, 3, 3), (1, 1, 13), (1, 13, 1)):
        conv = DepthwiseSubMConv3d(CHANNELS, kernel).to(load.device).requires_grad_(False)
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=load.generator()))
        table = submanifold_table(voxels, kernel)
        yield Contest(
            "x".join(map(str, kernel)),
            partial(conv, voxels, voxels.features),
            partial(octree_depthwise_conv_reference, voxels.features, conv.weight.flatten(0, 2), table),
            work={"voxels": len(voxels), "neighbours": int((table >= 0).sum())},
            bytes=2 * voxels.features.nbytes + table.nbytes,
            flops=2 * CHANNELS * int((table >= 0).sum()),
            reference_limit=200_000,  # it holds all neighbours at once
        )


def _voxels(load: Workload, setting: Extent) -> SparseVoxels:
    coords, grid = occupied(load, setting)
    features = torch.randn(len(coords), CHANNELS, generator=load.generator()).to(load.device)
    return SparseVoxels(features, coords, grid, frames_of(coords))


def _submanifold(engine: Engine) -> SparseConv3d:
    return SubMConv3d(CHANNELS, CHANNELS, 3, engine=engine)


def _contest(
    name: str,
    voxels: SparseVoxels,
    make: Callable[[Engine], SparseConv3d],
    run: Callable[[SparseConv3d, SparseVoxels], SparseVoxels],
) -> Contest:
    ours = make("native").to(voxels.features.device)
    peers = {}
    if _spconv_runs():
        theirs = make("spconv").to(voxels.features.device)
        theirs.load_state_dict(ours.state_dict())
        own = _fresh(voxels)  # each engine keeps its own tables
        peers = {"spconv": lambda: run(theirs, own)}
    kept = _fresh(voxels)
    return Contest(name, lambda: run(ours, kept), None, peers, _same_cells, {"voxels": len(voxels)})


def _spconv_runs() -> bool:
    """Whether spconv is here and can be loaded (it warns about torch's names)."""
    if find_spec("spconv") is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import spconv.pytorch  # noqa: F401
    except ImportError:
        return False
    return True


def _fresh(voxels: SparseVoxels) -> SparseVoxels:
    """The same without kept tables."""
    return SparseVoxels(voxels.features, voxels.coords, voxels.grid, voxels.batch_size)


@torch.no_grad()
def _forward(conv: SparseConv3d, voxels: SparseVoxels) -> SparseVoxels:
    return conv(_fresh(voxels))


@torch.no_grad()
def _forward_again(conv: SparseConv3d, voxels: SparseVoxels) -> SparseVoxels:
    return conv(voxels)


def _with_gradient(conv: SparseConv3d, voxels: SparseVoxels) -> SparseVoxels:
    """The gradients of the sum of squares, those of the voxels as features."""
    features = voxels.features.detach().requires_grad_()
    out = conv(voxels.with_features(features)).features
    found = torch.autograd.grad(out.square().sum(), [features, conv.weight])
    return voxels.with_features(found[0])


def _same_cells(ours: SparseVoxels, theirs: SparseVoxels) -> bool:
    """Whether both have the same features on the same cells, in any order."""
    if ours.grid != theirs.grid or len(ours) != len(theirs):
        return False
    rows = [_keys(v).argsort() for v in (ours, theirs)]
    ours, theirs = (
        SparseVoxels(v.features[r], v.coords[r], v.grid, v.batch_size)
        for v, r in zip((ours, theirs), rows, strict=True)
    )
    return ours.coords.equal(theirs.coords) and all_close(ours.features, theirs.features)


def _keys(voxels: SparseVoxels) -> Tensor:
    depth, height, width = voxels.grid
    b, z, y, x = voxels.coords.long().unbind(1)
    return ((b * depth + z) * height + y) * width + x
