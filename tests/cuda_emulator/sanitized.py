"""Run by test_sanitizer.py in a process of its own, with the address sanitizer: every kernel once, or one probe.

Prints the name of every kernel that it has started. With --device cuda the kernels run there instead of in the
emulator, for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from cuda_emulator.emulator import HERE, emulated, load
from torch import Tensor

from pcdet_ext import ops
from pcdet_ext.ops import _native
from pcdet_ext.ops.equal_groups import equal_group_slots
from pcdet_ext.ops.neighbours import gather_neighbours, neighbour_table
from pcdet_ext.ops.octree import octree_grow, octree_leaves, octree_neighbours, octree_parents

FLAGS = ("-fsanitize=address", "-O0", "-g1")
GRID, EXTENT, SIZE = (8, 16, 32), [0.0, 0.0, 0.0, 3.2, 3.2, 1.6], [0.1, 0.1, 0.2]


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1) of an array that ends where it ends: the sanitizer knows its bounds."""
    return torch.rand(shape, dtype=dtype)


def differentiate(out: Tensor, *inputs: Tensor) -> None:
    """Runs the kernels of the gradient."""
    torch.autograd.grad(out.sum(), inputs)


def scans(dtype: torch.dtype) -> None:
    """Operations on sequences, of sizes that fill no block."""
    for state in (8, 16):
        u, delta, z = (rand(2, 37, 71).to(dtype).requires_grad_() for _ in range(3))
        B, C = (rand(2, state, 71).to(dtype).requires_grad_() for _ in range(2))
        A, D, bias = (t.requires_grad_() for t in (-rand(37, state), rand(37), rand(37)))
        differentiate(
            ops.selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True), u, delta, A, B, C, D, z, bias
        )
    for dim in (16, 32):
        r, k, v, w = (rand(2, 71, 3, dim).to(dtype).requires_grad_() for _ in range(4))
        bonus = rand(3, dim).requires_grad_()
        differentiate(ops.wkv(r, k, v, w, bonus), r, k, v, w, bonus)
    for dim in (8, 16, 32, 64):
        attention(dim, dtype)
        q, k, v = (rand(30, 3, dim).to(dtype).requires_grad_() for _ in range(3))
        differentiate(ops.scattered_linear_attention(q, k, v, torch.tensor([0, 7, 7, 30])), q, k, v)
    for width in (2, 3, 4):
        x, weight, bias = (
            rand(2, 70, 35).to(dtype).requires_grad_(),
            rand(70, width).requires_grad_(),
            rand(70).requires_grad_(),
        )
        differentiate(ops.causal_conv1d(x, weight, bias, "silu"), x, weight, bias)


def attention(dim: int, dtype: torch.dtype) -> None:
    """Attention in groups, some of whose slots repeat rows."""
    index, place = torch.randint(37, (45,)), torch.randperm(45)[:37]
    index[place] = torch.arange(37)
    qkv, table = rand(37, 6 * dim).to(dtype).requires_grad_(), rand(27, 2).requires_grad_()
    seen, cells = torch.rand(5, 9) < 0.9, torch.randint(-1, 6, (37, 3)).int()
    out = ops.group_attention(qkv, index.view(5, 9), place, 2, seen, index.view(5, 9) // 9, cells, table)
    differentiate(out, qkv, table)


def boxes_and_segments(dtype: torch.dtype) -> None:
    """Operations on boxes, rows and octrees."""
    boxes, points = rand(70, 7, dtype=dtype) * 6 + 0.1, rand(300, 3, dtype=dtype) * 6
    ops.iou_bev(boxes, boxes[:35])
    ops.iou_3d_paired(boxes, boxes.flip(0))
    ops.points_in_boxes(points, torch.cat([boxes, boxes]))
    ops.nms(boxes, rand(70), 0.3)
    values, index = rand(100, 3, dtype=dtype).requires_grad_(), torch.randint(-1, 9, (100,))
    for kind in ("sum", "max"):
        differentiate(ops.segment_reduce(values, index, 9, kind), values)
    neighbours = torch.stack([torch.randperm(90) - 1 for _ in range(27)], 1)
    features, weights = rand(90, 5, dtype=dtype).requires_grad_(), rand(27, 5, dtype=dtype).requires_grad_()
    differentiate(ops.octree_depthwise_conv(features, weights, neighbours), features, weights)


def coordinates() -> None:
    """Operations on voxels."""
    points = rand(1000, 4) * 4 - 0.2
    ops.dynamic_voxelize(points, torch.randint(0, 2, (1000,)), EXTENT, SIZE)
    ops.voxelize(points, EXTENT, SIZE, 3, 900)
    cells = torch.unique(torch.randint(2 * 8 * 16 * 32, (700,)))
    coords = torch.stack([cells // 4096, cells // 512 % 8, cells // 32 % 16, cells % 32], 1).int()
    for order in ("zorder", "hilbert"):
        ops.deserialize(ops.serialize(coords, GRID, order), order, 5)
    for path in ("rows", "snake"):
        ops.serialize(coords, GRID, "window_x", window=(8, 5, 5), shift=(0, 2, 2), path=path)
    ops.rotated_sets(coords, GRID, 2, (8, 5, 5), (0, 2, 2), 7)
    ops.octree_from_tokens(ops.octree_tokens(coords, 2, 6))
    leaves, _ = octree_leaves(points[:, :3] * 0.4 - 0.6, torch.tensor([300, 0, 700], device="cpu"), 5)
    octree_grow(octree_parents(leaves), leaves)
    neighbour_table(torch.randperm(500)[:70], torch.tensor([-600, -20, 0, 1, 600]))
    gather_neighbours(rand(70, 5), torch.randint(-1, 70, (33, 9), dtype=torch.int32))
    order = torch.randperm(100)
    equal_group_slots(order, order.argsort(), torch.tensor([30, 0, 70]), 16)
    octree_neighbours(torch.randint(-1, 9, (9, 27)), torch.arange(9, dtype=torch.int32), torch.arange(9))


class Noted:
    """A library that notes which kernels are asked for."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.names = library, set()

    def __getitem__(self, name: str) -> object:
        self.names.add(name)
        return self.library[name]

    def __getattr__(self, name: str) -> object:
        return getattr(self.library, name)


def every_kernel() -> None:
    """All kernels, and the names of those started."""
    library = Noted(load(name="pcdet_sanitized", flags=FLAGS))
    with emulated("shuffled", library=library):
        every_call()
    print("\n".join(sorted(library.names)))


def every_kernel_on_cuda() -> None:
    """The same on a device."""
    loaded = _native.library("cuda")
    if loaded is None:
        raise SystemExit("there is no library of CUDA kernels")
    library = Noted(loaded)
    torch.set_default_device("cuda")
    with mock.patch.object(_native, "library", lambda kind: library if kind == "cuda" else None):
        every_call()
    torch.cuda.synchronize()
    print("\n".join(sorted(library.names)))


def every_call() -> None:
    """Calls that need every kernel."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        scans(dtype)
    for dtype in (torch.float32, torch.float64):
        boxes_and_segments(dtype)
    coordinates()


def probe(shared: bool, end: int) -> None:
    """A kernel that writes number `end` of an array of 64 numbers."""
    library, out = load((HERE / "probes.cu",), "probes_sanitized", FLAGS), torch.zeros(64)
    assert library.probe_write_beyond(ctypes.c_void_p(out.data_ptr()), int(shared), end) == 0


def main() -> None:
    """Everything, `--device cuda`, or `--probe shared|global END`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--probe", nargs=2, metavar=("MEMORY", "END"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.probe is not None:
        probe(options.probe[0] == "shared", int(options.probe[1]))
    elif options.device == "cuda":
        every_kernel_on_cuda()
    else:
        every_kernel()


if __name__ == "__main__":
    main()
