"""Operations written with basic operators give what the kernels give."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.export import basics, boxes, mixers, operators, sequences, voxels
from pcdet_ext.export.check import session
from pcdet_ext.export.inlining import inline
from pcdet_ext.export.operators import DOMAIN
from pcdet_ext.export.recording import recording
from pcdet_ext.export.writes import RecordingError
from pcdet_ext.mixers.ttt import ttt_linear
from pcdet_ext.models.layers.depthwise_conv import DepthwiseSubMConv3d
from pcdet_ext.models.layers.sparse_conv import SparseConv3d, SubMConv3d
from pcdet_ext.ops import (
    dynamic_voxelize,
    iou_bev_paired,
    nms,
    rotated_sets,
    scattered_linear_attention,
    segment_reduce,
    selective_scan,
    serialize,
    voxelize,
    wkv,
)
from pcdet_ext.structures import SparseVoxels

RANGE, SIZE = (0.0, -4.0, -2.0, 8.0, 4.0, 2.0), (0.5, 0.25, 1.0)


def some_boxes(count: int, seed: int) -> Tensor:
    """Boxes [count, 7] that overlap often; some the same, some quarter turns, some of no size or not finite."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 7, generator=generator) * torch.tensor([6, 6, 1, 4, 2, 2, 7.0])
    if count > 8:
        found[1] = found[0]
        found[2, 6] = found[0, 6] + torch.pi / 2
        found[2, :6] = found[0, [0, 1, 2, 4, 3, 5]]
        found[3, 3] = 0
        found[4, 0] = torch.nan
    return found


@pytest.mark.parametrize("limits", [(None, None), (30, 5)])
@pytest.mark.parametrize("kind", ["rotated", "axis_aligned", "circle"])
def test_nms_in_onnxruntime(kind: str, limits: tuple[int | None, int | None]) -> None:
    """The boxes that the kernel keeps, for numbers of boxes below and above one round of comparisons."""
    for threshold in (0.0, 0.1, 0.7):
        form = in_onnxruntime(
            lambda b, s: boxes.nms(b, s, threshold, kind, *limits),  # noqa: B023
            (some_boxes(20, 0), torch.rand(20)),
        )
        for count in (0, 1, 9, 40, 300):
            for area in (1.0, 25.0):  # everything overlaps, and hardly anything
                found = some_boxes(count, count) * torch.tensor([area, area, 1, 1, 1, 1, 1])
                scores = torch.randint(0, 20, (count,), generator=torch.Generator().manual_seed(count)) / 20
                scores[3:5] = torch.nan
                expected = nms(found, scores, threshold, kind, *limits)  # type: ignore[arg-type]
                assert form(found, scores).tolist() == expected.tolist()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_overlap(seed: int) -> None:
    a, b = some_boxes(60, seed).double().chunk(2)
    torch.testing.assert_close(boxes.overlap(a, b), iou_bev_paired(a, b), rtol=0, atol=1e-9)
    torch.testing.assert_close(boxes.overlap(a, a), iou_bev_paired(a, a), rtol=0, atol=1e-9)


def test_published_overlap_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="published"):
        boxes.nms(some_boxes(3, 0), torch.rand(3), 0.1, published=True)


@given(st.integers(0, 60), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_voxels(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 4, generator=generator) * torch.tensor([9, 9, 5, 1.0]) - torch.tensor([0.5, 4.5, 2.5, 0])
    points[:, :2] = (points[:, :2] / 2).round() * 2 if seed % 2 else points[:, :2]
    for caps in ((5, 100), (2, 3)):
        for mine, expected in zip(
            voxels.voxelize(points, RANGE, SIZE, *caps), voxelize(points, RANGE, SIZE, *caps), strict=True
        ):
            torch.testing.assert_close(mine, expected, check_dtype=False)
    frame = torch.zeros(count, dtype=torch.int64)
    for options in (("zyx", False), ("xyz", False), ("zyx", True)):
        expected = dynamic_voxelize(points, frame, RANGE, SIZE, *options)
        for mine, known in zip(voxels.dynamic_voxelize(points, frame, RANGE, SIZE, *options), expected, strict=True):
            torch.testing.assert_close(mine, known)


@given(st.lists(st.integers(-1, 6), max_size=30), st.sampled_from(["sum", "mean", "max", "min"]))
@settings(max_examples=30, deadline=None)
def test_segments(index: list[int], reduce: str) -> None:
    values, places = torch.randn(len(index), 3), torch.tensor(index, dtype=torch.int64)
    torch.testing.assert_close(
        basics.segment_reduce(values, places, 7, reduce),
        segment_reduce(values, places, 7, reduce),  # type: ignore[arg-type]
    )


@given(st.lists(st.integers(0, 9), max_size=20))
@settings(max_examples=30, deadline=None)
def test_unique_and_repeats(numbers: list[int]) -> None:
    values = torch.tensor(numbers, dtype=torch.int64)
    for mine, expected in zip(
        basics.unique(values), torch.unique(values, return_inverse=True, return_counts=True), strict=True
    ):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(basics.repeat_each(values + 1), torch.repeat_interleave(values + 1))


def voxels_on(grid: tuple[int, int, int], count: int, channels: int, seed: int) -> SparseVoxels:
    """Voxels of one frame at random places, in any order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(grid[0] * grid[1] * grid[2], generator=generator)[:count]
    z, y, x = cells // (grid[1] * grid[2]), cells // grid[2] % grid[1], cells % grid[2]
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1).int()
    return SparseVoxels(torch.randn(len(cells), channels, generator=generator), coords, grid, 1)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_sparse_convolutions(count: int) -> None:
    torch.manual_seed(0)
    found = voxels_on((4, 8, 10), count, 6, 0)
    layers = [SubMConv3d(6, 5, (3, 3, 1)), SparseConv3d(6, 5, 3, 2, 1), SparseConv3d(6, 5, (3, 1, 1), (2, 1, 1))]
    layers.append(SparseConv3d(6, 5, 3, 2, 1, first_seen=True))
    for layer in layers:
        expected = layer(found)
        with recording(layer):
            mine = layer(SparseVoxels(found.features, found.coords, found.grid, 1))
        torch.testing.assert_close(mine.coords, expected.coords)
        torch.testing.assert_close(mine.features, expected.features)
    layer = DepthwiseSubMConv3d(6, (1, 5, 3))
    torch.nn.init.normal_(layer.weight)
    expected = layer(found, found.features)
    with recording(layer):
        mine = layer(SparseVoxels(found.features, found.coords, found.grid, 1), found.features)
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("count", [0, 1, 70])
@pytest.mark.parametrize("path", ["rows", "snake"])
def test_orders_and_sets(count: int, path: str) -> None:
    found = voxels_on((1, 20, 18), count, 4, 1)
    for order in ("window_x", "window_y"):
        options = {"window": (1, 5, 6), "shift": (0, 2, 3), "path": path}
        mine = sequences.serialize(found.coords, found.grid, order, **options)
        assert mine.argsort().tolist() == serialize(found.coords, found.grid, order, **options).argsort().tolist()
    mine = sequences.rotated_sets(found.coords, found.grid, 1, (1, 5, 6), (0, 2, 3), 8)
    expected = rotated_sets(found.coords, found.grid, 1, (1, 5, 6), (0, 2, 3), 8)
    assert mine.index.tolist() == expected.index.tolist()
    assert mine.repeats.tolist() == expected.repeats.tolist()
    assert mine.inside.tolist() == expected.inside.tolist()
    for slots, index in zip(mine.slot, mine.index, strict=True):
        assert index.flatten()[slots].tolist() == list(range(count))
    with pytest.raises(NotImplementedError, match="octree"):
        sequences.serialize(found.coords, found.grid, "octree")


@pytest.mark.parametrize("grid", [(1, 20, 18), (5, 700, 33), (40, 1504, 1500)])
def test_curves_and_buckets_in_onnxruntime(grid: tuple[int, int, int]) -> None:
    """The same keys as the kernels', bit for bit, in what onnxruntime makes of the graph."""
    generator = torch.Generator().manual_seed(0)
    cells = (torch.rand(500, 3, generator=generator) * torch.tensor(grid)).int()
    coords = torch.cat([torch.zeros_like(cells[:, :1]), cells], 1)
    coords[-1, 1:] = torch.tensor(grid) - 1
    for order, options in (
        ("hilbert", {}),
        ("hilbert", {"depth": 16}),
        ("zorder", {}),
        ("zorder", {"lowest": "x"}),
        ("lsh", {"projections": 2, "width": 6.0, "seed": 3, "border_shift": 0.25}),
        ("lsh", {}),
    ):
        mine = run_in_onnxruntime(lambda c: sequences.serialize(c, grid, order, **options), (coords,))  # noqa: B023
        assert torch.equal(mine, serialize(coords, grid, order, **options)), (order, options)


def test_steps_of_an_inner_model_in_onnxruntime() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 20, 2, 4) for _ in range(3))
    arguments = (q, k, v, torch.rand(8), torch.rand(3, 20, 2))
    inner = (torch.randn(2, 4, 4), torch.randn(2, 1, 4), torch.rand(2, 4), torch.randn(2, 4))
    torch.testing.assert_close(
        run_in_onnxruntime(lambda *a: ttt_linear(*a, *inner), arguments), ttt_linear(*arguments, *inner)
    )


@pytest.mark.parametrize("lengths", [[], [1], [70, 3, 64, 130]])
def test_linear_attention(lengths: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.rand(sum(lengths), 2, 4) for _ in range(3))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    expected = scattered_linear_attention(q, k, v, offsets)
    torch.testing.assert_close(mixers.scattered_linear_attention(q, k, v, offsets), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_in_onnxruntime(reverse: bool) -> None:
    torch.manual_seed(0)
    u, delta, z = (torch.randn(3, 6, 20) for _ in range(3))
    arguments = (u, delta, -torch.rand(6, 4), torch.randn(3, 4, 20), torch.randn(3, 4, 20), torch.randn(6), z)
    options = {"delta_bias": torch.randn(6), "delta_softplus": True, "reverse": reverse}
    torch.testing.assert_close(
        run_in_onnxruntime(lambda *a: mixers.selective_scan(*a, **options), arguments),
        selective_scan(*arguments, **options),
    )
    rows = [torch.randn(3, 20, 2, 4) for _ in range(4)]
    bonus = torch.randn(2, 4)
    for arguments in ((*rows, bonus), tuple(rows)):
        torch.testing.assert_close(
            run_in_onnxruntime(lambda *a: mixers.wkv(*a, reverse=reverse), arguments),
            wkv(*arguments, reverse=reverse),
        )


def _or(y: Tensor) -> Tensor:
    y |= 4
    return y


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda y: y.index_copy_(0, torch.tensor([1, 3]), y[:2] + 1), r"index_copy_ .*: write y = y.index_copy\("),
        (_or, r"__ior__ .*: write y = y \| x"),
        (lambda y: y.view(-1).add_(1), "add_ writes in place into a view"),
        (lambda y: y.unbind(1)[0].fill_(0), "fill_ writes in place into a view"),
        (lambda y: y.transpose(0, 1).__setitem__(1, 3), "__setitem__ writes in place into a view"),
        (lambda y: torch.mul(y, 3, out=y), r"mul writes into `out`, .*: write y = mul\("),
        (lambda y: torch._foreach_add_([y], 1), "_foreach_add_ writes into a list of tensors"),
        (lambda y: torch.nn.init.constant_(y.view(-1), 3), "constant_ writes in place into a view"),
        (lambda y: y.index_put_((torch.tensor([1, 1]),), y[:2], accumulate=True), "accumulate=True is not recorded"),
        (lambda y: [y[1].add_(1).mul_(2)], "mul_ writes in place into a view that add_ wrote into before"),
    ],
)
def test_writes_that_a_graph_would_lose_are_refused(write: Callable[[Tensor], object], message: str) -> None:
    def written(x: Tensor) -> Tensor:
        y = x + 1
        write(y)
        return y

    with pytest.raises(RecordingError, match=message):
        run_in_onnxruntime(written, (torch.arange(24).view(6, 4),))


def _set(y: Tensor) -> None:
    y[1:, 2] = 9


@pytest.mark.parametrize(
    ("view", "write", "name"),
    [
        (lambda y: y.view(-1), _set, "__setitem__"),
        (lambda y: y[1], _set, "__setitem__"),
        (lambda y: y[1:3], lambda y: y.add_(1), "add_"),
        (lambda y: y.t(), lambda y: y.zero_(), "zero_"),
        (lambda y: y.unbind(0)[1], lambda y: y.mul_(2), "mul_"),
        (lambda y: y.detach(), lambda y: y.mul_(2), "mul_"),
        (lambda y: y.reshape(4, 6), lambda y: y.mul_(2), "mul_"),
        (lambda y: y[1:], lambda y: _set(y[1:]), "__setitem__"),
        (lambda y: y[1], lambda y: torch.relu_(y), "relu_"),
        (lambda y: y[1], lambda y: torch.nn.functional.relu(y, True), "relu with inplace=True"),
        (lambda y: y, lambda y: torch.nn.functional.relu(y[1], inplace=True), "relu with inplace=True"),
    ],
)
def test_what_shares_memory_with_a_write_is_not_read(
    view: Callable[[Tensor], Tensor], write: Callable[[Tensor], object], name: str
) -> None:
    """torch's tracer would keep the old values of another view, without a word."""

    def written(x: Tensor) -> Tensor:
        y = x - 9
        seen = view(y)
        write(y)
        return seen + 0

    with pytest.raises(RecordingError, match=f"add reads a tensor whose memory {name} wrote into by another name"):
        run_in_onnxruntime(written, (torch.arange(24).view(6, 4),))


def test_views_after_a_write_are_in_the_graph() -> None:
    def written(x: Tensor) -> Tensor:
        y = x + 1
        before = y.view(-1)
        length = len(before)
        y[1:3] += 2
        y = torch.nn.functional.relu(y - 8, inplace=True)
        return y.view(-1)[: length - 2] + y[1].sum()

    x = torch.arange(24).view(6, 4)
    assert torch.equal(run_in_onnxruntime(written, (x,)), written(x))


def test_other_writes_are_in_the_graph() -> None:
    def written(x: Tensor) -> Tensor:
        y = x + 1
        y[:, 1] = 0
        y[:, 2] += 5
        y[1][2:].zero_()
        y = y.index_copy(0, torch.tensor([0, 3]), y[1:3] - 7)
        return y.masked_fill_(y > 20, 3)

    x = torch.arange(24).view(6, 4)
    assert torch.equal(run_in_onnxruntime(written, (x,)), written(x))


def run_in_onnxruntime(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
    """What onnxruntime makes of a function's graph."""
    return in_onnxruntime(function, arguments)(*arguments)


def in_onnxruntime(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """A function's graph, recorded with some arguments, in onnxruntime; others may have other numbers of rows."""
    onnx = pytest.importorskip("onnx")

    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return function(*inputs)

    names = [f"input_{i}" for i in range(len(arguments))]
    operators.register(18)
    buffer = io.BytesIO()
    module = Module()
    with recording(module):
        torch.onnx.export(
            module,
            arguments,
            buffer,
            dynamo=False,
            opset_version=18,
            input_names=names,
            dynamic_axes={name: {0: name} for name in names},
            custom_opsets={DOMAIN: 1},
        )
    running = session(inline(onnx.load_from_string(buffer.getvalue()), 18), 1)

    def run(*given: Tensor) -> Tensor:
        return torch.from_numpy(
            running.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})[0]
        )

    return run
