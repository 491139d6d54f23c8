"""Beams through meshes with Open3D (Embree): a standing world, and bodies that move in it. Knows nothing of sensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.data.simulation.shapes import Mesh
from pcdet_ext.structures import Array


@dataclass(frozen=True)
class Beams:
    """The beams of one turn as a grid, in the world's frame.

    origins: float32 [1, 3], where all start, or [W, 3], where those of a column do; directions: float32 [H, W, 3], unit
    vectors; pose: float64 [4, 4], from the sensor to the world in the middle of the turn; elevations [H] and azimuths
    [W]: the angles of rows and columns in the sensor's frame, radians. slack: metres and radians by which a beam may
    differ from what pose and angles say (a moving sensor, small errors of the beams).
    """

    origins: Array
    directions: Array
    pose: Array
    elevations: Array
    azimuths: Array
    slack: tuple[float, float]

    def flat(self) -> tuple[Array, Array]:
        """Origins and directions of all beams, row by row: float32 [H · W, 3] each."""
        shape = self.directions.shape
        return np.broadcast_to(self.origins[None], shape).reshape(-1, 3), self.directions.reshape(-1, 3)

    def towards(self, corners: Array) -> tuple[Array, Array]:
        """Rows and columns of all beams that may meet the hull of `corners` [N, 3]; usually some more."""
        metres, radians = self.slack
        local = (corners - self.pose[:3, 3]) @ self.pose[:3, :3]
        centre = (local.min(0) + local.max(0)) / 2
        radius = float(np.hypot(*(local - centre)[:, :2].T).max()) + metres
        away = float(np.hypot(*centre[:2]))
        near, far = max(away - radius, 1e-3), away + radius
        low, high = float(local[:, 2].min()) - metres, float(local[:, 2].max()) + metres
        bottom = np.arctan2(low, near if low < 0 else far) - radians
        top = np.arctan2(high, near if high > 0 else far) + radians
        rows = np.flatnonzero((self.elevations >= bottom) & (self.elevations <= top))
        if away <= radius * 1.001:
            return rows, np.arange(len(self.azimuths))
        half = np.arcsin(radius / away) + radians
        off = (self.azimuths - np.arctan2(centre[1], centre[0]) + np.pi) % (2 * np.pi) - np.pi
        return rows, np.flatnonzero(np.abs(off) <= half)


@dataclass(frozen=True)
class Hits:
    """What each of N beams met first.

    distance: float32 [N] in metres, infinite where nothing was met; owner: int32 [N], the number of the body, -1 for
    the standing world; material: uint8 [N]; cosine: float32 [N], of the angle between beam and surface normal.
    """

    distance: Array
    owner: Array
    material: Array
    cosine: Array

    def __getitem__(self, which: Array) -> Hits:
        """Those of some beams: an index or a mask."""
        return Hits(self.distance[which], self.owner[which], self.material[which], self.cosine[which])


@dataclass(frozen=True)
class Window:
    """A body, where it stands (x, y, z, heading), and the rows and columns of the beams that may meet it."""

    body: int
    place: Array
    rows: Array
    columns: Array


class World:
    """A standing mesh in world coordinates, and bodies, each in its own frame: they are built once, and only moved.

    Raises ImportError without Open3D.
    """

    def __init__(self, standing: Mesh, bodies: Sequence[Mesh]) -> None:
        self.standing = _Target(standing)
        self.bodies = [_Target(mesh) for mesh in bodies]
        self.radii = np.array([body.radius for body in self.bodies])
        self.seconds = 0.0  # of processor time spent on casting and on building what it needs

    def windows(self, beams: Beams, places: Array, max_range: float) -> list[Window]:
        """The bodies that may be in range, each with the rows and columns of the beams that may meet it.

        Args:
            beams: of one turn.
            places: float64 [B, 4], x, y, z (metres) and heading (radians) of the bodies; NaN for one that is not there.
            max_range: in metres.
        """
        begun = time.process_time()
        away = np.hypot(*(places[:, :2] - beams.pose[:2, 3]).T) - self.radii
        found = []
        for number in np.flatnonzero(away < max_range).tolist():  # not true for NaN
            rows, columns = beams.towards(self.bodies[number].corners_at(places[number]))
            if len(rows) and len(columns):
                found.append(Window(number, places[number], rows, columns))
        self.seconds += time.process_time() - begun
        return found

    def cast(self, beams: Beams, windows: Sequence[Window], max_range: float) -> tuple[Hits, Array]:
        """Beams through the world with its bodies where `windows` has them.

        Args:
            beams: of one turn.
            windows: the bodies that may be met.
            max_range: in metres.

        Returns:
            What the beams meet, row by row, and for each body int64 [B] the number of beams that would meet it within
                range with nothing before it.
        """
        begun = time.process_time()
        width = beams.directions.shape[1]
        origins, directions = beams.flat()
        hits = self.standing.cast(origins, directions, -1)
        reach = np.zeros(len(self.bodies), np.int64)
        for window in windows:
            index = (window.rows[:, None] * width + window.columns).ravel()
            found = self._meet(hits, index, origins[index], directions[index], window)
            reach[window.body] = int((found < max_range).sum())
        self.seconds += time.process_time() - begun
        return hits, reach

    def cast_on(self, beams: Beams, which: Array, skipped: Array, windows: Sequence[Window]) -> Hits:
        """What some beams meet beyond a part of their way; distances count from where the beams start.

        Args:
            beams: of one turn.
            which: int64 [N], numbers of the beams, row by row.
            skipped: [N], the part in metres.
            windows: the bodies that may be met.
        """
        begun = time.process_time()
        origins, directions = (values[which] for values in beams.flat())
        starts = origins + directions * skipped[:, None].astype(np.float32)
        hits = self.standing.cast(starts, directions, -1)
        shape = beams.directions.shape[:2]
        places = np.full(shape, -1)
        places.reshape(-1)[which] = np.arange(len(which))
        for window in windows:
            index = places[window.rows[0] : window.rows[-1] + 1, window.columns]  # rows are neighbours
            index = index[index >= 0]
            if len(index):
                self._meet(hits, index, starts[index], directions[index], window)
        self.seconds += time.process_time() - begun
        return Hits(hits.distance + skipped.astype(np.float32), hits.owner, hits.material, hits.cosine)

    def _meet(self, hits: Hits, index: Array, origins: Array, directions: Array, window: Window) -> Array:
        """Let beams, those of `hits` at `index`, meet one body, where it is nearest; returns at what distances."""
        starts, rays = _to_body(origins, directions, window.place)
        found = self.bodies[window.body].cast(starts, rays, window.body)
        first = np.flatnonzero(found.distance < hits.distance[index])
        for name in ("distance", "owner", "material", "cosine"):
            getattr(hits, name)[index[first]] = getattr(found, name)[first]
        return found.distance


class _Target:
    """A mesh that is ready for beams."""

    def __init__(self, mesh: Mesh) -> None:
        from open3d import t

        self.material = mesh.material
        self.corners = _box_corners(mesh.vertices)
        self.radius = float(np.hypot(*self.corners[:, :2].T).max())
        self.scene = t.geometry.RaycastingScene(nthreads=1)
        self.scene.add_triangles(_tensor(mesh.vertices), _tensor(mesh.triangles.astype(np.uint32)))

    def corners_at(self, place: Array) -> Array:
        """Corners [8, 3] of the mesh's extent, placed in the world."""
        x, y, z, heading = place
        cos, sin = np.cos(heading), np.sin(heading)
        return self.corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + [x, y, z]

    def cast(self, origins: Array, directions: Array, owner: int) -> Hits:
        """What beams in the mesh's frame meet."""
        found = self.scene.cast_rays(_tensor(np.concatenate([origins, directions], 1)), nthreads=1)
        distance = found["t_hit"].numpy()
        triangle = found["primitive_ids"].numpy()
        nx, ny, nz = found["primitive_normals"].numpy().T
        dx, dy, dz = directions.T
        cosine = np.abs(nx * dx + ny * dy + nz * dz)
        met = np.isfinite(distance)
        material = self.material[np.where(met, triangle, 0)]
        return Hits(distance, np.full(len(distance), owner, np.int32), material, cosine)


def _tensor(values: Array) -> Any:
    from open3d import core

    return core.Tensor.from_numpy(np.ascontiguousarray(values))


def _box_corners(vertices: Array) -> Array:
    ends = np.stack([vertices.min(0), vertices.max(0)]).astype(np.float64)
    return np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


def _to_body(origins: Array, directions: Array, place: Array) -> tuple[Array, Array]:
    """Beams in the frame of a body that stands at a place; differences are taken before rounding to float32."""
    x, y, z, heading = place
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shifted = (origins - np.array([x, y, z])) @ turn
    return shifted.astype(np.float32), (directions @ turn.astype(np.float32)).astype(np.float32)
