"""Which locations learn which object: the rule of FCAF3D against loops."""

from __future__ import annotations

import math

import pytest
import torch

from pcdet_ext.models.targets.locations import LocationAssigner, centerness, face_distances


def pyramid(seed: int, levels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Locations float64 [N, 3] at random, fewer on coarser levels, and their level."""
    generator = torch.Generator().manual_seed(seed)
    counts = [400 // 3**level for level in range(levels)]
    points = torch.rand(sum(counts), 3, generator=generator, dtype=torch.float64) * 4 - 2
    return points, torch.repeat_interleave(torch.tensor(counts))


def objects(seed: int, count: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    place = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 3 - 1.5
    size = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 + 0.3
    return torch.cat([place, size, torch.rand(count, 1, generator=generator, dtype=torch.float64) * 7 - 3.5], 1)


def central(point: list[float], box: list[float]) -> float | None:
    """The centre-ness of a point in a box, None outside."""
    x, y, z = (p - b for p, b in zip(point, box, strict=False))
    c, s = math.cos(box[6]), math.sin(box[6])
    own = (c * x + s * y, c * y - s * x, z)
    product = 1.0
    for place, size in zip(own, box[3:6], strict=True):
        lower, upper = size / 2 + place, size / 2 - place
        if min(lower, upper) <= 0:
            return None
        product *= min(lower, upper) / max(lower, upper)
    return math.sqrt(product)


def by_loops(
    points: torch.Tensor, level: torch.Tensor, levels: int, boxes: torch.Tensor, needed: int, most: int
) -> list[tuple[int, float]]:
    """The object (-1 for none) and the centre-ness of each location, point by point and box by box."""
    found: list[tuple[float, int, float]] = [(math.inf, -1, 0.0)] * len(points)
    for number, box in enumerate(boxes.tolist()):
        inside: list[dict[int, float]] = [{} for _ in range(levels)]
        for i, point in enumerate(points.tolist()):
            value = central(point, box)
            if value is not None:
                inside[int(level[i])][i] = value
        best = 0
        while best + 1 < levels and all(len(inside[each]) >= needed for each in range(best + 2)):
            best += 1
        volume = math.prod(box[3:6])
        for i in sorted(inside[best], key=lambda i: -inside[best][i])[:most]:
            if volume < found[i][0]:
                found[i] = (volume, number, inside[best][i])
    return [(number, value) for _, number, value in found]


@pytest.mark.parametrize(("seed", "needed", "most"), [(0, 27, 18), (1, 5, 3), (2, 1, 1000), (3, 8, 6), (4, 60, 10)])
def test_locations_learn_what_the_loops_say(seed: int, needed: int, most: int) -> None:
    points, level = pyramid(seed)
    boxes = objects(seed)
    found = LocationAssigner(needed, most)(points, level, 3, boxes)
    expected = by_loops(points, level, 3, boxes, needed, most)
    assert found.box.tolist() == [number for number, _ in expected]
    torch.testing.assert_close(found.centerness, torch.tensor([value for _, value in expected], dtype=torch.float64))
    learning = found.box >= 0
    assert learning.any()
    assert not learning.all()


def test_both_fine_and_coarse_levels_are_used() -> None:
    points, level = pyramid(1)
    found = LocationAssigner(5, 3)(points, level, 3, objects(1))
    assert len(set(level[found.box >= 0].tolist())) > 1


def test_of_equal_objects_the_first_is_learnt() -> None:
    points, level = pyramid(5)
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]], dtype=torch.float64)
    found = LocationAssigner()(points, level, 3, box.repeat(3, 1))
    assert set(found.box.tolist()) == {-1, 0}


def test_unusable_objects_and_empty_frames_teach_nothing() -> None:
    points, level = pyramid(6)
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0, 0, 0]], dtype=torch.float64)  # with a velocity, which does not matter
    broken, flat = box.clone(), box.clone()
    broken[0, 6], flat[0, 5] = math.nan, 0
    found = LocationAssigner()(points, level, 3, torch.cat([broken, flat, box]))
    assert set(found.box.tolist()) == {-1, 2}
    for boxes in (broken, box[:0]):
        nothing = LocationAssigner()(points, level, 3, boxes)
        assert set(nothing.box.tolist()) == {-1}
        assert not nothing.centerness.any()
    assert len(LocationAssigner()(points[:0], level[:0], 3, box).box) == 0


def test_distances_are_metres_along_the_own_axes_of_a_box() -> None:
    box = torch.tensor([[1.0, 2, 3, 4, 2, 6, math.pi / 2]], dtype=torch.float64)
    distances = face_distances(torch.tensor([[1.0, 3, 5]], dtype=torch.float64), box)
    expected = torch.tensor([[3.0, 1], [1, 1], [5, 1]], dtype=torch.float64)
    torch.testing.assert_close(distances[0, 0], expected)
    assert float(centerness(distances)) == pytest.approx(math.sqrt(1 / 3 * 1 * 1 / 5))
