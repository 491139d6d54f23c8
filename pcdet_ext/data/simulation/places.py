"""Simulated runs through the same streets, in the layout for place recognition (`pcdet_ext.data.places`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pcdet_ext.data.places.files import GROUND, Frame, write_frames
from pcdet_ext.data.simulation.revisits import AerialLidar, Passage, RunPlan, Street
from pcdet_ext.data.simulation.sensor import EvenLidar
from pcdet_ext.files import atomic_write

APART = 10_000.0  # metres between the beginnings of two streets
SETTINGS = "point_features: [x, y, z, intensity]\n"


@dataclass(frozen=True)
class PlacesWriter:
    """Writes runs through streets of a seed below `root`.

    frames: of each run; runs: through each street; val: which streets are held out; spacing: metres between frames;
    ground, aerial: the sensors.
    """

    root: Path
    seed: int
    frames: int
    runs: int
    val: tuple[bool, ...]
    spacing: float
    ground: EvenLidar
    aerial: AerialLidar

    def write_run(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write run `index` of all streets' runs; returns its scans, seconds of ray-casting, its files."""
        street, plan = self._street(index // self.runs), index % self.runs
        passage = Passage(street, street.plan(plan), self.frames, self.ground, self.aerial)
        paths = []
        for number, frame in enumerate(self._frames(street, passage.plan)):
            path = self.root / frame.cloud
            with atomic_write(path) as temporary:
                passage.scan(number).tofile(temporary)
            paths.append(path)
        return self.frames, passage.world.seconds, paths

    def finish(self) -> list[Path]:
        """Write the table of all frames, and what the columns of the clouds are; returns both paths."""
        streets = [self._street(number) for number in range(len(self.val))]
        frames = [f for s in streets for run in range(self.runs) for f in self._frames(s, s.plan(run))]
        settings = self.root / "dataset.yaml"
        with atomic_write(settings) as temporary:
            temporary.write_text(SETTINGS, encoding="utf-8")
        return [write_frames(self.root, frames), settings]

    def _street(self, number: int) -> Street:
        return Street(self.seed, number, self.frames * self.spacing)

    def _frames(self, street: Street, plan: RunPlan) -> list[Frame]:
        run = f"street_{street.number:03d}/{plan.name}"
        rows = []
        for number, pose in enumerate(street.poses(plan, self.frames, self.ground.height)):
            x, y, z = pose[:3, 3].tolist()
            heading = math.atan2(pose[1, 0], pose[0, 0])
            rows.append(
                Frame(
                    f"clouds/{run}/{number:04d}.bin",
                    run,
                    "val" if self.val[street.number] else "train",
                    x + APART * street.number,
                    y,
                    z,
                    heading,
                    view="aerial" if plan.aerial else GROUND,
                )
            )
        return rows
