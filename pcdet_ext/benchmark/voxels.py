"""Benchmarks of voxelisation and of reductions by voxel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pcdet_ext.benchmark.peers import torch_scatter_reduce, torch_scatter_softmax
from pcdet_ext.benchmark.registry import Contest, LookUps, Workload, all_close, benchmark
from pcdet_ext.ops import dynamic_voxelize, segment_reduce, segment_softmax, voxelize
from pcdet_ext.ops.segment import KINDS, segment_reduce_reference
from pcdet_ext.ops.voxelize import dynamic_voxelize_reference, grid_size, voxel_coordinates, voxelize_reference

Extent = tuple[tuple[float, ...], tuple[float, ...]]  # range (x, y, z minimum, then maximum); voxel size (x, y, z)


class VoxelSetting(NamedTuple):
    """Range (x, y, z minimum, then maximum) and voxel size (x, y, z) in metres, and the caps of hard voxels."""

    point_cloud_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    max_points: int
    max_voxels: int


KITTI_PILLARS: Extent = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0), (0.16, 0.16, 4.0)
KITTI_VOXELS: Extent = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0), (0.05, 0.05, 0.1)
WAYMO_PILLARS: Extent = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0), (0.32, 0.32, 6.0)
WAYMO_VOXELS: Extent = (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15)
# As in the published configurations: caps of training and of testing on KITTI.
HARD = {
    "pointpillars-kitti-train": VoxelSetting(*KITTI_PILLARS, 32, 16_000),
    "pointpillars-kitti-test": VoxelSetting(*KITTI_PILLARS, 32, 40_000),
    "second-kitti-train": VoxelSetting(*KITTI_VOXELS, 5, 16_000),
    "second-kitti-test": VoxelSetting(*KITTI_VOXELS, 5, 40_000),
    "centerpoint-waymo-test": VoxelSetting(*WAYMO_VOXELS, 5, 150_000),
}
SLOT_BYTES = 16  # of a hash table for each voxel: cell and number, at most half full
DYNAMIC = {
    "pillars-kitti": KITTI_PILLARS,
    "voxels-kitti": KITTI_VOXELS,
    "pillars-waymo": WAYMO_PILLARS,
    "voxels-waymo": WAYMO_VOXELS,
}


@benchmark("voxelize")
def hard_voxels(load: Workload) -> Iterator[Contest]:
    """Hard voxelisation against spconv's PointToVoxel."""
    for name, setting in HARD.items():
        voxels, *rest = voxelize(load.points, *setting)
        yield Contest(
            name,
            partial(voxelize, load.points, *setting),
            partial(_hard_reference, load.points, setting),
            spconv_peer(load.points, setting),
            work={"points": len(load.points), "voxels": len(voxels)},
            bytes=sum(t.nbytes for t in (load.points, voxels, *rest)),
            look_ups=LookUps(_inside(load.points, setting[:2]), SLOT_BYTES * len(voxels)),
        )


def _inside(points: Tensor, setting: Extent) -> int:
    """How many points lie in the range."""
    return int((voxel_coordinates(points, *setting)[:, 0] >= 0).sum())


def _hard_reference(points: Tensor, setting: VoxelSetting) -> tuple[Tensor, ...]:
    return voxelize_reference(points, *setting)[:3]


def spconv_peer(points: Tensor, setting: VoxelSetting) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """spconv's voxel generator on the CPU (that on CUDA keeps other points: no peer), where spconv is here."""
    if points.device.type != "cpu":
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's names for mixed precision
            from spconv.pytorch.utils import PointToVoxel
    except ImportError:
        return {}
    size, extent = list(setting.voxel_size), list(setting.point_cloud_range)
    generator = PointToVoxel(size, extent, points.shape[1], setting.max_voxels, setting.max_points)
    return {"spconv PointToVoxel": lambda: generator(points)}


@benchmark("dynamic_voxelize")
def dynamic_mean(load: Workload) -> Iterator[Contest]:
    """Dynamic voxels and the mean of their points, as a mean encoder needs them."""
    batch_index = torch.zeros(len(load.points), dtype=torch.int64, device=load.device)
    for name, setting in DYNAMIC.items():
        coords, mean = mean_of_voxels(load.points, batch_index, *setting)
        yield Contest(
            name + " + mean",
            partial(mean_of_voxels, load.points, batch_index, *setting),
            partial(mean_of_voxels_reference, load.points, batch_index, *setting),
            {"torch.unique + index_add": partial(unique_mean, load.points, batch_index, *setting)},
            work={"points": len(load.points), "voxels": len(coords)},
            bytes=sum(t.nbytes for t in (load.points, batch_index, coords, mean)),
            look_ups=LookUps(_inside(load.points, setting), mean.nbytes),
        )


def mean_of_voxels(
    points: Tensor, batch_index: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Average the points of each voxel with this library's operations.

    Args:
        points: float32 [P, C], x, y, z first, metres.
        batch_index: int64 [P], the frame of each point.
        point_cloud_range: minimum (x, y, z), then maximum.
        voxel_size: (x, y, z).

    Returns:
        Coordinates int32 [N, 4] (batch, z, y, x), and mean points [N, C].
    """
    coords, voxel = dynamic_voxelize(points, batch_index, point_cloud_range, voxel_size)
    return coords, segment_reduce(points, voxel, len(coords), "mean")


def mean_of_voxels_reference(
    points: Tensor, batch_index: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The same with this library's references. Arguments as for `mean_of_voxels`."""
    coords, voxel = dynamic_voxelize_reference(points, batch_index, point_cloud_range, voxel_size)
    return coords, segment_reduce_reference(points, voxel, len(coords), KINDS["mean"])[0]


def unique_mean(
    points: Tensor, batch_index: Tensor, point_cloud_range: Sequence[float], voxel_size: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The same as it is usually written in PyTorch: keys, torch.unique, index_add.

    Arguments as for `mean_of_voxels`.
    """
    low = torch.tensor(point_cloud_range[:3], device=points.device)
    cells = torch.tensor(grid_size(point_cloud_range, voxel_size), device=points.device)
    place = torch.floor((points[:, :3] - low) / torch.tensor(voxel_size, device=points.device)).long()
    inside = ((place >= 0) & (place < cells)).all(1)
    points, place, batch_index = points[inside], place[inside], batch_index[inside]
    key = ((batch_index * cells[2] + place[:, 2]) * cells[1] + place[:, 1]) * cells[0] + place[:, 0]
    key, voxel, count = torch.unique(key, return_inverse=True, return_counts=True)
    mean = points.new_zeros(len(key), points.shape[1]).index_add_(0, voxel, points) / count[:, None]
    plane = cells[0] * cells[1]
    frame, rest = key // (plane * cells[2]), key % (plane * cells[2])
    coords = torch.stack([frame, rest // plane, rest % plane // cells[0], rest % cells[0]], 1)
    return coords.int(), mean


@benchmark("segment_reduce")
def reductions(load: Workload) -> Iterator[Contest]:
    """Reductions of 64 features per point by pillar, as a pillar encoder needs them, forward and backward."""
    batch_index = torch.zeros(len(load.points), dtype=torch.int64, device=load.device)
    coords, pillar = dynamic_voxelize(load.points, batch_index, *WAYMO_PILLARS)
    pillar = pillar[pillar >= 0]
    values = torch.randn(len(pillar), 64, generator=load.generator()).to(load.device)
    weights = torch.randn(len(coords), 64, generator=load.generator(1)).to(load.device)
    for kind in KINDS:
        yield Contest(
            f"{kind} of 64 channels",
            partial(segment_reduce, values, pillar, len(coords), kind),
            partial(_reduced_reference, values, pillar, len(coords), KINDS[kind]),
            {"torch scatter_reduce": partial(scatter_reduced, values, pillar, len(coords), kind)}
            | torch_scatter_reduce(values, pillar, len(coords), kind),
            work={"rows": len(values), "segments": len(coords)},
            bytes=values.nbytes + pillar.nbytes + weights.nbytes,
        )
    yield Contest(
        "max of 64 channels, with gradient",
        lambda: with_gradient(lambda v: segment_reduce(v, pillar, len(coords), "max"), values, weights),
        peers={
            "torch scatter_reduce": lambda: with_gradient(
                lambda v: scatter_reduced(v, pillar, len(coords), "max"), values, weights
            )
        },
        agrees=lambda ours, theirs: same_but_for_ties(ours, theirs, pillar),
        work={"rows": len(values), "segments": len(coords)},
        bytes=2 * (values.nbytes + weights.nbytes) + pillar.nbytes,
    )


def _reduced_reference(values: Tensor, index: Tensor, num_segments: int, kind: int) -> Tensor:
    return segment_reduce_reference(values, index, num_segments, kind)[0]


@benchmark("segment_softmax")
def softmax(load: Workload) -> Iterator[Contest]:
    """Softmax of 8 columns per point inside pillars, as attention over points needs it, forward and backward."""
    batch_index = torch.zeros(len(load.points), dtype=torch.int64, device=load.device)
    coords, pillar = dynamic_voxelize(load.points, batch_index, *WAYMO_PILLARS)
    pillar = pillar[pillar >= 0]
    values, weights = (torch.randn(len(pillar), 8, generator=load.generator(i)).to(load.device) for i in (0, 1))
    peers = {"torch scatter_reduce": softmax_of_scatter} | torch_scatter_softmax()
    work = {"rows": len(values), "segments": len(coords)}
    yield Contest(
        "8 columns",
        lambda: segment_softmax(values, pillar, len(coords)),
        peers={name: partial(call, values, pillar, len(coords)) for name, call in peers.items()},
        work=work,
        bytes=2 * values.nbytes + pillar.nbytes,
    )
    yield Contest(
        "8 columns, with gradient",
        lambda: with_gradient(lambda v: segment_softmax(v, pillar, len(coords)), values, weights),
        peers={
            name: partial(with_gradient, partial(call, index=pillar, num_segments=len(coords)), values, weights)
            for name, call in peers.items()
        },
        work=work,
        bytes=5 * values.nbytes + pillar.nbytes,
    )


def softmax_of_scatter(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Softmax inside segments as it is usually written in PyTorch. Arguments as for `ops.segment_softmax`."""
    highest = scatter_reduced(values.detach(), index, num_segments, "max")
    raised = (values - highest[index]).exp()
    return raised / values.new_zeros(num_segments, values.shape[1]).index_add(0, index, raised)[index]


def same_but_for_ties(ours: Sequence[Tensor], theirs: Sequence[Tensor], index: Tensor) -> bool:
    """Whether maxima are the same and their gradients add up to the same in each segment.

    PyTorch shares the gradient out among equal rows, this library gives it to the first.

    Args:
        ours: maxima [N, C] and gradients [P, C].
        theirs: the same of the other library.
        index: int64 [P], the segment of each row.
    """
    sums = [segment_reduce(grad, index, len(out), "sum") for out, grad in (ours, theirs)]
    return all_close(ours[0], theirs[0]) and all_close(*sums)


def scatter_reduced(values: Tensor, index: Tensor, num_segments: int, kind: str) -> Tensor:
    """PyTorch's own: index_add for sums, else scatter_reduce. Arguments as for `ops.segment_reduce`."""
    out = values.new_zeros(num_segments, values.shape[1])
    if kind == "sum":
        return out.index_add(0, index, values)
    name, spread = {"max": "amax", "min": "amin"}.get(kind, kind), index[:, None].expand_as(values)
    return out.scatter_reduce(0, spread, values, name, include_self=False)


def with_gradient(reduce: Callable[[Tensor], Tensor], values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce rows, and compute the gradient of the weighted sum of the result.

    Args:
        reduce: rows [P, C] to results [N, C].
        values: [P, C].
        weights: [N, C], of the results in the sum.

    Returns:
        The results [N, C], and the gradient [P, C] with respect to the values.
    """
    values = values.detach().requires_grad_()
    out = reduce(values)
    return out.detach(), torch.autograd.grad(out, values, weights)[0]
