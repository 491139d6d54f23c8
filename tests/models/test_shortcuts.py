"""What inference computes on a shorter way equals what the plain modules compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pcdet_ext
from pcdet_ext.models.bev.residual import ResidualBlock
from pcdet_ext.models.bev.second import ConvUnit
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS, CenterHead
from pcdet_ext.models.heads.center import Candidates, CenterOutput
from pcdet_ext.models.heads.shortcuts import detected
from pcdet_ext.models.layers.cells import convolve_at
from pcdet_ext.models.layers.folding import ScaleAndShift, folded
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.winograd import WinogradConv2d
from pcdet_ext.structures import Detections, PointBatch

CLASSES = ("car", "bus", "walker")
SHALLOW = {"center": 1, "center_z": 2, "dim": 3, "rot": 2}
OVERLAP = {"center": 2, "center_z": 2, "dim": 2, "rot": 2, "vel": 2, "iou": 2}
TASKS = [["car"], ["bus", "walker"]]


def seen_statistics(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, its batch norms with statistics and parameters as after a training."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            parts = ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight, 0.5), (layer.bias, -0.5))
            for values, low in parts[: 4 if layer.affine else 2]:
                values.data.copy_(torch.rand(values.shape, generator=generator) + low)
    return module.eval()


def chain(channels: int, convolutions: int, width: int, out: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for _ in range(convolutions - 1):
        norm = nn.BatchNorm2d(width)
        blocks.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), norm, nn.ReLU()))
        channels = width
    return nn.Sequential(*blocks, nn.Conv2d(channels, out, 3, padding=1))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 12),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_convolutions_at_cells_are_those_of_the_map(frames, height, width, number, depths, channels_last, seed) -> None:
    torch.manual_seed(seed)
    chains = [seen_statistics(chain(3, depth, 4, 2)) for depth in depths]
    maps = torch.randn(frames, 3, height, width)
    maps = maps.contiguous(memory_format=torch.channels_last) if channels_last else maps
    cells = torch.randint(frames * height * width, (number,))
    with torch.no_grad():
        for values, whole in zip(convolve_at(chains, maps, cells), [c(maps) for c in chains], strict=True):
            torch.testing.assert_close(values, whole.permute(0, 2, 3, 1).reshape(-1, 2)[cells], atol=1e-5, rtol=1e-5)


def test_convolutions_other_than_plain_ones_are_refused() -> None:
    cells, maps = torch.tensor([0]), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="plain 3x3"):
        convolve_at([nn.Sequential(nn.Conv2d(3, 2, 3, 2, padding=1))], maps, cells)
    with pytest.raises(ValueError, match="begin with a convolution"):
        convolve_at([nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))], maps, cells)


def random_maps() -> Tensor:
    return torch.randn(2, 5, 80, 48, generator=torch.Generator().manual_seed(1))


def make_head(share: float = 0.0, **changes) -> CenterHead:
    """A head that scores a share of the cells of `random_maps` above 0.1, in each class."""
    torch.manual_seed(0)
    context = {"in_channels": 5, "classes": CLASSES, "point_cloud_range": (0.0, -12.0, -3.0, 24.0, 8.0, 1.0)}
    node = {"name": "CenterHead", "shared_channels": 8, "nms": {"iou_threshold": 0.3}} | changes
    head = HEADS.build(node, voxel_size=(0.5, 0.25, 4.0), stride=1, **context)
    head = seen_statistics(head)
    set_scores(head, random_maps(), share)
    return head


@torch.no_grad()
def set_scores(head: CenterHead, maps: Tensor, share: float) -> None:
    """Let a head score a share of the cells of some maps above 0.1, in each class."""
    for task, found in zip(head.heads_list, head(maps).tasks, strict=True):
        logits = found.heatmap.transpose(0, 1).flatten(1)
        bar = logits.quantile(1 - share, dim=1) + 1e-3 * (share == 0)
        scale = 5 / logits.std(1)
        task.hm[-1].weight *= scale[:, None, None, None]
        task.hm[-1].bias.copy_((task.hm[-1].bias - bar) * scale - 2.1972)


def whole_maps(head: CenterHead, maps: Tensor) -> list[Detections]:
    return head.decode(head(maps))


def assert_same(found: Sequence[Detections], expected: Sequence[Detections]) -> None:
    """The same detections, whatever the order of those whose scores are equal up to rounding."""
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine.boxes) == len(theirs.boxes)
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-4, rtol=0)
        rows = [torch.cat([d.boxes, d.scores[:, None], d.labels[:, None]], 1) for d in (mine, theirs)]
        same = torch.isclose(rows[0][:, None], rows[1], atol=1e-4, rtol=1e-4).all(2)
        assert same.any(0).all()
        assert same.any(1).all()


@pytest.mark.parametrize("share", [0.0, 0.002, 0.05, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"branches": SHALLOW, "tasks": TASKS, "heatmap_convs": 3},
        {"branches": OVERLAP, "iou_rectifier": [0.6, 0.7, 0.5], "max_candidates": 40},
        {"branches": OVERLAP, "iou_power": 2.0, "branch_channels": 6},
        {"branches": OVERLAP, "iou_power": [0.5, 1.5, 0.3], "tasks": TASKS},
        {"branches": OVERLAP, "iou_power": [-1.0, 0.5, 0.5]},
        {"upsample": 2, "conv_bias": True, "center_range": [1.0, -7.0, -9.0, 23.0, 7.0, 9.0]},
        {"score_threshold": -1.0, "max_candidates": 10},
    ],
)
def test_the_short_way_of_the_center_head_finds_the_same(changes, share) -> None:
    head, maps = make_head(share, **changes), random_maps()
    found = head.predict(maps)
    assert_same(found, whole_maps(head, maps))
    assert share == 0 or all(len(frame.boxes) for frame in found)


def test_peaks_at_the_border_are_found_on_the_short_way() -> None:
    head = make_head()
    for task in head.heads_list:  # the heatmap shows one channel of the shared features
        task.hm = nn.Sequential(nn.Conv2d(8, 3, 3, padding=1))
        nn.init.zeros_(task.hm[0].weight)
        nn.init.constant_(task.hm[0].bias, -20.0)
        task.hm[0].weight.data[0, 0, 1, 1] = 1.0
    shared = torch.zeros(1, 8, 80, 48)
    for place in ((0, 0), (0, 47), (79, 0), (79, 47), (40, 0), (0, 20)):
        shared[0, 0, place[0], place[1]] = 25.0
    shared[0, 1:] = torch.randn(7, 80, 48)
    head.shared_conv = nn.Sequential(Constant(shared))
    found = head.predict(random_maps())
    assert len(found[0].boxes) == 6
    assert_same(found, whole_maps(head, random_maps()))


class Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


def test_the_short_way_leaves_the_branches_alone_and_training_is_refused() -> None:
    head, called = make_head(0.002, branches=OVERLAP, iou_power=2.0), []
    for name, _ in head.heads_list[0].named_children():
        getattr(head.heads_list[0], name).register_forward_hook(lambda *_, name=name: called.append(name))
    found = head.predict(random_maps())
    assert len(found[0].boxes)
    assert called == ["hm"]
    with pytest.raises(ValueError, match="call eval"):
        head.train().predict(torch.zeros(1, 5, 80, 48))


class Twice(nn.Module):
    """One linear layer with two norms in turn, and a declared pair."""

    normed = (("linear", "first"), ("linear", "second"), ("alone", "third"))

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.first, self.second = nn.Linear(4, 4), SparseBatchNorm(4), SparseBatchNorm(4)
        self.alone, self.third = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.alone(self.second(self.linear(self.first(self.linear(x))))))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU()], (2, 4, 9, 8)),
        ([nn.ConvTranspose2d(4, 6, 2, 2, bias=False), nn.BatchNorm2d(6)], (2, 4, 5, 3)),
        ([nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)], (2, 4, 5, 3)),  # keeps its norm
        ([nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6)], (2, 4, 5)),
        ([nn.Linear(4, 6, bias=False), SparseBatchNorm(6), nn.ReLU()], (7, 4)),
        ([nn.BatchNorm1d(4), nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)], (7, 4)),  # nothing to fold
        ([Twice()], (7, 4)),
    ],
)
def test_layers_with_folded_norms_give_the_same(layers, shape) -> None:
    torch.manual_seed(0)
    model, x = seen_statistics(nn.Sequential(*layers)), torch.randn(shape)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    torch.testing.assert_close(folded(model)(x), model(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_norm_is_folded_where_its_layer_has_no_other() -> None:
    kinds = [type(layer) for layer in folded(nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.ReLU()))]
    assert kinds == [nn.Conv2d, nn.Identity, nn.ReLU]
    twice = folded(Twice())
    assert isinstance(twice.first, SparseBatchNorm)
    assert isinstance(twice.third, nn.Identity)


def used_twice() -> nn.Module:
    linear = nn.Linear(4, 4)
    return nn.Sequential(linear, nn.BatchNorm1d(4), nn.ReLU(), linear)


def used_by_two_parents() -> nn.Module:
    first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    return nn.Sequential(first, nn.Sequential(first[0], nn.ReLU()))


def hooked(part: int, before: bool) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    if before:
        layers[part].register_forward_pre_hook(lambda _, inputs: (inputs[0].abs(),))
    else:
        layers[part].register_forward_hook(lambda _, inputs, output: output.abs())
    return layers


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))


def spectral_normed_by_hook() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    "make",
    [
        used_twice,
        used_by_two_parents,
        *(partial(hooked, part, before) for part in (0, 1) for before in (False, True)),
        weight_normed,
        spectral_normed_by_hook,
    ],
)
def test_norms_stay_behind_layers_that_do_more_than_their_weights_say(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = seen_statistics(make()), torch.randn(7, 4)
    copy = folded(model)
    torch.testing.assert_close(copy(x), model(x), atol=1e-5, rtol=1e-5)
    assert any(isinstance(module, nn.BatchNorm1d) for module in copy.modules())


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_of_maps_become_faster_ones_with_what_is_behind(stride: int) -> None:
    model = seen_statistics(nn.Sequential(ResidualBlock(16, 32, stride, downsample=True), ConvUnit(32, 16)))
    copy, x = folded(model), torch.randn(2, 16, 22, 37)
    kinds = Counter(type(layer) for layer in copy.modules())
    assert kinds[WinogradConv2d] == (3 if stride == 1 else 2)
    assert kinds[nn.ReLU] == kinds[nn.BatchNorm2d] == 0
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(copy.double()(x.double()), model.double()(x.double()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_of_maps_that_stay_become_scale_and_shift(dtype: torch.dtype, layout: torch.memory_format) -> None:
    norm = seen_statistics(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)))
    x = torch.randn(2, 6, 5, 7, dtype=dtype).contiguous(memory_format=layout)
    copy = folded(norm)
    assert isinstance(copy[1], ScaleAndShift)
    y, expected = copy(x), norm.to(torch.float64)(x.double())
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.double(), expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolutions_of_single_cells_become_plain_ones(bias: bool) -> None:
    kinds = ({"kernel_size": 1}, {"kernel_size": 2, "stride": 2}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1})
    groups = (1, 1, 1, 2)
    layers = [nn.ConvTranspose2d(6, 6, bias=bias, groups=g, **kind) for g, kind in zip(groups, kinds, strict=True)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 6, 5, 7)
    copy = folded(model)
    assert [type(layer) for layer in copy] == [nn.Conv2d, *[nn.ConvTranspose2d] * 3]
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model(x), atol=1e-5, rtol=1e-5)


def test_observed_layers_stay_in_their_places() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    for layer in model[1:]:
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    copy = folded(model)
    assert [type(layer) for layer in copy] == [WinogradConv2d, nn.ReLU, nn.Conv2d]
    x = torch.randn(1, 16, 9, 9)
    for each in (model, copy):
        each(x)
    torch.testing.assert_close(seen[:2], seen[2:], atol=1e-5, rtol=1e-5)


def test_cells_of_a_chain_of_faster_convolutions() -> None:
    plain = seen_statistics(chain(16, 3, 16, 16))
    maps, cells = torch.randn(1, 16, 40, 40), torch.tensor([0, 39, 777, 1599])
    with torch.no_grad():
        (values,) = convolve_at([folded(plain)], maps, cells)
        torch.testing.assert_close(values, plain(maps)[0].flatten(1).T[cells], atol=1e-5, rtol=1e-5)


def test_layers_that_share_their_parameters_alone_are_folded_each_for_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    x = torch.randn(7, 4)
    torch.testing.assert_close(folded(seen_statistics(model))(x), model(x), atol=1e-5, rtol=1e-5)
    assert isinstance(folded(model)[1], nn.Identity)


@pytest.mark.parametrize("num_filters", [[8], [8, 6], [8, 4, 6]])
@pytest.mark.parametrize("use_norm", [True, False])
def test_point_layers_equal_their_definition(num_filters, use_norm) -> None:
    torch.manual_seed(0)
    geometry = {"point_cloud_range": (0.0, -4.0, -3.0, 8.0, 4.0, 1.0), "voxel_size": (2.0, 2.0, 4.0)}
    node = {"name": "DynamicPillarVFE", "num_filters": num_filters, "use_norm": use_norm}
    encoder = seen_statistics(ENCODERS.build(node, in_channels=4, **geometry))
    for layer in encoder.pfn_layers:  # some channels fall where others rise
        if layer.norm is not None:
            layer.norm.weight.data[::2] *= -1
    rows, index = torch.randn(50, 10), torch.randint(12, (50,)).unique(return_inverse=True)[1]
    count = int(index.max()) + 1
    expected, pooled = rows, rows
    for layer in encoder.pfn_layers:
        expected = layer.linear(expected)
        expected = torch.relu(expected if layer.norm is None else layer.norm(expected))
        pooled = torch.stack([expected[index == voxel].amax(0) for voxel in range(count)])
        expected = torch.cat([expected, pooled[index]], 1)
    torch.testing.assert_close(encoder._run(rows, index, count), pooled, atol=1e-5, rtol=1e-5)


SMALL = "data.point_cloud_range=[0,-9.6,-3,19.2,9.6,1]"


@pytest.mark.parametrize(
    "name", ["pointpillars", "centerpoint_pillar", "flatformer", "dsvt", "scatterformer", "second", "lion_mamba"]
)
def test_an_optimized_detector_finds_the_same(name) -> None:
    torch.manual_seed(0)
    detector = pcdet_ext.build(f"kitti/{name}", [SMALL], device="cpu")
    seen_statistics(detector.model)
    clouds = [cloud(3000, 1), cloud(0, 2), cloud(1, 3), cloud(500, 4)]
    batch = PointBatch.from_points([clouds[0], clouds[3]])
    if isinstance(detector.model.head, CenterHead):
        with torch.no_grad():
            set_scores(detector.model.head, detector.model.bev_map(batch), 0.003)
    faster = detector.optimize()
    norms = [sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in d.model.modules()) for d in (detector, faster)]
    assert norms[1] < norms[0]
    with torch.no_grad():
        models = (faster.model, detector.model, deepcopy(detector.model).double())
        outputs = [[model.bev_map(batch), *_tensors(model(batch))] for model in models]
    for mine, theirs, exact in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        assert _distance(mine, exact) <= 2 * _distance(theirs, exact)
    found = faster.detect(clouds, batch_size=2)
    if isinstance(detector.model.head, CenterHead):
        assert len(found[0].boxes)
        assert_same(found, detector.detect(clouds, batch_size=2))
    assert len(found[1].boxes) == 0


def _distance(values: Tensor, exact: Tensor) -> Tensor:
    """Root of the mean squared rounding, and at least half a unit in the last place of float32."""
    return torch.maximum((values - exact).square().mean(), exact.square().mean() * 2.0**-48).sqrt()


def _tensors(output: object) -> list[Tensor]:
    """All tensors in a head's output."""
    if isinstance(output, Tensor):
        return [output]
    parts = output if isinstance(output, tuple) else vars(output).values() if hasattr(output, "__dict__") else []
    return [tensor for part in parts for tensor in _tensors(part)]


class Shouting(CenterHead):
    """A head of a user, who does more with the output."""

    def decode(self, output: CenterOutput) -> list[Detections]:
        return [replace(found, frame_id="!") for found in super().decode(output)]


class Certain(CenterHead):
    """A head of a user, who scores the cells."""

    def candidates(self, output: CenterOutput) -> list[list[Candidates]]:
        found = super().candidates(output)
        return [[replace(frame, scores=torch.full_like(frame.scores, 2.0)) for frame in task] for task in found]


def test_the_long_way_is_taken_where_a_head_has_its_own_or_somebody_looks_on() -> None:
    head, maps, seen = make_head(0.002), random_maps(), []
    detected(head, maps)
    head.heads_list[0].center.register_forward_hook(lambda *_: seen.append("center"))
    assert len(detected(head, maps)[0].boxes)
    assert seen == ["center"]
    shouting = make_head(0.002)
    shouting.__class__ = Shouting
    assert [found.frame_id for found in detected(shouting, maps)] == ["!", "!"]
    certain = make_head(0.002)
    certain.__class__ = Certain
    for found in detected(certain, maps):
        assert len(found.scores)
        assert (found.scores == 2).all()


def cloud(points: int, seed: int) -> Tensor:
    """Points [N, 4] in the range of `SMALL`."""
    low, size = torch.tensor([0, -9.6, -3, 0]), torch.tensor([19.2, 19.2, 4, 1])
    return torch.rand(points, 4, generator=torch.Generator().manual_seed(seed)) * size + low
