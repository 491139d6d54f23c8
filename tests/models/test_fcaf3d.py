"""The fully convolutional anchor-free head of sparse voxels, against dense convolutions, loops and exact kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from pcdet_ext.config import ConfigError
from pcdet_ext.models.heads import HEADS
from pcdet_ext.models.heads.fcaf3d import FCAF3DHead, LocationOutput, LocationRows, boxes_at
from pcdet_ext.models.targets.locations import LocationAssigner
from pcdet_ext.ops import iou_3d_paired, iou_bev
from pcdet_ext.structures import SparseVoxels, Targets, VoxelPyramid

RANGE = (-1.6, -1.6, -1.6, 1.6, 1.6, 1.6)
GRID = (8, 8, 8)  # of the finest level, of cells of 0.4 m


def make_head(**options: Any) -> FCAF3DHead:
    torch.manual_seed(0)
    settings = {"channels": [4, 6], "out_channels": 5, "assign_threshold": 4, "center_threshold": 6, **options}
    return FCAF3DHead(4, ["bed", "chair"], RANGE, (0.1, 0.1, 0.1), 4, **settings)


def make_pyramid(seed: int = 0, share: float = 0.1) -> VoxelPyramid:
    """Two levels of two frames: some fine cells, and their parents."""
    generator = torch.Generator().manual_seed(seed)
    fine = (torch.rand(2, *GRID, generator=generator) < share).nonzero()
    coarse = torch.unique(torch.cat([fine[:, :1], fine[:, 1:] // 2], 1), dim=0)
    levels = [
        SparseVoxels(torch.randn(len(cells), width, generator=generator), cells.int(), (size,) * 3, 2)
        for cells, width, size in ((fine, 4, 8), (coarse, 6, 4))
    ]
    first = levels[0]
    return VoxelPyramid(first.features, first.coords, first.grid, 2, coarser=(levels[1],))


def trained_a_little(head: FCAF3DHead) -> FCAF3DHead:
    """Parameters and statistics that are all different from what they begin with."""
    generator = torch.Generator().manual_seed(7)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.add_((torch.rand(value.shape, generator=generator) - 0.3) * 0.2)
        assert torch.isfinite(value).all(), name
    return head.eval()


def dense_block(head_part: Any, x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Convolution, norm and ELU of a `ConvBlock` on dense maps [B, C, Z, Y, X]; cells that are not there stay 0."""
    x = functional.conv3d(x, head_part.conv.weight.permute(0, 4, 1, 2, 3), padding=1)
    return functional.elu(dense_norm(head_part.norm, x)) * where


def dense_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


def occupied(voxels: SparseVoxels) -> torch.Tensor:
    return SparseVoxels(torch.ones(len(voxels), 1), voxels.coords, voxels.grid, 2).dense()


@torch.no_grad()
def test_the_head_is_the_dense_network_on_cells_that_are_there() -> None:
    head, given = trained_a_little(make_head()), make_pyramid()
    coarse, fine = given.coarser[0], given
    here = occupied(coarse)
    up = head.up_blocks[0]
    grown = here.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    x = functional.conv_transpose3d(coarse.dense(), up.grow.weight.permute(4, 0, 1, 2, 3), stride=2)
    x = dense_block(up.block, functional.elu(dense_norm(up.norm, x)) * grown, grown)
    joined = torch.maximum(grown, occupied(fine))
    features = (
        dense_block(head.out_blocks[0], x + fine.dense(), joined),
        dense_block(head.out_blocks[1], coarse.dense(), here),
    )
    found = head(given)
    assert found.batch_size == 2
    for level, (dense, where) in enumerate(zip(features, (joined, here), strict=True)):
        rows = found.rows.select(found.rows.level == level)
        cells = where[:, 0].nonzero()
        cell = 0.4 * 2**level
        places = -1.6 + cell * cells[:, [3, 2, 1]]
        order = torch.argsort(rows.frame * 10**6 + ((rows.points[:, [2, 1, 0]] + 1.6) / cell).round() @ torch.tensor(
            [10000.0, 100, 1]
        ))  # fmt: skip
        rows = rows.select(order)
        torch.testing.assert_close(rows.points, places)
        assert torch.equal(rows.frame, cells[:, 0])
        at = dense.permute(0, 2, 3, 4, 1)[tuple(cells.t())]
        torch.testing.assert_close(rows.classes, head.to_classes(at), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.center, head.to_center(at)[:, 0], rtol=1e-4, atol=1e-5)
        code = head.to_box(at)
        torch.testing.assert_close(rows.code[:, :6], (code[:, :6] * head.scales[level]).exp(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.code[:, 6:], code[:, 6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prune_by", ["parent", "interpolated"])
def test_no_level_keeps_more_cells_than_the_threshold(prune_by: str) -> None:
    given = make_pyramid()
    whole = make_head().eval()(given).rows
    pruned = make_head(prune_threshold=50, prune_by=prune_by).eval()(given).rows
    fine = pruned.frame[pruned.level == 0]
    assert int(whole.frame[whole.level == 0].bincount().min()) > 50
    assert fine.bincount().tolist() == [50, 50]
    assert int((pruned.level == 1).sum()) == int((whole.level == 1).sum())


def test_boxes_come_back_from_the_codes_of_locations() -> None:
    """Against codes that are written down from the paper's definition."""
    generator = torch.Generator().manual_seed(0)
    length = torch.rand(50, generator=generator, dtype=torch.float64) + 0.2
    width, height = length * (1 + torch.rand(50, generator=generator, dtype=torch.float64)), length + 0.1
    heading = (torch.rand(50, generator=generator, dtype=torch.float64) - 0.5) * 3
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    offset = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 0.05
    along_x = torch.rand(50, generator=generator, dtype=torch.float64) * (length + width)
    sums = torch.stack([along_x, length + width - along_x, height], 1)
    faces = torch.stack([sums / 2 - offset, sums / 2 + offset], 2).flatten(1)
    turn = (width / length).log()[:, None] * torch.stack([(2 * heading).sin(), (2 * heading).cos()], 1)
    found = boxes_at(points, torch.cat([faces, turn], 1))
    expected = torch.cat([points + offset, torch.stack([length, width, height, heading], 1)], 1)
    torch.testing.assert_close(found, expected)
    quarter = torch.stack([width, length, height, heading + math.pi / 2], 1)  # the same box, said otherwise
    torch.testing.assert_close(iou_3d_paired(found, torch.cat([expected[:, :3], quarter], 1)), torch.ones_like(length))
    plain = boxes_at(points, faces)
    torch.testing.assert_close(plain[:, :6], torch.cat([points + offset, sums], 1))
    assert not plain[:, 6].any()


def test_boxes_have_right_gradients_and_finite_ones_without_a_turn() -> None:
    generator = torch.Generator().manual_seed(1)
    code = torch.rand(6, 8, generator=generator, dtype=torch.float64).requires_grad_()
    points = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: boxes_at(points, c), (code,))
    square = torch.tensor([[0.5] * 6 + [0.0, 0.0]], requires_grad=True)
    boxes_at(torch.zeros(1, 3), square).sum().backward()
    assert square.grad is not None
    assert square.grad.isfinite().all()


def some_targets() -> list[Targets]:
    """Two objects in the first frame, none in the second."""
    boxes = torch.tensor([[0.1, -0.2, 0.0, 1.6, 1.1, 1.3, 0.4], [-0.7, 0.6, 0.3, 0.9, 0.8, 1.2, -1.0]])
    names = ("bed", "chair")
    return [
        Targets(boxes, torch.tensor([1, 0]), names),
        Targets(boxes[:0], torch.zeros(0, dtype=torch.int64), names),
    ]


def test_losses_are_the_sums_that_the_paper_says() -> None:
    head, given = trained_a_little(make_head(box_weight=0.5, center_weight=2.0)), make_pyramid()
    output, targets = head(given), some_targets()
    losses = head.loss(output, targets)
    sums = {"class": 0.0, "box": 0.0, "center": 0.0}
    learning = 0
    for number, target in enumerate(targets):
        rows = output.rows.select(output.rows.frame == number)
        boxes = torch.as_tensor(target.boxes)
        found = LocationAssigner(4, 6)(rows.points, rows.level, 2, boxes)
        own = [i for i in range(len(found.box)) if found.box[i] >= 0]
        learning += len(own)
        focal = center = box = 0.0
        for i, p in enumerate(rows.classes.double().sigmoid().tolist()):
            for label, score in enumerate(p):
                wanted = i in own and label == int(torch.as_tensor(target.labels)[found.box[i]])
                missed = 1 - score if wanted else score
                focal -= (0.25 if wanted else 0.75) * missed**2 * math.log(1 - missed)
        for i in own:
            share, p = float(found.centerness[i]), float(rows.center[i].detach().sigmoid())
            center -= share * math.log(p) + (1 - share) * math.log(1 - p)
            decoded = boxes_at(rows.points[i : i + 1], rows.code[i : i + 1])
            box += share * (1 - float(iou_3d_paired(decoded.detach(), boxes[found.box[i]][None])))
        sums["class"] += focal / max(len(own), 1) / 2
        sums["center"] += 2.0 * center / max(len(own), 1) / 2
        sums["box"] += 0.5 * box / max(sum(float(found.centerness[i]) for i in own), 1e-6) / 2
    assert learning > 6
    assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(sums, rel=1e-4)


def test_losses_have_right_gradients() -> None:
    head = make_head().double()
    rows = head(make_pyramid_double()).rows
    fixed = {"points": rows.points, "frame": rows.frame, "level": rows.level}

    def loss(classes: torch.Tensor, center: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        given = LocationRows(classes=classes, center=center, code=code, **fixed)
        return torch.stack(list(head.loss(LocationOutput(given, 2), some_targets()).values()))

    generator = torch.Generator().manual_seed(3)
    code = torch.rand(len(rows.code), 8, generator=generator, dtype=torch.float64) + 0.3
    inputs = [value.detach().clone().requires_grad_() for value in (rows.classes, rows.center, code)]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def make_pyramid_double() -> VoxelPyramid:
    given = make_pyramid()
    coarse = given.coarser[0]
    return VoxelPyramid(
        given.features.double(), given.coords, given.grid, 2, coarser=(coarse.with_features(coarse.features.double()),)
    )


def test_a_head_learns_what_it_is_shown() -> None:
    head, given, targets = make_head(), make_pyramid(), some_targets()
    optimizer, losses = torch.optim.AdamW(head.train().parameters(), 0.02), []
    for _ in range(12):
        total = sum(head.loss(head(given), targets).values())
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_decoding_is_what_loops_over_classes_find() -> None:
    head, given = trained_a_little(make_head(max_candidates=40, score_threshold=0.2)), make_pyramid()
    head.to_classes.bias += 3.5  # so that many locations are above the threshold
    output = head(given)
    found = head.decode(output)
    assert [detections.class_names for detections in found] == [("bed", "chair")] * 2
    for number, detections in enumerate(found):
        expected = []
        rows = output.rows.select(output.rows.frame == number)
        scores = rows.classes.sigmoid() * rows.center.sigmoid()[:, None]
        values, levels = scores.tolist(), rows.level.tolist()
        looked_at: list[int] = []
        for level in range(2):
            mine = [i for i in range(len(values)) if levels[i] == level]
            looked_at += sorted(mine, key=lambda i: -max(values[i]))[:40]
        boxes = boxes_at(rows.points, rows.code)
        for label in range(2):
            kept: list[int] = []
            above = [i for i in looked_at if values[i][label] > 0.2]
            for i in sorted(above, key=lambda i: -values[i][label]):
                if not kept or float(iou_bev(boxes[i : i + 1], boxes[kept]).max()) <= 0.5:
                    kept.append(i)
            expected += [(label, i) for i in kept]
        assert 2 < len(expected) < 2 * len(looked_at)
        labels, index = (torch.tensor(column) for column in zip(*expected, strict=True))
        torch.testing.assert_close(torch.as_tensor(detections.boxes), boxes[index])
        assert torch.equal(torch.as_tensor(detections.labels), labels)
        torch.testing.assert_close(torch.as_tensor(detections.scores), scores[index, labels])


def test_empty_frames_are_taken() -> None:
    head, given = make_head(), make_pyramid()
    coarse = SparseVoxels(torch.zeros(0, 6), given.coords[:0], (4, 4, 4), 2)
    empty = VoxelPyramid(given.features[:0], given.coords[:0], GRID, 2, coarser=(coarse,))
    losses = head.train().loss(head(empty), some_targets())
    assert all(float(value.detach()) == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert [len(frame) for frame in head.eval().decode(head(empty))] == [0, 0]


@torch.no_grad()
def test_boxes_are_computed_in_float32_under_autocast() -> None:
    head, given = trained_a_little(make_head()), make_pyramid()
    expected = head(given).rows
    with torch.autocast("cpu", torch.bfloat16):
        found = head(given).rows
    assert found.code.dtype == found.classes.dtype == found.center.dtype == torch.float32
    assert torch.equal(found.points, expected.points)
    assert (found.classes - expected.classes).norm() < 0.05 * expected.classes.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [5, 6]}, r"channels must begin with the 4 of the backbone's finest level, got \[5, 6\]"),
        ({"prune_by": "score"}, "prune_by must be parent or interpolated, got 'score'"),
        ({"prune_threshold": 0}, "prune_threshold must be at least 1, got 0"),
        ({"box_weight": -1.0}, "box_weight must be at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(**options)


def test_voxels_of_one_scale_are_refused_with_what_would_be_right() -> None:
    given = make_pyramid()
    with pytest.raises(ValueError, match=r"reads 2 levels, the backbone gives 1 .*out_channels: null"):
        make_head()(SparseVoxels(given.features, given.coords, given.grid, 2))
    with pytest.raises(ConfigError, match="channels"):
        HEADS.build({"name": "FCAF3DHead"}, in_channels=4, classes=["bed"], point_cloud_range=RANGE,
                    voxel_size=(0.1,) * 3, stride=4)  # fmt: skip
