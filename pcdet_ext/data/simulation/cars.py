"""Passenger cars and vans as rounded triangle meshes. Local frame: x forward, y left, z up from the ground, metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.simulation.shapes import Material, Mesh, fitted, join, wheel
from pcdet_ext.structures import Array


@dataclass(frozen=True)
class Profile:
    """A car seen from the side, in shares of its length (-0.5 at the rear bumper) and height.

    top: the upper outline, rows (x, z) with x rising; belt: height at which the windows begin; front_post, rear_post:
    where the windows of the sides begin and end along x; axle: distance of the axles from the middle; wheel: radius.
    """

    top: tuple[tuple[float, float], ...]
    belt: float
    front_post: float
    rear_post: float
    axle: float = 0.31
    wheel: float = 0.21


PROFILES = {
    "sedan": Profile(
        ((-0.5, 0.60), (-0.46, 0.68), (-0.33, 0.70), (-0.17, 0.97), (-0.08, 1.0), (0.05, 0.99), (0.24, 0.68))
        + ((0.45, 0.58), (0.5, 0.48)),
        0.66,
        0.20,
        -0.28,
    ),
    "hatchback": Profile(
        ((-0.5, 0.60), (-0.475, 0.70), (-0.42, 0.93), (-0.30, 1.0), (0.05, 0.99), (0.26, 0.68), (0.45, 0.56))
        + ((0.5, 0.45),),
        0.64,
        0.22,
        -0.38,
    ),
    "estate": Profile(
        ((-0.5, 0.60), (-0.485, 0.68), (-0.44, 0.94), (-0.34, 1.0), (0.05, 0.99), (0.23, 0.68), (0.45, 0.57))
        + ((0.5, 0.46),),
        0.64,
        0.19,
        -0.41,
    ),
    "suv": Profile(
        ((-0.5, 0.62), (-0.485, 0.70), (-0.44, 0.95), (-0.36, 1.0), (0.06, 0.99), (0.24, 0.70), (0.45, 0.63))
        + ((0.5, 0.52),),
        0.65,
        0.20,
        -0.40,
        wheel=0.215,
    ),
    "minivan": Profile(
        ((-0.5, 0.58), (-0.485, 0.66), (-0.45, 0.95), (-0.36, 1.0), (0.10, 0.99), (0.34, 0.62), (0.46, 0.50))
        + ((0.5, 0.40),),
        0.60,
        0.30,
        -0.42,
        wheel=0.19,
    ),
    "pickup": Profile(
        ((-0.5, 0.56), (-0.49, 0.62), (-0.13, 0.63), (-0.10, 0.95), (-0.04, 1.0), (0.08, 0.99), (0.21, 0.68))
        + ((0.46, 0.62), (0.5, 0.52)),
        0.64,
        0.18,
        -0.11,
    ),
    "van": Profile(
        ((-0.5, 0.93), (-0.48, 0.99), (-0.40, 1.0), (0.22, 0.99), (0.38, 0.62), (0.47, 0.50), (0.5, 0.38)),
        0.58,
        0.34,
        0.14,
        wheel=0.16,
    ),
}
PASSENGER = ("sedan", "hatchback", "hatchback", "hatchback", "estate", "suv", "minivan", "pickup")


@dataclass(frozen=True)
class Style:
    """How a body departs from its profile.

    corner: how far the front and rear are rounded as seen from above, as a share of the width; nose: the same as seen
    from the side, as a share of the height; tumble: by how much roof and windows lean inwards, as a share of half the
    width; bulge: the same of the sill; stretch: exponent that moves the outline up (below 1) or down.
    """

    corner: float = 0.45
    nose: float = 0.22
    tumble: float = 0.22
    bulge: float = 0.09
    stretch: float = 1.0

    @staticmethod
    def random(rng: np.random.Generator) -> Style:
        """A style within what is seen on the road."""
        low, high = (0.3, 0.12, 0.14, 0.04, 0.9), (0.8, 0.45, 0.30, 0.16, 1.12)
        return Style(*rng.uniform(low, high).tolist())


LOWER, UPPER, ACROSS = 5, 4, 3  # corners of a cross-section: sill to belt, belt to roof, half of the roof
ROUNDED = 0.37  # distance from the middle at which the ends begin to be rounded, as a share of the length
SILL = 0.13  # height of the underbody, as a share of the height


def car(profile: str, length: float, width: float, height: float, style: Style | None = None) -> Mesh:
    """A passenger car or van on its wheels, with windows, lamps and plates.

    Args:
        profile: one of `PROFILES`.
        length: in metres, exactly the extent of the mesh; also the following.
        width: without mirrors.
        height: from the ground to the roof.
        style: how the body departs from its profile.
    """
    shape, style = PROFILES[profile], style or Style()
    radius = shape.wheel * height
    wheels = [wheel(sx * shape.axle * length, sy * (width / 2 - 0.13), radius, 0.2) for sx in (-1, 1) for sy in (-1, 1)]
    body = fitted(_body(shape, style), length, width, height * (1 - SILL)).moved(0, 0, height * SILL)
    return fitted(join([body, *wheels, *_fittings(length, width, height)]), length, width, height)


def _body(shape: Profile, style: Style) -> Mesh:
    """A closed body of unit length, width and height: cross-sections along x, joined by quadrilaterals."""
    ends = 0.5 - np.array([0.0, 0.004, 0.012, 0.024, 0.042])
    stations = np.unique(np.concatenate([np.linspace(-0.44, 0.44, 23), ends, -ends, [x for x, _ in shape.top[1:-1]]]))
    sections = _sections(shape, style, stations)
    rows, corners = sections.shape[:2]
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(corners), indexing="ij")
    a, b = i * corners + j, i * corners + (j + 1) % corners
    quads = np.stack([a, b, b + corners, a + corners], -1).reshape(-1, 4)
    fan = np.arange(1, corners - 1)
    caps = [np.stack([np.full(len(fan), s), s + fan, s + fan + 1], 1) for s in (0, (rows - 1) * corners)]
    triangles = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]], *caps])
    vertices = sections.reshape(-1, 3)
    glass = np.tile(_is_glass(shape, vertices[quads].mean(1), vertices[quads]), 2)
    material = np.full(len(triangles), Material.PAINT, np.uint8)
    material[: len(glass)][glass] = Material.GLASS
    return Mesh(vertices.astype(np.float32), triangles.astype(np.int32), material)


def _sections(shape: Profile, style: Style, x: Array) -> Array:
    """The corners [S, N, 3] of cross-sections at `x` [S], each from the left sill over the roof to the right one."""
    into = np.clip((np.abs(x) - ROUNDED) / (0.5 - ROUNDED), 0, 1)  # the rounded ends
    tip = np.clip((np.abs(x) - 0.45) / 0.05, 0, 1) ** 2
    top = np.interp(x, *np.array(shape.top).T) ** style.stretch * (1 - style.nose * tip)
    bottom = SILL + 0.6 * style.nose * tip
    for axle in (-shape.axle, shape.axle):  # the arches over the wheels
        reach = 1 - ((x - axle) / 0.085) ** 2
        bottom = np.maximum(bottom, 2.1 * shape.wheel * np.sqrt(np.clip(reach, 0, 1)))
    bottom = np.minimum(bottom, 0.9 * top)
    belt = np.minimum(shape.belt, top - 0.04)
    lower, upper = np.linspace(0, 1, LOWER)[:, None], np.linspace(0, 1, UPPER + 1)[1:, None]
    heights = np.concatenate([bottom + (belt - bottom) * lower, belt + (top - belt) * upper]).T
    lift = np.clip((heights - shape.belt) / (1 - shape.belt), 0, 1)
    low = np.clip((0.45 - heights) / 0.45, 0, 1)
    plan = 1 - style.corner * into**2.2
    half = 0.5 * plan[:, None] * (1 - style.tumble * lift) * (1 - style.bulge * low**2)
    half[:, -1] *= 0.93  # the edge of the roof is rounded
    across = np.linspace(1, 0, ACROSS + 1)[1:]
    left = np.empty((len(x), LOWER + UPPER + ACROSS, 3))
    left[..., 0] = x[:, None]
    left[..., 1] = np.concatenate([half, half[:, -1:] * across], 1)
    left[..., 2] = np.concatenate([heights, top[:, None] + 0.015 * (1 - across**2)], 1)
    return np.concatenate([left, (left * [1, -1, 1])[:, -2::-1]], 1)


def _is_glass(shape: Profile, centres: Array, quads: Array) -> Array:
    """Which faces are windows: those of the sides between the posts, and the steep ones in front and behind."""
    x, y, z = centres.T
    wide = np.ptp(quads[..., 1], axis=1)
    rise = np.ptp(quads[..., 2], axis=1)
    side = (wide < 0.1) & (z > shape.belt + 0.03) & (x < shape.front_post) & (x > shape.rear_post)
    side &= (np.abs(x - (shape.front_post + shape.rear_post) / 2) > 0.02) & (z < 0.95)  # the post between the doors
    screen = (np.abs(y) < 0.36) & (wide > 0.05) & (rise > 0.03) & (z > shape.belt + 0.02) & (z < 0.97)
    return np.asarray(side | screen)


def _fittings(length: float, width: float, height: float) -> list[Mesh]:
    """Plates and lamps: small upright faces just before the body that send light back where it came from."""
    parts = []
    for end in (-1, 1):
        low = 0.33 * height if end > 0 else 0.42 * height
        parts.append(_face(end * 0.5 * length, 0.0, low, 0.52, 0.11))
        lamp = 0.42 * height if end > 0 else 0.50 * height
        parts += [_face(end * (0.5 * length - 0.14), side * 0.33 * width, lamp, 0.2, 0.12) for side in (-1, 1)]
    return parts


def _face(x: float, y: float, low: float, width: float, height: float) -> Mesh:
    """An upright rectangle across x."""
    a, b = y - width / 2, y + width / 2
    corners = np.array([[x, a, low], [x, b, low], [x, b, low + height], [x, a, low + height]])
    return Mesh.of(corners, [(0, 1, 2), (0, 2, 3)], Material.PLATE)
