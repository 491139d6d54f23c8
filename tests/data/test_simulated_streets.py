"""What makes simulated streets like real ones: rounded cars, intensities of an HDL-64E, streets that close in."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_ext.data.simulation import cars, shapes
from pcdet_ext.data.simulation.raycast import Hits
from pcdet_ext.data.simulation.reflectance import LaserResponse
from pcdet_ext.data.simulation.roads import StraightStreet
from pcdet_ext.data.simulation.scene import PAVEMENT, Builder, CrossSection, Ground
from pcdet_ext.data.simulation.shapes import Material
from pcdet_ext.data.simulation.streets import street_scene
from pcdet_ext.data.simulation.surroundings import STRETCH, clutter, surroundings
from pcdet_ext.structures import Array

FLAT = Ground(np.zeros(2), np.zeros((0, 4)))


def hits(material: Material, count: int, owner: int = 0) -> Hits:
    ones = np.ones(count, np.float32)
    return Hits(15 * ones, np.full(count, owner, np.int32), np.full(count, material, np.uint8), 0.8 * ones)


@pytest.mark.parametrize("profile", sorted(cars.PROFILES))
def test_a_body_is_closed_and_symmetric(profile: str) -> None:
    body = cars._body(cars.PROFILES[profile], cars.Style.random(np.random.default_rng(3)))
    edges = np.sort(np.concatenate([body.triangles[:, [0, 1]], body.triangles[:, [1, 2]], body.triangles[:, [2, 0]]]))
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 2).all()  # every edge lies between two triangles: no beam gets in
    mirrored = body.vertices * np.float32([1, -1, 1])
    assert {tuple(v) for v in np.round(mirrored + 0.0, 4)} == {tuple(v) for v in np.round(body.vertices + 0.0, 4)}


def corner_and_roof(profile: str, style: cars.Style) -> tuple[float, float]:
    """Half the width of a car of width 1 at its rear bumper, and of its roof."""
    body = cars._body(cars.PROFILES[profile], style).vertices
    rear = body[body[:, 0] < body[:, 0].min() + 1e-4]
    roof = body[(np.abs(body[:, 0]) < 0.03) & (body[:, 2] > 0.93)]
    return float(rear[:, 1].max()), float(roof[:, 1].max())


def test_style_rounds_corners_and_draws_the_roof_in() -> None:
    square = corner_and_roof("sedan", cars.Style(corner=0.0, nose=0.0, tumble=0.0, bulge=0.0))
    round_ = corner_and_roof("sedan", cars.Style(corner=0.2, nose=0.1, tumble=0.25, bulge=0.0))
    assert square[0] == pytest.approx(0.5, abs=1e-6)
    assert round_[0] == pytest.approx(0.4, abs=1e-6)
    assert round_[1] < 0.78 * 0.5 <= square[1]


@pytest.mark.parametrize("profile", sorted(cars.PROFILES))
def test_windows_lie_between_belt_and_roof(profile: str) -> None:
    shape = cars.PROFILES[profile]
    body = cars._body(shape, cars.Style())
    glass = body.vertices[body.triangles[body.material == Material.GLASS]].mean(1)
    assert len(glass) > 10
    assert (glass[:, 2] > shape.belt).all()
    assert (glass[:, 2] < 0.99).all()


def test_most_points_on_paint_have_no_intensity_and_plates_shine() -> None:
    rng = np.random.default_rng(0)
    shares, bright = [], []
    for _ in range(20):
        response = LaserResponse.random(rng, 64)
        row, paint = rng.integers(0, 64, 4000), rng.normal(0, 1, 2)
        on_paint = response.report(hits(Material.PAINT, 4000), row, paint, rng)
        shares.append((on_paint == 0).mean())
        bright.append(np.median(response.report(hits(Material.PLATE, 4000), row, paint, rng)))
        assert on_paint.min() >= 0
        assert on_paint.max() <= 0.99
    assert 0.4 < np.mean(shares) < 0.8
    assert np.ptp(shares) > 0.2  # cars differ
    assert np.mean(bright) > 0.6


def test_lasers_differ_in_what_they_report() -> None:
    rng = np.random.default_rng(1)
    response = LaserResponse(np.array([1.0, 0.5]), np.array([0.02, 0.02]))
    row = np.repeat([0, 1], 3000)
    light = response.report(hits(Material.ASPHALT, 6000, owner=-1), row, np.zeros(1), rng)
    medians = [np.median(light[row == laser]) for laser in (0, 1)]
    assert medians[1] / medians[0] == pytest.approx(0.5, abs=0.06)
    deaf = LaserResponse(np.ones(1), np.ones(1))
    assert not deaf.report(hits(Material.ASPHALT, 50), np.zeros(50, int), np.zeros(2), rng).any()


def test_a_street_has_a_crown_kerbs_and_banks() -> None:
    form = CrossSection(StraightStreet(0.0, 2.0), 4.0, crown=0.02, kerb=0.1, banks=(0.0, 0.2), crossing=30.0)
    ground = Ground(FLAT.slope, FLAT.waves, form)
    x = np.full(6, 10.0)
    y = np.array([0.0, 2.0, 5.99, 6.01, 6.0 + PAVEMENT + 5, -2.01])
    crown = 0.02 * 2
    expected = [0, crown, crown - 0.02 * 3.99, crown - 0.08 + 0.1, crown - 0.08 + 0.1 + 1.0, crown - 0.08 + 0.1]
    np.testing.assert_allclose(ground.height(x, y), expected, atol=1e-9)
    assert ground.height(np.array(30.0), np.array(6.01)) == pytest.approx(crown - 0.08)  # no kerb where a street comes


def test_street_coordinates_are_the_inverse_of_places() -> None:
    street = StraightStreet(0.7, -3.0)
    along, across = np.array([0.0, 12.0, -5.0]), np.array([1.0, -2.0, 8.0])
    x, y, heading = street.at(along, across)
    np.testing.assert_allclose(street.coordinates(x, y), [along, across], atol=1e-12)
    np.testing.assert_allclose(heading, 0.7)


def box_frame(points: Array, box: Array) -> Array:
    cos, sin = np.cos(box[6]), np.sin(box[6])
    shifted = points - box[:3]
    return shifted @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@pytest.mark.parametrize("seed", range(4))
def test_nothing_but_leaves_grows_into_vehicles(seed: int) -> None:
    scene = street_scene(np.random.default_rng(seed))
    solid = np.isin(scene.static.material, [Material.WALL, Material.MASONRY, Material.BIN, Material.METAL])
    middles = scene.static.vertices[scene.static.triangles[solid]].mean(1)
    for actor in scene.actors:
        if actor.name in ("Car", "Van", "Truck"):
            inside = np.abs(box_frame(middles, actor.box)) < actor.box[3:6] / 2 - 0.02
            assert not inside.all(1).any()


@pytest.mark.parametrize("kind", sorted(STRETCH))
def test_stretches_leave_the_road_and_the_crossing_free(kind: str) -> None:
    builder = Builder(np.random.default_rng(5), FLAT, StraightStreet(0.0))
    STRETCH[kind](builder, 1, -50.0, 80.0, 8.0, 20.0)
    vertices = shapes.join(builder.static).vertices
    assert vertices[:, 1].min() > 4.0  # crowns of trees reach over the pavement, not over the road
    low = vertices[(vertices[:, 2] > 0.3) & (vertices[:, 2] < 1.5)]
    assert (np.abs(low[:, 0] - 20.0) > 4.0).all()


def test_clutter_stands_beside_the_road() -> None:
    builder = Builder(np.random.default_rng(2), FLAT, StraightStreet(0.0))
    clutter(builder, -1, 7.0, 60.0)
    low = shapes.join(builder.static).vertices
    low = low[low[:, 2] < 1.0]
    assert len(builder.static) > 20
    assert low[:, 1].max() < -4.5


def test_a_town_is_closer_than_the_country() -> None:
    walls = {}
    for character in ("town", "country"):
        areas = []
        for seed in range(6):
            builder = Builder(np.random.default_rng(seed), FLAT, StraightStreet(0.0))
            surroundings(builder, 1, 6.0, None, character)
            areas.append(sum(int((m.material == Material.WALL).sum()) for m in builder.static))
        walls[character] = np.mean(areas)
    assert walls["town"] > 2 * walls["country"]
