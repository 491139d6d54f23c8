"""Bytes that the CUDA kernels move, counted in the emulator, beside the least that they could: every sector once.

python tests/cuda_emulator/traffic.py [--only wkv …] prints JSON: {operation: {kernel: [moved, least]}}; see traffic.cu
for the model. `pcdet benchmark kernels` shows it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from cuda_emulator.emulator import HERE, emulated, kernels, load
from torch import Tensor

from pcdet_ext import ops
from pcdet_ext.ops import _native
from pcdet_ext.ops.neighbours import neighbour_table
from pcdet_ext.ops.octree import octree_grow, octree_leaves, octree_neighbours, octree_parents

FLAGS = ("-fsanitize=thread", "-DCUDA_EMULATOR_TRAFFIC", "-Wno-tsan")
GRID, EXTENT, SIZE = (8, 64, 64), [0.0, 0.0, 0.0, 6.4, 6.4, 1.6], [0.1, 0.1, 0.2]


def library(sources: tuple[Path, ...]) -> ctypes.CDLL:
    """Kernels that count what they move."""
    return load((*sources, HERE / "traffic.cu"), "traffic", FLAGS)


@contextmanager
def counted(counting: ctypes.CDLL) -> Iterator[None]:
    """Within it the arrays of every call of a kernel are watched."""
    launch = _native.launch

    def watched(name: str, device: torch.device, *arguments: Any, **options: Any) -> None:
        counting.traffic_forget_arrays()
        for argument in arguments:
            if isinstance(argument, tuple) and argument[0] is not None and argument[0].numel():
                memory = argument[0].untyped_storage()
                if counting.traffic_watch(ctypes.c_void_p(memory.data_ptr()), ctypes.c_uint64(memory.nbytes())):
                    raise RuntimeError(f"{name} has too many arrays to watch")
        launch(name, device, *arguments, **options)

    users = [m for m in list(sys.modules.values()) if getattr(m, "launch", None) is launch and m is not _native]
    with emulated(library=counting):
        for module in users:
            module.launch = watched
        try:
            yield
        finally:
            for module in users:
                module.launch = launch


def traffic(counting: ctypes.CDLL) -> dict[str, dict[str, list[int]]]:
    """Bytes moved and the least, by operation and kernel, of all launches so far."""
    command = ["nm", "-C", "-a", "-p", "--defined-only", counting._name]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names, shift, source = {}, 0, ""
    for address, kind, name in (line.split(" ", 2) for line in listed.splitlines()):
        if kind == "a":  # local symbols follow the name of their source
            source = name.removesuffix("_cuda.cu")
        elif name == "traffic_launches":
            shift = ctypes.cast(counting.traffic_launches, ctypes.c_void_p).value - int(address, 16)
        else:
            plain = name.replace("(anonymous namespace)::", "").removeprefix("void ").partition("(")[0]
            names[int(address, 16)] = source, plain
    found: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for number in range(counting.traffic_launches()):
        of_launch = (ctypes.c_uint64 * 3)()
        counting.traffic_of(number, of_launch)
        kernel, moved, least = of_launch
        operation, name = names[kernel - shift]
        before = found[operation].setdefault(name, [0, 0])
        found[operation][name] = [before[0] + moved, before[1] + least]
    return dict(found)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape)


def differentiate(call: Callable[..., Tensor], *inputs: Tensor) -> None:
    """A call and its gradients."""
    inputs = tuple(t.requires_grad_() for t in inputs)
    out = call(*inputs)
    torch.autograd.grad(out, inputs, torch.rand_like(out))


def coordinates() -> Tensor:
    """2000 voxels int32 [2000, 4] of two frames, sorted."""
    cells = torch.randperm(2 * 8 * 64 * 64)[:2000].sort().values
    return torch.stack([cells // 32768, cells // 4096 % 8, cells // 64 % 64, cells % 64], 1).int()


def scan() -> None:
    inputs = (rand(1, 256, 64).mT, rand(1, 256, 64).mT, -rand(64, 16), rand(1, 256, 16).mT, rand(1, 256, 16).mT)
    differentiate(
        lambda u, d, A, B, C, D, z: ops.selective_scan(u, d, A, B, C, D, z), *inputs, rand(64), rand(1, 256, 64).mT
    )


def attention() -> None:
    index = torch.arange(2048).view(64, 32)
    cells = torch.randint(0, 40, (2048, 3)).int()
    differentiate(
        lambda qkv, table: ops.group_attention(qkv, index, torch.arange(2048), 2, None, None, cells, table),
        *(rand(2048, 3 * 32), rand(3 * 51, 2)),
    )


def boxes() -> None:
    some = rand(512, 7) * torch.tensor([70.0, 40, 2, 3, 2, 1, 6]) + 0.1
    ops.iou_bev(some, some[:128])
    ops.iou_3d_paired(some, some.flip(0))


def suppressed() -> None:
    some = rand(512, 7) * torch.tensor([70.0, 40, 2, 3, 2, 1, 6]) + 0.1
    ops.nms(some, rand(512), 0.3)


def segments() -> None:
    index = torch.randint(500, (4000,))
    for kind in ("sum", "max"):
        differentiate(lambda values, kind=kind: ops.segment_reduce(values, index, 500, kind), rand(4000, 32))


def octrees() -> None:
    leaves, _ = octree_leaves(rand(4000, 3) * 0.2, torch.tensor([4000]), 8)
    nodes, children, rows = octree_grow(octree_parents(leaves), leaves)
    table = neighbour_table(nodes, torch.arange(-13, 14))
    octree_neighbours(table, children, rows)


def keys() -> None:
    coords = coordinates()
    for order in ("zorder", "hilbert"):
        ops.deserialize(ops.serialize(coords, GRID, order), order, 6)
    ops.serialize(coords, GRID, "window_x", window=(8, 8, 8))


def convolution() -> None:
    table = torch.arange(2000)[:, None] + torch.arange(-13, 14)
    differentiate(
        lambda f, w: ops.octree_depthwise_conv(f, w, torch.where(table < 2000, table, -1).clamp(min=-1)),
        *(rand(2000, 32), rand(27, 32)),
    )


def linear() -> None:
    offsets = torch.arange(0, 2049, 128)
    differentiate(
        lambda q, k, v: ops.scattered_linear_attention(q, k, v, offsets), *(rand(2048, 2, 32) for _ in range(3))
    )


CALLS: dict[str, Callable[[], None]] = {
    "causal_conv1d": lambda: differentiate(
        lambda x, w, b: ops.causal_conv1d(x, w, b, "silu"), rand(1, 512, 64).mT, rand(64, 4), rand(64)
    ),
    "group_attention": attention,
    "iou": boxes,
    "linear_attention": linear,
    "neighbours": lambda: neighbour_table(
        torch.randperm(20000)[:2000], torch.tensor([-1000, -100, -1, 0, 1, 100, 1000])
    ),
    "nms": suppressed,
    "octree": octrees,
    "octree_conv": convolution,
    "octree_tokens": lambda: ops.octree_from_tokens(ops.octree_tokens(coordinates(), 2, 6)),
    "points_in_boxes": lambda: ops.points_in_boxes(rand(4000, 4) * 40, rand(60, 7) * 40),
    "rotated_sets": lambda: ops.rotated_sets(coordinates(), GRID, 2, (8, 8, 8), (0, 4, 4), 36),
    "segment_reduce": segments,
    "selective_scan": scan,
    "serialize": keys,
    "voxelize": lambda: ops.dynamic_voxelize(rand(4000, 4) * 6, torch.randint(0, 2, (4000,)), EXTENT, SIZE),
    "wkv": lambda: differentiate(ops.wkv, *(rand(1, 256, 2, 32) for _ in range(4)), rand(2, 32)),
}


# Kernels of other operations that a call needs.
NEEDS = {"group_attention": ("segment_reduce",), "octree": ("neighbours",), "octree_tokens": ("serialize",)}


def count(wanted: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Bytes moved and the least, by operation and kernel."""
    torch.manual_seed(0)
    folders = {*wanted, *(other for name in wanted for other in NEEDS.get(name, ()))}
    counting = library(tuple(path for path in kernels() if path.parent.name in folders))
    with counted(counting):
        for name in wanted:
            CALLS[name]()
    found = traffic(counting)
    return {name: found[name] for name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CALLS, default=list(CALLS), metavar="NAME")
    wanted = parser.parse_args().only
    print(json.dumps(count(wanted), indent=1))


if __name__ == "__main__":
    main()
