"""Serialization, grouping and sequence operations at their extremes: nothing, one voxel, one voxel in each window, one
window for all, 300,000 windows, and a batch of 64 frames most of which are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pytest
import torch
from torch import Tensor

from pcdet_ext.grouping.octree import build_octree
from pcdet_ext.grouping.orders import LSH, Hilbert, Ordering, WindowX, WindowY, ZOrder
from pcdet_ext.grouping.partitions import (
    EqualGroups,
    OctreeWindows,
    Windows,
    equal_groups,
    octree_windows,
)
from pcdet_ext.grouping.partitions import RotatedSets as SetsOfWindows
from pcdet_ext.ops import (
    causal_conv1d,
    deserialize,
    octree_depthwise_conv,
    rotated_sets,
    scattered_linear_attention,
    segment_reduce,
    segment_softmax,
    selective_scan,
    serialize,
    wkv,
)
from pcdet_ext.ops.causal_conv1d import causal_conv1d_reference
from pcdet_ext.ops.linear_attention import scattered_linear_attention_reference
from pcdet_ext.ops.neighbours import neighbour_table
from pcdet_ext.ops.octree_conv import octree_depthwise_conv_reference
from pcdet_ext.ops.retention import mlstm, mlstm_reference, retention, retention_reference
from pcdet_ext.ops.rotated_sets import rotated_sets_reference
from pcdet_ext.ops.selective_scan import selective_scan_reference
from pcdet_ext.ops.serialize import CURVES, curve_depth, curve_encode_reference, window_keys_reference
from pcdet_ext.ops.wkv import wkv_reference
from pcdet_ext.structures import SparseVoxels

WINDOW, SHIFT = (2, 16, 16), (0, 8, 8)  # cells, (Z, Y, X)
MANY = 300_000
SCENES = ("nothing", "one voxel", "one voxel a window", "one window", "300,000 windows", "64 frames, few with voxels")
SMALL = tuple(name for name in SCENES if name != "300,000 windows")


@dataclass(frozen=True)
class Scene:
    """Voxels int32 [N, 4] in a random order, the grid, and the number of frames."""

    coords: Tensor
    grid: tuple[int, int, int]
    frames: int

    @property
    def voxels(self) -> SparseVoxels:
        return SparseVoxels(torch.zeros(len(self.coords), 1), self.coords, self.grid, self.frames)

    @cached_property
    def window(self) -> Tensor:
        """Running number int64 [N] of each voxel's unshifted window among those that have voxels."""
        batch, z, y, x = (self.coords.long() // torch.tensor([1, *WINDOW])).unbind(1)
        return torch.unique(((batch * 1000 + z) * 1000 + y) * 1000 + x, return_inverse=True)[1]

    @property
    def set_size(self) -> int:
        """DSVT's; few where there are so many sets that slots would be most of the work."""
        return 4 if len(self.coords) == MANY else 36


@lru_cache
def scene(name: str) -> Scene:
    generator = torch.Generator().manual_seed(len(name))

    def random(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    def one_in_each(frames: int, rows: int, columns: int) -> Scene:
        place = torch.cartesian_prod(torch.arange(frames), torch.arange(1), torch.arange(rows), torch.arange(columns))
        inside = torch.stack([random(n, len(place)) for n in (1, *WINDOW)], 1)
        coords = place * torch.tensor([1, *WINDOW]) + inside
        return shuffled(coords, (2, 16 * rows, 16 * columns), frames)

    def shuffled(coords: Tensor, grid: tuple[int, int, int], frames: int) -> Scene:
        return Scene(coords[torch.randperm(len(coords), generator=generator)].int(), grid, frames)

    if name == "nothing":
        return Scene(torch.zeros(0, 4, dtype=torch.int32), (2, 32, 32), 1)
    if name == "one voxel":
        return Scene(torch.tensor([[0, 1, 31, 30]], dtype=torch.int32), (2, 32, 32), 1)
    if name == "one voxel a window":
        return one_in_each(2, 12, 13)
    if name == "300,000 windows":
        return one_in_each(1, 600, 500)
    if name == "one window":
        cells = torch.cartesian_prod(torch.tensor([0]), *(torch.arange(n) for n in WINDOW))
        return shuffled(cells, WINDOW, 1)
    coords = torch.stack([torch.tensor([5, 40, 62])[random(3, 400)], *(random(n, 400) for n in (2, 64, 48))], 1)
    return shuffled(torch.unique(coords, dim=0), (2, 64, 48), 64)


def assert_permutation(places: Tensor, count: int) -> None:
    assert torch.equal(places.sort().values, torch.arange(count))


@pytest.mark.parametrize("name", SCENES)
def test_keys_equal_their_definition_and_come_back(name: str) -> None:
    coords, grid = scene(name).coords, scene(name).grid
    depth = curve_depth(grid)
    for curve, options in (
        ("zorder", {}),
        ("zorder_x_lowest", {"lowest": "x"}),
        ("hilbert", {}),
    ):
        order = curve.removesuffix("_x_lowest")
        keys = serialize(coords, grid, order, **options)
        assert torch.equal(keys, curve_encode_reference(coords, grid, CURVES[curve], depth))
        assert torch.equal(deserialize(keys, order, depth, **options), coords)
    for order, along_y in (("window_x", False), ("window_y", True)):
        for path, shift in (("rows", SHIFT), ("snake", SHIFT)):
            keys = serialize(coords, grid, order, window=WINDOW, shift=shift, path=path)
            expected = window_keys_reference(coords, grid, WINDOW, shift, along_y, path == "snake")
            assert torch.equal(keys, expected)
            assert len(torch.unique(keys)) == len(coords)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("order", [ZOrder(), Hilbert(), WindowX(WINDOW), WindowY(WINDOW, SHIFT, "snake"), LSH()])
def test_orders_go_frame_by_frame(name: str, order: object) -> None:
    voxels = scene(name).voxels
    ordering = order(voxels)
    assert_permutation(ordering.order, len(voxels))
    assert torch.equal(ordering.order[ordering.inverse], torch.arange(len(voxels)))
    assert bool((voxels.coords[ordering.order, 0].diff() >= 0).all())
    assert ordering.counts.tolist() == [int((voxels.coords[:, 0] == b).sum()) for b in range(voxels.batch_size)]


@pytest.mark.parametrize("name", SCENES)
def test_rotated_sets_equal_their_definition(name: str) -> None:
    here = scene(name)
    coords, grid, frames, size = here.coords, here.grid, here.frames, here.set_size
    for shift in ((0, 0, 0), SHIFT):
        count = [max(-(-(g + s) // w), -(-g // w) + 1) for g, s, w in zip(grid, shift, WINDOW, strict=True)]
        sets = rotated_sets(coords, grid, frames, WINDOW, shift, size)
        expected = rotated_sets_reference(coords, grid, frames, WINDOW, shift, count, size)
        assert all(map(torch.equal, sets, expected))
        for direction in range(2):
            assert torch.equal(sets.index[direction].flatten()[sets.slot[direction]], torch.arange(len(coords)))
            assert_permutation(sets.index[direction][~sets.repeats[direction]], len(coords))
            of_set = sets.window[sets.index[direction]]
            assert bool((of_set == of_set[:, :1]).all())
    assert torch.equal(SetsOfWindows(size)(here.voxels, WindowY(WINDOW, SHIFT)).index, sets.index[0])


def groups_by_hand(ordering: Ordering, size: int) -> Tensor:
    """Frame by frame: free slots hold the voxel one group earlier, or of a short frame its own from the start."""
    rows = []
    for frame in ordering.order.split(ordering.counts.tolist()):
        n = len(frame)
        slots = torch.arange(-(-n // size) * size)
        earlier = slots - size if n > size else slots % max(n, 1)
        rows.append(frame[torch.where(slots < n, slots, earlier)].view(-1, size))
    return torch.cat(rows)


@pytest.mark.parametrize("name", SCENES)
def test_equal_groups_equal_those_made_frame_by_frame(name: str) -> None:
    voxels = scene(name).voxels
    for order, size in ((ZOrder(), 69), (WindowX(WINDOW), 1), (Hilbert(), 4096)):
        ordering = order(voxels)
        groups = equal_groups(ordering, size, masked=True)
        assert torch.equal(groups.index, groups_by_hand(ordering, size))
        assert torch.equal(groups.index.flatten()[groups.inverse], torch.arange(len(voxels)))
        assert_permutation(groups.index[groups.valid], len(voxels))


@pytest.mark.parametrize("name", SCENES)
def test_octree_windows_hold_one_frame_each(name: str) -> None:
    voxels = scene(name).voxels
    ordering, batch = ZOrder()(voxels), voxels.coords[:, 0].long()
    for size, dilation in ((1, 1), (32, 1), (24, 4)):
        groups = octree_windows(ordering, size, dilation)
        assert torch.equal(groups.index.flatten()[groups.inverse], torch.arange(len(voxels)))
        assert_permutation(groups.index[groups.valid], len(voxels))
        assert torch.equal(groups.owner[groups.valid], batch[groups.index[groups.valid]])
        assert bool((groups.owner[~groups.valid] == voxels.batch_size).all())
        blocks = -(-ordering.counts // (size * dilation))
        assert len(groups.index) == int(blocks.sum()) * dilation


@pytest.mark.parametrize("name", SCENES)
def test_partitions_take_every_order(name: str) -> None:
    here = scene(name)
    voxels = here.voxels
    for order in (WindowX(WINDOW), LSH(), Hilbert()):
        for partition in (EqualGroups(50), OctreeWindows(16), SetsOfWindows(here.set_size)):
            plan = partition(voxels, order)
            assert torch.equal(plan.index.flatten()[plan.inverse], torch.arange(len(voxels)))
        segments = Windows()(voxels, order)
        assert_permutation(segments.order, len(voxels))
        assert torch.equal(segments.order[segments.inverse], torch.arange(len(voxels)))
        assert int(segments.offsets[0]) == 0
        assert int(segments.offsets[-1]) == len(voxels)
    segments = Windows()(voxels, WindowX(WINDOW))
    owner = torch.repeat_interleave(segments.offsets.diff())
    assert len(segments.offsets) - 1 == len(torch.unique(here.window))
    assert len(torch.unique(torch.stack([owner, here.window[segments.order]]), dim=1).T) == len(segments.offsets) - 1


@pytest.mark.parametrize("name", SMALL)
def test_octrees_find_the_neighbours_that_there_are(name: str) -> None:
    here = scene(name)
    coords, grid, frames = here.coords, here.grid, here.frames
    depth = curve_depth(grid)
    sorted_rows = serialize(coords, grid, "zorder").argsort()
    cells = coords[sorted_rows]
    centres = (cells[:, 1:].flip(1) + 0.5) / (1 << depth - 1) - 1.0
    octree = build_octree(centres.split(torch.bincount(cells[:, 0], minlength=frames).tolist()), depth)
    assert torch.equal(octree.coords(depth), cells)
    rows = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    steps = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    expected = [[rows.get((b, z + dz, y + dy, x + dx), -1) for dx, dy, dz in steps] for b, z, y, x in cells.tolist()]
    assert octree.table(depth).tolist() == expected


@pytest.mark.parametrize("name", SCENES)
def test_neighbour_tables_of_keys(name: str) -> None:
    coords, grid = scene(name).coords, scene(name).grid
    key = ((coords[:, 0].long() * 4 + coords[:, 1]) * (grid[1] + 2) + coords[:, 2]) * (grid[2] + 2) + coords[:, 3]
    shifts = torch.tensor([-1, 0, 1, grid[2] + 2])
    rows = {k: i for i, k in enumerate(key.tolist())}
    expected = [[rows.get(k + s, -1) for s in shifts.tolist()] for k in key[:2000].tolist()]
    assert neighbour_table(key, shifts)[:2000].tolist() == expected


def values_of(rows: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def assert_same_with_gradients(
    op: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor]
) -> Tensor:
    """The results, and the gradients of their sum under random weights in every input; returns the result."""
    outputs, gradients = [], []
    for function in (op, reference):
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = function(*leaves)
        weights = values_of(*out.shape, seed=1)
        outputs.append(out.detach())
        if out.requires_grad:
            gradients.append(torch.autograd.grad(out, leaves, weights, allow_unused=True, materialize_grads=True))
        else:  # a reference that has nothing to do
            assert function is reference
            assert out.numel() == 0
            gradients.append([torch.zeros_like(t) for t in inputs])
    torch.testing.assert_close(*outputs)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    return outputs[0]


def reduced_by_sorting(values: Tensor, index: Tensor, segments: int, kind: str) -> Tensor:
    """Segments as rows of a padded table."""
    counts = torch.bincount(index, minlength=segments)
    order = index.argsort(stable=True)
    place = torch.arange(len(index)) - (counts.cumsum(0) - counts)[index[order]]
    empty = {"max": -torch.inf, "min": torch.inf}.get(kind, 0.0)
    table = values.new_full((segments, max(int(counts.max()) if segments else 0, 1), values.shape[1]), empty)
    table = table.index_put((index[order], place), values[order])
    if kind in ("sum", "mean"):
        return table.sum(1) / (counts.clamp(min=1)[:, None] if kind == "mean" else 1)
    return torch.where(counts[:, None] > 0, table.amax(1) if kind == "max" else table.amin(1), 0.0)


@pytest.mark.parametrize("name", SCENES)
def test_reductions_and_softmax_inside_windows(name: str) -> None:
    window = scene(name).window * 2  # every other segment has no rows
    segments = 2 * (int(window.max()) + 1 if len(window) else 1)
    values = values_of(len(window), 3)
    for kind in ("sum", "mean", "max", "min"):
        assert_same_with_gradients(
            lambda v, kind=kind: segment_reduce(v, window, segments, kind),
            lambda v, kind=kind: reduced_by_sorting(v, window, segments, kind),
            [values],
        )

    def softmax(v: Tensor) -> Tensor:
        raised = v.exp()
        return raised / reduced_by_sorting(raised, window, segments, "sum")[window]

    shares = assert_same_with_gradients(lambda v: segment_softmax(v, window, segments), softmax, [values])
    if name == "300,000 windows":
        assert len(window) == MANY
        torch.testing.assert_close(shares, torch.ones_like(shares))


@pytest.mark.parametrize("name", SCENES)
def test_linear_attention_inside_windows(name: str) -> None:
    segments = Windows()(scene(name).voxels, WindowX(WINDOW))
    rows = [values_of(len(segments.order), 2, 3, seed=seed) for seed in range(3)]
    inputs = [rows[0].abs(), rows[1].abs(), rows[2]]
    y = assert_same_with_gradients(
        lambda *qkv: scattered_linear_attention(*qkv, segments.offsets),
        lambda *qkv: scattered_linear_attention_reference(*qkv, segments.offsets),
        inputs,
    )
    q, k, v = inputs
    if name in ("one voxel", "one voxel a window", "300,000 windows"):
        same = (q * k).sum(-1, keepdim=True)
        torch.testing.assert_close(y, same * v / (same + 1e-6))
    for first, last in list(zip(segments.offsets[:-1].tolist(), segments.offsets[1:].tolist(), strict=True))[:100]:
        weight = torch.einsum("ihd,jhd->ihj", q[first:last], k[first:last])
        expected = torch.einsum("ihj,jhd->ihd", weight, v[first:last]) / (weight.sum(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(y[first:last], expected)


@pytest.mark.parametrize(
    ("rows", "outputs"), [(0, 0), (4, 0), (0, 3), (1, 1), (512, 512), (MANY, MANY)], ids=lambda n: str(n)
)
def test_convolution_over_tables(rows: int, outputs: int) -> None:
    features, weights = values_of(rows, 3), values_of(4, 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    columns = [torch.randperm(max(rows, outputs), generator=generator)[:outputs] for _ in range(3)]
    table = torch.stack([*columns, torch.full((outputs,), -1)], 1)  # a cell of the kernel that nobody has
    table[table >= rows] = -1
    assert_same_with_gradients(
        lambda x, w: octree_depthwise_conv(x, w, table),
        lambda x, w: octree_depthwise_conv_reference(x, w, table),
        [features, weights],
    )


# (sequences, steps): nothing in two ways, one step, one step in each of many, all in one, 64 short ones.
SEQUENCES = [(0, 5), (3, 0), (1, 1), (MANY, 1), (1, 300), (64, 7)]
DIRECTED = [*((*sizes, False) for sizes in SEQUENCES), (1, 300, True), (64, 7, True)]


@pytest.mark.parametrize(("batch", "length", "reverse"), DIRECTED)
def test_selective_scans(batch: int, length: int, reverse: bool) -> None:
    shape, states = (batch, 2, length), (batch, 3, length)
    u, delta, z = (values_of(*shape, seed=seed) for seed in range(3))
    B, C = (values_of(*states, seed=seed) for seed in (3, 4))
    A, D, bias = -values_of(2, 3, seed=5).abs(), values_of(2, seed=6), values_of(2, seed=7)
    assert_same_with_gradients(
        lambda *inputs: selective_scan(*inputs, delta_softplus=True, reverse=reverse),
        lambda *inputs: selective_scan_reference(*inputs, delta_softplus=True, reverse=reverse),
        [u, delta, A, B, C, D, z, bias],
    )


@pytest.mark.parametrize(("batch", "length", "reverse"), DIRECTED)
def test_causal_convolutions(batch: int, length: int, reverse: bool) -> None:
    inputs = [values_of(batch, 2, length), values_of(2, 4, seed=1), values_of(2, seed=2)]
    assert_same_with_gradients(
        lambda *xwb: causal_conv1d(*xwb, "silu", reverse),
        lambda *xwb: causal_conv1d_reference(*xwb, "silu", reverse),
        inputs,
    )


@pytest.mark.parametrize(("batch", "length", "reverse"), DIRECTED)
def test_wkv_recurrences(batch: int, length: int, reverse: bool) -> None:
    rows = [values_of(batch, length, 1, 2, seed=seed) for seed in range(4)]
    assert_same_with_gradients(
        lambda *inputs: wkv(*inputs, reverse=reverse),
        lambda *inputs: wkv_reference(*inputs, reverse=reverse),
        [*rows, values_of(1, 2, seed=4)],
    )


@pytest.mark.parametrize(("batch", "length"), SEQUENCES)
def test_retention_and_matrix_lstm(batch: int, length: int) -> None:
    rows = [values_of(batch, length, 1, 2, seed=seed) for seed in range(3)]
    decay = torch.tensor([0.9], dtype=torch.float64)
    assert_same_with_gradients(lambda *qkv: retention(*qkv, decay), lambda *qkv: retention_reference(*qkv, decay), rows)
    gates = [values_of(batch, length, 1, seed=seed) for seed in (3, 4)]
    assert_same_with_gradients(mlstm, mlstm_reference, [*rows, *gates])
