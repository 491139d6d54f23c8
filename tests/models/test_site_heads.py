"""Heads on occupied cells: their targets by brute force, their layers against dense ones, and merged flips."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.models.heads import SparseCenterHead, VoxelNeXtHead
from pcdet_ext.models.heads.sites import Scored
from pcdet_ext.models.heads.voxelnext import COPIES, merged
from pcdet_ext.models.targets.heatmaps import gaussian_radius
from pcdet_ext.models.targets.sites import SiteAssigner, Sites
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

RANGE, VOXEL, MAP = [-4.0, -3.0, -2.0, 4.0, 3.0, 2.0], [0.5, 0.5, 4.0], (12, 16)
GEOMETRY = {"point_cloud_range": RANGE, "voxel_size": VOXEL, "stride": 1}


def voxels_on(seed: int, batch_size: int = 2, channels: int = 6, share: float = 0.3) -> SparseVoxels:
    """Occupied cells of small maps in a random order."""
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch_size, 1, *MAP, generator=generator) < share).nonzero().int()
    coords = coords[torch.randperm(len(coords), generator=generator)]
    features = torch.randn(len(coords), channels, generator=generator)
    return SparseVoxels(features, coords, (1, *MAP), batch_size)


def objects(seed: int, count: int, columns: int = 7) -> tuple[Tensor, Tensor]:
    """Boxes, some of them outside or without extent, and labels of three classes."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.rand(count, columns, generator=generator)
    box[:, :3] = box[:, :3] * 12 - 6
    box[:, 3:6] = box[:, 3:6] * 3 + 0.2
    box[:, 3][torch.rand(count, generator=generator) < 0.2] = 0.0
    return box, torch.randint(3, (count,), generator=generator)


def by_hand(assigner: SiteAssigner, sites: Sites, boxes: Tensor, labels: Tensor, task: list[int]) -> tuple:
    """Heatmap rows and slots (index, mask, code) of the first frame, object by object and site by site."""
    cells = [tuple(map(int, cell)) for cell in sites.cells[sites.rows[0]].tolist()]
    heat, slots = torch.zeros(len(cells), len(task)), []
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        if label not in task:
            continue
        empty = min(box[3:6]) <= 0
        if empty and assigner.around is None:
            continue
        if assigner.max_objects is not None and len(slots) == assigner.max_objects:
            break
        if empty:
            slots.append((0, False, None))
            continue
        limits = MAP if assigner.swapped_limits else MAP[::-1]
        center = [min(max((box[i] - assigner.origin[i]) / assigner.cell[i], 0), limits[i] - 0.5) for i in range(2)]
        start = [math.trunc(c) for c in center] if assigner.around is None else center
        size = [torch.tensor(box[3 + i] / assigner.cell[i]) for i in range(2)]
        radius = max(assigner.min_radius, int(gaussian_radius(*size, assigner.min_overlap)))
        distance = [sum((a - b) ** 2 for a, b in zip(cell, start, strict=True)) for cell in cells]
        best = min(range(len(cells)), key=lambda i: distance[i])
        variance = ((2 * radius * assigner.ratio + 1) / 6) ** 2
        for i, cell in enumerate(cells):
            if assigner.around is None:
                value = math.exp((distance[best] - distance[i]) / (2 * variance)) * (distance[i] <= 2 * radius**2)
            else:
                from_site = sum((a - b) ** 2 for a, b in zip(cell, cells[best], strict=True))
                of = {"center": distance[i], "nearest_site": from_site}
                value = max(math.exp(-of[name] / (2 * variance)) for name in assigner.around)
            channel = task.index(label)
            heat[i, channel] = max(float(heat[i, channel]), value)
        offset = [center[i] - cells[best][i] for i in range(2)]
        heading = [math.cos(box[6]), math.sin(box[6])]
        slots.append((best, True, [*offset, box[2], *(math.log(v) for v in box[3:6]), *heading, *box[7:]]))
    return heat, slots


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    around=st.sampled_from([None, ("center",), ("nearest_site",), ("center", "nearest_site")]),
    ratio=st.sampled_from([1.0, 0.5]),
    swapped=st.booleans(),
    most=st.sampled_from([None, 2]),
)
def test_targets_are_those_found_object_by_object(seed, around, ratio, swapped, most) -> None:
    voxels = voxels_on(seed, share=0.08)
    sites, (boxes, labels) = Sites.of(voxels), objects(seed, 9, 9)
    if not len(sites.rows[0]):
        return
    assigner = SiteAssigner(RANGE[:2], VOXEL[:2], 0.1, 2, most, around, ratio if around else 1.0, swapped)
    found = assigner(sites, [boxes, boxes[:0]], [labels, labels[:0]], [2, 0])
    heat, slots = by_hand(assigner, sites, boxes, labels, [2, 0])
    torch.testing.assert_close(found.heatmap[sites.rows[0]], heat, rtol=1e-4, atol=1e-6)
    assert not found.heatmap[sites.rows[1]].any()
    assert not found.mask[1].any()
    assert found.mask[0].tolist() == [used for _, used, _ in slots]
    for k, (index, used, code) in enumerate(slots):
        if used:
            assert found.index[0, k] == index
            assert found.site[0, k] == sites.rows[0][index]
            torch.testing.assert_close(found.codes[0, k], torch.tensor(code), rtol=1e-4, atol=1e-5)


def test_all_nearest_cells_of_one_distance_are_peaks() -> None:
    coords = torch.tensor([[0, 0, 5, 4], [0, 0, 5, 6], [0, 0, 9, 9]], dtype=torch.int32)
    sites = Sites.of(SparseVoxels(torch.zeros(3, 1), coords, (1, *MAP), 1))
    box = torch.tensor([[-4 + 5.2 * 0.5, -3 + 5.1 * 0.5, 0.0, 2.0, 1.0, 1.0, 0.0]])
    found = SiteAssigner(RANGE[:2], VOXEL[:2])(sites, [box], [torch.tensor([0])], [0])
    assert found.heatmap[:, 0].tolist()[:2] == [1.0, 1.0]
    assert found.index.item() == 0


HEADS = {
    "sparse": (SparseCenterHead, {}),
    "dilating": (SparseCenterHead, {"dilate": True}),
    "iou": (SparseCenterHead, {"branches": {"center": 2, "center_z": 2, "dim": 2, "rot": 2, "iou": 2}}),
    "voxelnext": (VoxelNeXtHead, {"branches": {"center": 2, "center_z": 1, "dim": 2, "rot": 2, "vel": 3}}),
    "voxelnext_iou": (
        VoxelNeXtHead,
        {
            "branches": {"center": 2, "center_z": 2, "dim": 2, "rot": 2, "iou": 2},
            "iou_rectifier": [0.5, 0.2, 0.7],
            "nms": {"per_class": True},
            "kernel_size": 1,
        },
    ),
}


def build(name: str, **more):
    torch.manual_seed(3)
    kind, options = HEADS[name]
    tasks = [["Car"], ["Walker", "Rider"]]
    return kind(6, ["Car", "Walker", "Rider"], **GEOMETRY, tasks=tasks, **options, **more)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_and_detections_follow(name: str) -> None:
    head, voxels = build(name, score_threshold=0.0), voxels_on(1)
    boxes, labels = objects(4, 8, 9)
    boxes[:, 3:6] = boxes[:, 3:6].clamp_min(0.5)
    losses = head.loss(head(voxels), [Targets(boxes, labels), Targets(boxes[:0], labels[:0])])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    silent = {key for key, p in head.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {key for key in silent if not key.endswith(".0.bias")}  # a bias in front of a norm has no gradient
    found = head.eval().decode(head(voxels))
    assert len(found) == 2
    assert all(len(each) and each.boxes.shape[1] == (9 if "vel" in head.branches else 7) for each in found)


@pytest.mark.parametrize("name", HEADS)
def test_frames_without_sites_or_objects(name: str) -> None:
    head, voxels = build(name), voxels_on(1, batch_size=1)
    nothing = SparseVoxels(voxels.features[:0], voxels.coords[:0], voxels.grid, 2)
    padded = SparseVoxels(voxels.features, voxels.coords, voxels.grid, 2)
    boxes, labels = objects(4, 5, 9)
    for given_voxels in (nothing, padded):
        losses = head.loss(head(given_voxels), [Targets(boxes, labels), Targets(boxes, labels)])
        assert all(loss.isfinite() for loss in losses.values())
    losses = head.loss(head(voxels), [Targets(boxes[:0], labels[:0])])
    assert all(value.item() == 0 for key, value in losses.items() if not key.startswith("heatmap"))
    assert [len(each) for each in head.eval().decode(head(nothing))] == [0, 0]


@pytest.mark.parametrize("dilate", [False, True])
def test_layers_on_a_full_map_are_dense_convolutions(dilate: bool) -> None:
    head = build("dilating" if dilate else "sparse").eval()
    voxels = voxels_on(2, share=2.0)
    dense = voxels.dense()[:, :, 0]
    output = head(voxels)
    branch = head.heads_list[0].rot
    conv, norm = branch[0][0], branch[0][1]
    inner = torch.nn.functional.conv2d(dense, conv.weight[:, 0].permute(0, 3, 1, 2), padding=1)
    norm = torch.nn.functional.batch_norm(inner, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)
    expected = torch.einsum("bcyx,oc->byxo", norm.relu(), branch[1].weight[:, 0, 0, 0]) + branch[1].bias
    frame, (x, y) = output.sites.frame, output.sites.cells.t()
    torch.testing.assert_close(output.tasks[0].rot, expected[frame, y, x], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")
@pytest.mark.parametrize("name", HEADS)
def test_both_engines_give_the_same(name: str) -> None:
    heads = {engine: build(name, engine=engine) for engine in ("native", "spconv")}
    heads["spconv"].load_state_dict(heads["native"].state_dict())
    voxels = voxels_on(5)
    first, second = (head.eval()(voxels) for head in heads.values())
    assert first.sites.cells.equal(second.sites.cells)
    for ours, theirs in zip(first.tasks, second.tasks, strict=True):
        torch.testing.assert_close(ours.heatmap, theirs.heatmap, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.codes(), theirs.codes(), rtol=1e-5, atol=1e-5)


def test_dilation_makes_sites_of_neighbours_inside_of_the_map() -> None:
    coords = torch.tensor([[0, 0, 0, 3]], dtype=torch.int32)
    voxels = SparseVoxels(torch.ones(1, 6), coords, (1, *MAP), 1)
    sites = build("dilating").eval()(voxels).sites
    assert {tuple(cell) for cell in sites.cells.tolist()} == {(x, y) for x in (2, 3, 4) for y in (0, 1)}


def test_merged_copies_average_where_any_has_a_site() -> None:
    def copy(cells: list[list[int]], value: float) -> Scored:
        n = len(cells)
        values = {name: torch.full((n, width), value) for name, width in WIDTHS.items()}
        return Scored(cells=torch.tensor(cells), iou=None, **values)

    # one object at cell (3, 2): y flipped it is at 12 - 2, x flipped at 16 - 3; the last copy has another cell
    copies = [copy([[3, 2]], 1.0), copy([[3, 10]], 2.0), copy([[13, 2]], 3.0), copy([[16, 12]], 4.0)]
    found = merged(copies, MAP)
    assert found.cells.tolist() == [[0, 0], [3, 2]]
    assert found.scores[:, 0].tolist() == [4.0, 2.0]
    assert found.center[1].tolist() == pytest.approx([(1 + 2 - 3) / 3, (1 - 2 + 3) / 3])
    assert found.rot[1].tolist() == pytest.approx([(1 + 2 - 3) / 3, (1 - 2 + 3) / 3])
    assert found.vel is not None
    assert found.vel[0].tolist() == [-4.0, -4.0]


WIDTHS = {"scores": 1, "center": 2, "center_z": 1, "size": 3, "rot": 2, "vel": 2}


def test_flipped_copies_of_a_batch() -> None:
    head = build("voxelnext", double_flip=True).eval()
    points = torch.tensor([[1.0, 2.0, 0.5], [3.0, -1.0, 0.0]])
    batch = head.copies(PointBatch(points, torch.tensor([1, 0]), 2))
    assert batch.batch_size == 8
    for copy, (sx, sy) in enumerate(COPIES):
        (row,) = batch.points[batch.batch_index == 4 + copy]
        assert row.tolist() == [sx * 1.0, sy * 2.0, 0.5]
    assert head.train().copies(batch) is batch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build("sparse", branches=dict.fromkeys(("center", "center_z", "dim", "rot", "vel"), 2)),
            "no velocity",
        ),
        (lambda: build("dilating", heatmap_convs=3), "equally many convolutions"),
        (lambda: build("voxelnext_iou", double_flip=True), "double_flip needs the branch 'vel'"),
        (lambda: build("voxelnext", gaussian_around=["corner"]), "gaussian_around must name"),
        (lambda: build("voxelnext", kernel_size=2), "must be odd"),
        (lambda: build("sparse", max_objects=0), "max_objects must be at least 1"),
        (lambda: build("sparse", iou_rectifier=0.5), "needs the branch 'iou'"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_voxels_of_several_layers_are_refused() -> None:
    voxels = SparseVoxels(torch.zeros(1, 6), torch.zeros(1, 4, dtype=torch.int32), (2, *MAP), 1)
    with pytest.raises(ValueError, match="must have one layer in z"):
        build("sparse").eval()(voxels)
