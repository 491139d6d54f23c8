"""How vehicles and people move: vehicles keep their paths, follow what is before them, stop at red lights and turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pcdet_ext.data.simulation.roads import Path
from pcdet_ext.structures import Array

TIME_STEP = 0.1  # seconds
SIGHT = 45.0  # metres that a driver looks ahead
# Intelligent driver model (Treiber, Hennecke, Helbing 2000): acceleration, comfortable braking, time gap, least gap.
ACCELERATION, BRAKING, TIME_GAP, LEAST_GAP = 1.6, 2.2, 1.3, 2.0
HARDEST = 8.0  # metres per second squared: full braking
LIGHT_PHASES = (10.0, 3.0, 8.0, 3.0)  # seconds: ours green, all red, the crossing street green, all red


@dataclass
class Mover:
    """Something on a path. position: metres along it of the centre; wish: the speed it would like, m/s."""

    path: Path
    position: float
    wish: float
    length: float
    width: float
    speed: float = 0.0
    yields: bool = True  # whether it minds what is before it; people on pavements do not
    waits: bool = False  # a person who waits at the kerb until no vehicle is near
    stays: bool = False  # stands at the end of its path instead of leaving the scene there

    def place(self) -> tuple[float, float, float]:
        """x, y and heading now."""
        x, y, heading = self.path.at(self.position)
        return float(x), float(y), float(heading)

    @property
    def gone(self) -> bool:
        """Whether it has left the scene at the end of its path."""
        return not self.stays and self.position > self.path.length - self.length / 2


@dataclass
class Traffic:
    """All that moves, and the lights where two streets cross. offset: seconds into the lights' phases at time 0."""

    movers: list[Mover] = field(default_factory=list)
    offset: float = 0.0
    time: float = 0.0

    def run(self, seconds: float) -> Array:
        """Let time pass; returns x, y, heading, speed and metres along the path, every `TIME_STEP`, both ends included.

        float64 [T, M, 5]; NaN from when something has left the scene.
        """
        count = round(seconds / TIME_STEP) + 1
        record = np.full((count, len(self.movers), 5), np.nan)
        for tick in range(count):
            for number, mover in enumerate(self.movers):
                if not mover.gone:
                    record[tick, number] = *mover.place(), mover.speed, mover.position
            if tick < count - 1:
                self._step(record[tick])
        return record

    def is_red(self, light: int) -> bool:
        """Whether a light stops: 0 is ours, 1 that of the crossing street."""
        ours, clear, theirs, _ = LIGHT_PHASES
        now = (self.time + self.offset) % sum(LIGHT_PHASES)
        return not (now < ours if light == 0 else ours + clear <= now < ours + clear + theirs)

    def _step(self, state: Array) -> None:
        discs, owners, velocities = self._discs(state)
        speeds = []
        for number, mover in enumerate(self.movers):
            if mover.gone or not mover.yields:
                speeds.append(self._walk(mover, state))
                continue
            gap, ahead = self._gap(mover, discs[owners != number], velocities[owners != number])
            gap, ahead = min((gap, ahead), (self._red_gap(mover), 0.0))
            speeds.append(_followed(mover, gap, ahead))
        for mover, speed in zip(self.movers, speeds, strict=True):
            mover.position += (mover.speed + speed) / 2 * TIME_STEP if mover.yields else speed * TIME_STEP
            mover.speed = speed
        self.time += TIME_STEP

    def _discs(self, state: Array) -> tuple[Array, Array, Array]:
        """Everything as discs [D, 3] (x, y, radius), whose they are [D] and their velocities [D, 2]."""
        owners, offsets, radii = self._shapes
        x, y, heading, speed = state[owners, :4].T
        cos, sin = np.cos(heading), np.sin(heading)
        discs = np.column_stack([x + offsets * cos, y + offsets * sin, radii])
        there = np.isfinite(x)
        return discs[there], owners[there], np.column_stack([cos * speed, sin * speed])[there]

    @cached_property
    def _shapes(self) -> tuple[Array, Array, Array]:
        """Of all discs: whose they are, metres before the owner's middle, radius."""
        rows = []
        for number, mover in enumerate(self.movers):
            count = max(1, int(np.ceil(mover.length / max(mover.width, 0.5))))
            for offset in (np.arange(count) + 0.5) / count * mover.length - mover.length / 2:
                rows.append((number, offset, mover.width / 2))
        owners, offsets, radii = np.reshape(rows, (-1, 3)).T
        return owners.astype(np.int64), offsets, radii

    def _gap(self, mover: Mover, discs: Array, velocities: Array) -> tuple[float, float]:
        """Free metres before a vehicle's front on its path, and how fast what ends them moves along the path."""
        x, y, _ = mover.place()
        near = np.hypot(discs[:, 0] - x, discs[:, 1] - y) < SIGHT + mover.length
        discs, velocities = discs[near], velocities[near]
        if not len(discs):
            return np.inf, 0.0
        ahead = np.arange(mover.length / 2, mover.length / 2 + SIGHT, 0.75)
        px, py, headings = mover.path.at(mover.position + ahead)
        apart = np.hypot(px[:, None] - discs[:, 0], py[:, None] - discs[:, 1]) - discs[:, 2]
        blocked = apart < mover.width / 2 + 0.25
        first = np.flatnonzero(blocked.any(1))
        if not len(first):
            return np.inf, 0.0
        at = first[0]
        which = np.flatnonzero(blocked[at])[0]
        along = velocities[which] @ [np.cos(headings[at]), np.sin(headings[at])]
        return float(ahead[at] - mover.length / 2), max(float(along), 0.0)

    def _red_gap(self, mover: Mover) -> float:
        """Metres to the next red light; those who could not stop any more drive on."""
        gaps = [
            place - mover.position - mover.length / 2 + LEAST_GAP
            for place, light in mover.path.stops
            if place > mover.position + mover.length / 2 and self.is_red(light)
        ]
        needed = mover.speed**2 / (2 * 0.6 * HARDEST)
        return min((gap for gap in gaps if gap > needed), default=np.inf)

    def _walk(self, mover: Mover, state: Array) -> float:
        """Speed of a person; who waits at the kerb goes when no vehicle is near, and then keeps going."""
        if mover.stays and mover.position >= mover.path.length:
            return 0.0
        if mover.speed > 0 or not mover.waits:
            return mover.wish
        x, y, _ = mover.path.at(mover.path.length / 2)
        vehicles = [i for i, m in enumerate(self.movers) if m.yields and not m.gone]
        near = np.hypot(state[vehicles, 0] - x, state[vehicles, 1] - y) < 16 + 2.0 * state[vehicles, 3]
        return 0.0 if near.any() else mover.wish


def _followed(mover: Mover, gap: float, ahead: float) -> float:
    """Speed after one step of the intelligent driver model."""
    allowed = float(np.interp(mover.position, mover.path.lengths, mover.path.speeds))
    wish = max(min(mover.wish, allowed), 0.1)
    free = 1 - (mover.speed / wish) ** 4
    if gap < 0.4:
        return 0.0
    closing = mover.speed * (mover.speed - ahead) / (2 * np.sqrt(ACCELERATION * BRAKING))
    wanted = LEAST_GAP + max(0.0, mover.speed * TIME_GAP + closing)
    change = ACCELERATION * (free - (wanted / gap) ** 2)
    return max(0.0, mover.speed + float(np.clip(change, -HARDEST, ACCELERATION)) * TIME_STEP)
