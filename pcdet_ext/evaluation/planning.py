"""Open-loop planning on nuScenes: distance to the driven path (L2) and collisions with annotated boxes.

The rules are those of UniLION's evaluator: exact rectangles, a future of six steps of half a second, in the frame of
the vehicle at the sample (x forward, y left). Numbers of evaluators that rasterise the boxes are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot
from pcdet_ext.structures import Array

STEPS = 6
STEP_SECONDS = 0.5
REPORTED = (1, 3, 5)  # steps at 1, 2 and 3 seconds
EGO_SIZE = (4.084, 1.85)  # metres, length and width
EGO_SHIFT = 0.985793 + 0.5  # metres from the reference point to the centre, along the heading
STANDING = 0.5  # metres between the first and the last step below which the heading is 0
KINDS = ("obj_col", "obj_box_col", "L2")


@dataclass(frozen=True, eq=False)
class Plans:
    """What is compared, for N samples.

    found: float32 [N, 6, 2], planned places; offsets: float32 [N, 6, 2], true ways from step to step; known: bool
    [N, 6], whether a step's truth is known; boxes: float64 [K, 7] (x, y, z, length, width, height, yaw) around the
    vehicle, in the frame of the sample, one step after the other; counts: int64 [N, 6], boxes of each step.
    """

    found: Array
    offsets: Array
    known: Array
    boxes: Array
    counts: Array

    def __post_init__(self) -> None:
        samples = len(self.found)
        shapes = {"found": (STEPS, 2), "offsets": (STEPS, 2), "known": (STEPS,), "counts": (STEPS,)}
        for name, shape in shapes.items():
            actual = getattr(self, name).shape
            if actual != (samples, *shape):
                raise ValueError(f"{name} must be {[samples, *shape]}, got {list(actual)}")
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 7 or int(self.counts.sum()) != len(self.boxes):
            raise ValueError(f"boxes must be [{int(self.counts.sum())}, 7] as counts says, got {self.boxes.shape}")


@dataclass(frozen=True, eq=False)
class PlanningResult:
    """What every evaluated sample gave.

    distance: float32 [M, 6], metres; truth_collides, collides: bool [M, 6], whether the driven path touches a box at a
    step, and whether only the planned one does; samples: int64 [M], rows of the evaluated samples.
    """

    distance: Array
    truth_collides: Array
    collides: Array
    samples: Array

    def per_step(self) -> dict[str, Array]:
        """Means over the samples at each step, float64 [6] by name: the convention of UniAD."""
        numbers = (self.truth_collides, self.collides, self.distance)
        return {name: value.mean(axis=0, dtype=np.float64) for name, value in zip(KINDS, numbers, strict=True)}

    def up_to_step(self) -> dict[str, Array]:
        """Means over the samples and over all steps up to each, float64 [6]: the convention of ST-P3 and VAD."""
        return {name: row.cumsum() / np.arange(1, STEPS + 1) for name, row in self.per_step().items()}

    @property
    def score(self) -> float:
        """What "better" means: the smaller distance, so its negative."""
        return -self.values["L2"]

    @property
    def values(self) -> dict[str, float]:
        """Means of the numbers up to 1, 2 and 3 seconds; collisions as fractions."""
        return {name: float(row[list(REPORTED)].mean()) for name, row in self.up_to_step().items()}

    def table(self) -> str:
        """Both conventions; collisions in percent."""
        heads = [f"{STEP_SECONDS * (i + 1):.1f} s" for i in range(STEPS)]
        lines = [f"{f'{len(self.samples)} samples':<30}" + "".join(f" {head:>9}" for head in [*heads, "1, 2, 3 s"])]
        for title, rows in (("up to the step", self.up_to_step()), ("at the step", self.per_step())):
            for name, row in rows.items():
                factor, unit = (1, "m") if name == "L2" else (100, "%")
                cells = (*row, row[list(REPORTED)].mean())
                lines.append(f"{f'{name}, {unit}, {title}':<30}" + "".join(f" {factor * v:>9.3f}" for v in cells))
        return "\n".join(lines)

    def plots(self) -> Sequence[Plot]:
        """Distance over time, in both conventions."""
        seconds = STEP_SECONDS * np.arange(1, STEPS + 1)
        curves = {"up to the step": self.up_to_step()["L2"], "at the step": self.per_step()["L2"]}
        return [Plot("planning_l2", "seconds", "L2, m", {name: (seconds, row) for name, row in curves.items()})]

    def to_json(self) -> dict[str, Any]:
        """All numbers, and what each evaluated sample gave."""
        step, up_to = self.per_step(), self.up_to_step()
        at = {"per_step": step, "mean_up_to_step": up_to}
        return {
            "n_evaluated": len(self.samples),
            "metrics": self.values,
            **{kind: {name: row.tolist() for name, row in rows.items()} for kind, rows in at.items()},
            "at_1s_2s_3s": {
                kind: {name: row[list(REPORTED)].tolist() for name, row in rows.items()} for kind, rows in at.items()
            },
            "per_sample": {
                "L2": self.distance.astype(np.float64).tolist(),
                "gt_collision": self.truth_collides.astype(int).tolist(),
                "collision": self.collides.astype(int).tolist(),
                "sample": self.samples.tolist(),
            },
        }


def evaluate(plans: Plans) -> PlanningResult:
    """Measure the samples whose six steps are all known. Raises ValueError where there is none."""
    kept = np.asarray(plans.known.all(axis=1))
    if not kept.any():
        raise ValueError("no sample has all six steps: there is nothing to measure")
    truth = plans.offsets[kept].cumsum(axis=1, dtype=np.float32)
    found = plans.found[kept].astype(np.float32)
    step_of_box = np.repeat(np.arange(plans.counts.size), plans.counts.reshape(-1))
    boxes, counts = plans.boxes[kept[step_of_box // STEPS]], plans.counts[kept]
    truth_collides = collide(truth, boxes, counts)
    return PlanningResult(
        distance=np.sqrt(((found - truth) ** 2).sum(axis=2)),
        truth_collides=truth_collides,
        collides=collide(found, boxes, counts) & ~truth_collides,
        samples=np.flatnonzero(kept),
    )


def headings(path: Array) -> Array:
    """The vehicle's heading at each step of paths float32 [N, 6, 2]: float32 [N, 6], radians.

    Along the way from the step before to the one after; at the last step, from the one before it. Where the last place
    is within half a metre of the first, all are 0.
    """
    before = np.concatenate([np.zeros_like(path[:, :1]), path[:, :-1]], axis=1)
    after = np.concatenate([path[:, 1:], path[:, -1:]], axis=1)
    way = after - before
    way[:, -1] = path[:, -1] - path[:, -2]
    yaw = np.arctan2(way[..., 1], way[..., 0])
    span = path[:, -1] - path[:, 0]
    standing = np.sqrt((span**2).sum(axis=1)) < np.float32(STANDING)
    return np.where(standing[:, None], np.float32(0), yaw)


def collide(path: Array, boxes: Array, counts: Array) -> Array:
    """Whether the vehicle touches a box of the same step. Touching borders count; heights do not matter.

    Args:
        path: float32 [N, 6, 2], places of the vehicle.
        boxes: float64 [K, 7], as in `Plans`.
        counts: int64 [N, 6], as in `Plans`.

    Returns:
        bool [N, 6].
    """
    from pcdet_ext.evaluation.compiled_scenes import collisions

    yaw = headings(path)
    along = np.stack([np.cos(yaw), np.sin(yaw)], axis=2)
    centre = path + np.float32(EGO_SHIFT) * along
    egos = np.concatenate([centre, yaw[..., None]], axis=2).reshape(-1, 3).astype(np.float64)
    size = np.array(EGO_SIZE, np.float32).astype(np.float64)
    starts = np.r_[0, counts.reshape(-1).cumsum()].astype(np.int64)
    flat = np.ascontiguousarray(boxes[:, [0, 1, 3, 4, 6]], np.float64)
    return np.asarray(collisions(egos, size, starts, flat)).reshape(path.shape[:2])
