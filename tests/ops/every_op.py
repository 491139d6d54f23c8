"""A call of every operation, with its gradients, whose inputs do not depend on torch's defaults."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pcdet_ext import ops
from pcdet_ext.ops.enlarging_conv import enlarging_conv2d, enlarging_panels
from pcdet_ext.ops.equal_groups import equal_group_slots
from pcdet_ext.ops.neighbours import gather_neighbours, neighbour_table
from pcdet_ext.ops.octree import octree_grow, octree_leaves, octree_neighbours, octree_parents
from pcdet_ext.ops.packed_linear import linear_panels, packed_linear
from pcdet_ext.ops.retention import mlstm, retention
from pcdet_ext.ops.sparse_conv import sparse_conv
from pcdet_ext.ops.unique_numbers import unique_numbers
from pcdet_ext.ops.winograd_conv import winograd_conv2d, winograd_weight

Made = Callable[..., Tensor]
CPU = torch.device("cpu")


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1)."""
    generator = torch.Generator(CPU).manual_seed(sum(shape))
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=CPU).to(dtype)


def whole(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Whole numbers in [0, high)."""
    generator = torch.Generator(CPU).manual_seed(high + sum(shape))
    return torch.randint(high, shape, generator=generator, dtype=dtype, device=CPU)


def table(*values: float, dtype: torch.dtype = torch.int64) -> Tensor:
    """These numbers."""
    return torch.tensor(values, dtype=dtype, device=CPU)


def coords() -> Tensor:
    """Distinct voxels int32 [60, 4] of a grid (8, 16, 32) in two frames."""
    cells = torch.unique(whole(2 * 8 * 16 * 32, 60))
    axes = [cells // 4096, cells // 512 % 8, cells // 32 % 16, cells % 32]
    return torch.stack(axes, 1).to(torch.int32)


def boxes(dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes [12, 7] that overlap."""
    offset, scale = (table(*v, dtype=torch.float64) for v in ((0, 0, 0, 1, 1, 1, 0), (4, 4, 1, 3, 2, 1, 6)))
    return (rand(12, 7, dtype=torch.float64) * scale + offset).to(dtype)


GRID, EXTENT, SIZE = (8, 16, 32), [0.0, 0.0, 0.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0]


def with_gradients(call: Made, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The result of a call and the gradients of its inputs, for a gradient that is the same at every place."""
    plain = call(*inputs)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [t.clone().detach().requires_grad_() for t in inputs]
        out = call(*leaves)
        with torch.autocast("cpu", enabled=False):  # as torch asks for
            out.sum().backward()
    return (plain, out.detach(), *(leaf.grad for leaf in leaves))


def scans(change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The selective scan with all arguments."""
    u, delta, z = (change(t) for t in rand(3, 2, 3, 40, dtype=dtype))
    B, C = (change(t) for t in rand(2, 2, 4, 40, dtype=dtype))
    A, D, bias = -rand(3, 4, dtype=dtype), *rand(2, 3, dtype=dtype)
    return with_gradients(lambda *t: ops.selective_scan(*t, delta_softplus=True), u, delta, A, B, C, D, z, bias)


def calls(change: Callable[[Tensor], Tensor] = lambda t: t, dtype: torch.dtype = torch.float32) -> dict[str, Callable]:
    """A call by name; `change` is applied to the large inputs, and must not change their values."""
    points = change(rand(50, 4) * 3)
    filters = change(rand(16, 16, 3, 3))
    reads = torch.tensor([[0, -1, 2, 3, 4, 5, 6, 0, 1], [-1, 1, 6, 6, 0, 0, -1, 2, 2]], dtype=torch.int32)
    index, q, r = change(whole(4, 30)), change(rand(30, 2, 4, dtype=dtype)), change(rand(2, 40, 2, 4, dtype=dtype))
    values, voxels, upright = change(rand(30, 3, dtype=dtype)), change(coords()), change(boxes(dtype))
    neighbours = change(torch.stack([table(0, -1, 2, 1), table(3, 2, 1, -1)], 1))
    offsets, decay = table(0, 10, 10, 30), table(0.5, 0.9, dtype=dtype)
    keys, root_table = ops.serialize(voxels, GRID, "zorder"), table(*[-1] * 13, 0, *[-1] * 13).view(1, 27)
    slots = table(1, 2, 3, 0).view(1, 4)
    windows = {"window": (8, 5, 5), "shift": (0, 2, 2)}
    return {
        "voxelize": lambda: (
            *with_gradients(lambda p: ops.voxelize(p, EXTENT, SIZE, 3, 9)[0], points),
            *ops.voxelize(points, EXTENT, SIZE, 3, 9),
        ),
        "dynamic_voxelize": lambda: ops.dynamic_voxelize(points, change(whole(2, 50)), EXTENT, SIZE),
        "dynamic_voxelize, pillars": lambda: ops.dynamic_voxelize(points, whole(2, 50), EXTENT, SIZE, "xyz", True),
        "grid_size": lambda: torch.tensor(ops.grid_size(EXTENT, SIZE), dtype=torch.int64, device=CPU),
        "serialize, zorder": lambda: ops.serialize(voxels, GRID, "zorder"),
        "serialize, hilbert": lambda: ops.serialize(voxels, GRID, "hilbert"),
        "serialize, window_x": lambda: ops.serialize(voxels, GRID, "window_x", **windows),
        "serialize, window_y": lambda: ops.serialize(voxels, GRID, "window_y", path="snake", **windows),
        "serialize, lsh": lambda: ops.serialize(voxels, GRID, "lsh"),
        "deserialize": lambda: ops.deserialize(change(keys), "zorder", 5),
        "octree_parent": lambda: ops.octree_parent(keys),
        "octree_children": lambda: ops.octree_children(keys),
        "rotated_sets": lambda: ops.rotated_sets(voxels, GRID, 2, (8, 5, 5), (0, 2, 2), 7),
        "neighbour_table": lambda: neighbour_table(change(keys), table(-1, 0, 1)),
        "gather_neighbours": lambda: gather_neighbours(change(rand(9, 4)), table(0, -1, 8, 3, dtype=torch.int32)[None]),
        "unique_numbers": lambda: unique_numbers(change(index), 4),
        "equal_group_slots": lambda: equal_group_slots(table(1, 0, 2, 4, 3), table(1, 0, 2, 4, 3), table(2, 3), 4),
        "segment_reduce, mean": lambda: with_gradients(lambda v: ops.segment_reduce(v, index, 5, "mean"), values),
        "segment_reduce, max": lambda: with_gradients(lambda v: ops.segment_reduce(v, index, 5, "max"), values),
        "segment_softmax": lambda: with_gradients(lambda v: ops.segment_softmax(v, index, 5) ** 2, values),
        "octree_depthwise_conv": lambda: with_gradients(
            lambda f, w: ops.octree_depthwise_conv(f, w, neighbours),
            change(rand(4, 3, dtype=dtype)),
            rand(2, 3, dtype=dtype),
        ),
        "group_attention": lambda: with_gradients(
            lambda qkv, biases: ops.group_attention(
                qkv, change(slots), table(3, 0, 1, 2), 2, slots > 0, slots // 2, change(voxels[:4, 1:]), biases
            ),
            change(rand(4, 12, dtype=dtype)),
            rand(9, 2, dtype=dtype),
        ),
        "octree_tokens": lambda: ops.octree_tokens(voxels, 2, 5).occupancy,
        "octree_tokens, anisotropic": lambda: ops.octree_tokens(voxels, 2, 5, True).splits,
        "octree_from_tokens": lambda: ops.octree_from_tokens(ops.octree_tokens(voxels, 2, 5)),
        "octree_from_tokens, anisotropic": lambda: ops.octree_from_tokens(ops.octree_tokens(voxels, 2, 5, True)),
        "octree_leaves": lambda: octree_leaves(change(rand(50, 3) * 2 - 1), torch.tensor([20, 0, 30], device=CPU), 3),
        "octree_parents": lambda: octree_parents(change(table(0, 3, 9, 60))),
        "octree_grow": lambda: octree_grow(change(table(0, 1, 7)), change(table(0, 3, 9, 60))),
        "octree_neighbours": lambda: octree_neighbours(change(root_table), table(0, dtype=torch.int32), table(0)),
        "iou_bev": lambda: ops.iou_bev(upright, upright),
        "iou_3d": lambda: ops.iou_3d(upright, upright),
        "shared_area_bev": lambda: ops.shared_area_bev(upright, upright),
        "shared_area_bev_paired": lambda: ops.shared_area_bev_paired(upright, upright.flip(0)),
        "iou_bev_paired": lambda: ops.iou_bev_paired(upright, upright.flip(0)),
        "iou_3d_paired": lambda: ops.iou_3d_paired(upright, upright.flip(0)),
        "nms": lambda: ops.nms(upright, rand(12), 0.1),
        "nms, axis_aligned": lambda: ops.nms(upright, rand(12), 0.1, "axis_aligned"),
        "nms, circle": lambda: ops.nms(upright, rand(12), 1.0, "circle"),
        "nms, published": lambda: ops.nms(upright, rand(12), 0.1, published=True),
        "points_in_boxes": lambda: ops.points_in_boxes(points, upright),
        "points_in_each_box": lambda: ops.points_in_each_box(points, upright),
        "voxel_coordinates": lambda: ops.voxel_coordinates(points, EXTENT, SIZE),
        "segment_argmax": lambda: ops.segment_argmax(values, index, 5),
        "selective_scan": lambda: scans(change, dtype),
        "wkv": lambda: with_gradients(lambda r, u: ops.wkv(r, r, r, -r, u), r, rand(2, 4, dtype=dtype)),
        "scattered_linear_attention": lambda: with_gradients(
            lambda q: ops.scattered_linear_attention(q, q, q, offsets), q
        ),
        "causal_conv1d": lambda: with_gradients(
            lambda x, w, b: ops.causal_conv1d(x, w, b, "silu"),
            change(rand(2, 3, 9, dtype=dtype)),
            rand(3, 4, dtype=dtype),
            rand(3, dtype=dtype),
        ),
        "winograd_conv2d": lambda: winograd_conv2d(
            change(rand(1, 16, 5, 6, dtype=torch.float32)), filters, filters[:, 0, 0, 0], winograd_weight(filters)
        ),
        "enlarging_conv2d": lambda: enlarging_conv2d(
            change(rand(1, 16, 3, 4, dtype=torch.float32)), filters, filters[0, :, 0, 0], enlarging_panels(filters)
        ),
        "packed_linear": lambda: packed_linear(
            change(rand(7, 5, dtype=torch.float32)), rand(16, 5), rand(16), linear_panels(rand(16, 5)), relu=True
        ),
        "sparse_conv": lambda: sparse_conv(
            change(rand(7, 16, dtype=torch.float32)), filters.flatten(2).transpose(1, 2), reads, filters[:, 0, 0, 0]
        ),
        "retention": lambda: with_gradients(lambda q: retention(q, q, q, decay, chunk=16), r),
        "mlstm": lambda: with_gradients(lambda q: mlstm(q, q, q, q[..., 0], q[..., 1], chunk=16), r),
    }


def results(made: dict[str, Callable]) -> dict[str, tuple[Tensor, ...]]:
    """The tensors that every call gives."""
    given = {name: call() for name, call in made.items()}
    return {name: (out,) if isinstance(out, Tensor) else tuple(out) for name, out in given.items()}
