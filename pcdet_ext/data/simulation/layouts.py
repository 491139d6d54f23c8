"""The layouts that simulated data can be written in, by name, with what can be chosen for each.

A function here gives a simulation from its options: their names, types and defaults are those of its signature, so the
command line has an option as soon as a function takes it. Code above this module names no layout.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pcdet_ext.config import Registry
from pcdet_ext.data.simulation.generate import (
    simulate_argoverse2,
    simulate_kitti,
    simulate_nuscenes,
    simulate_once,
    simulate_places,
    simulate_semantickitti,
    simulate_waymo,
)
from pcdet_ext.data.simulation.sensor import EvenLidar, SpinningLidar
from pcdet_ext.data.simulation.waymo_lasers import WaymoLasers

# Functions (frames, …) -> Simulation by the name of a layout.
SIMULATIONS = Registry("format")
USUAL = "kitti"  # where nobody says which
SCANS_PER_KEY = 10  # of nuScenes, from one key frame to the next

# What each option means.
OPTIONS: Mapping[str, str] = {
    "frames": "labelled frames: kitti: of the whole data set, each a street of its own; nuscenes: key frames per "
    "scene, two per second with nine sweeps between them; waymo, semantickitti and argoverse2: frames per scene, "
    "ten per second; once: frames per scene, two per second; places: frames per run, five metres apart",
    "scenes": "streets, through each of which there is one drive, of places several runs",
    "runs": "passages through each street: along it and against it in turn, in two seasons, every fifth from above",
    "beams": "beams of the sensor, for waymo of the top laser",
    "azimuths": "firings of each beam per turn (the top laser of Waymo has 2650)",
    "side_beams": "beams of the four short-range lasers (the real ones have 200)",
    "side_azimuths": "firings per turn of the four short-range lasers (the real ones have 600)",
    "version": "name of the tables, v1.0-mini or v1.0-trainval",
}


@dataclass(frozen=True)
class Simulation:
    """A simulated data set that can be written.

    scans: how many scans it has; write: writes it to a folder (out, and as keywords seed, val_fraction, workers and
    progress; see `simulate_kitti`) and returns the folder.
    """

    scans: int
    write: Callable[..., Path]


@dataclass(frozen=True)
class Option:
    """An option of simulations: its name, type, meaning, and the default in each layout that has it (... for none)."""

    name: str
    type: type
    meaning: str
    defaults: Mapping[str, Any]


def options() -> list[Option]:
    """The options of all layouts, each once."""
    found = []
    for name, meaning in OPTIONS.items():
        having = {layout: p for layout in SIMULATIONS.names() if (p := _parameters(layout).get(name)) is not None}
        defaults = {layout: ... if p.default is p.empty else p.default for layout, p in having.items()}
        kind = typing.get_type_hints(SIMULATIONS.get(next(iter(having))))[name]
        found.append(Option(name, kind, meaning, defaults))
    return found


def _parameters(layout: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(SIMULATIONS.get(layout)).parameters


@SIMULATIONS.register
def kitti(frames: int, beams: int = 64, azimuths: int = 2080) -> Simulation:
    """Single streets in KITTI's layout for object detection.

    Args:
        frames: how many streets.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
    """
    sensor = SpinningLidar(beams=beams, azimuths=azimuths)
    return Simulation(frames, partial(simulate_kitti, frames=frames, sensor=sensor))


@SIMULATIONS.register
def argoverse2(frames: int, scenes: int = 10, beams: int = 32, azimuths: int = 1085) -> Simulation:
    """Drives in the layout in which Argoverse 2's sensor data set is released.

    Args:
        frames: sweeps per scene, ten per second.
        scenes: how many drives.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
    """
    sensor = EvenLidar(beams=beams, azimuths=azimuths)
    return Simulation(scenes * frames, partial(simulate_argoverse2, scenes=scenes, frames=frames, sensor=sensor))


@SIMULATIONS.register
def nuscenes(
    frames: int, scenes: int = 10, beams: int = 32, azimuths: int = 1085, version: str = "v1.0-mini"
) -> Simulation:
    """Drives in the layout in which nuScenes is released.

    Args:
        frames: key frames per scene, two per second.
        scenes: how many drives.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
        version: name of the folder of the tables.
    """
    sensor = EvenLidar(beams=beams, azimuths=azimuths)
    write = partial(simulate_nuscenes, scenes=scenes, frames=frames, sensor=sensor, version=version)
    return Simulation(scenes * ((frames - 1) * SCANS_PER_KEY + 1), write)


@SIMULATIONS.register
def once(frames: int, scenes: int = 10, beams: int = 40, azimuths: int = 1085) -> Simulation:
    """Drives in the layout in which ONCE is released.

    Args:
        frames: per scene, two per second.
        scenes: how many drives.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
    """
    sensor = EvenLidar(beams=beams, azimuths=azimuths)
    return Simulation(scenes * frames, partial(simulate_once, scenes=scenes, frames=frames, sensor=sensor))


@SIMULATIONS.register
def places(frames: int, scenes: int = 10, runs: int = 5, beams: int = 32, azimuths: int = 360) -> Simulation:
    """Runs through the same streets, for place recognition.

    Args:
        frames: per run.
        scenes: how many streets.
        runs: through each street.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
    """
    sensor = EvenLidar(beams=beams, azimuths=azimuths)
    write = partial(simulate_places, scenes=scenes, frames=frames, runs=runs, sensor=sensor)
    return Simulation(scenes * runs * frames, write)


@SIMULATIONS.register
def semantickitti(frames: int, scenes: int = 10, beams: int = 64, azimuths: int = 2080) -> Simulation:
    """Drives in SemanticKITTI's layout, with a label for every point.

    Args:
        frames: per scene, ten per second.
        scenes: how many drives.
        beams: of the sensor.
        azimuths: firings of each beam per turn.
    """
    sensor = SpinningLidar(beams=beams, azimuths=azimuths)
    return Simulation(scenes * frames, partial(simulate_semantickitti, scenes=scenes, frames=frames, sensor=sensor))


@SIMULATIONS.register
def waymo(
    frames: int,
    scenes: int = 10,
    beams: int = 64,
    azimuths: int = 1325,
    side_beams: int = 50,
    side_azimuths: int = 150,
) -> Simulation:
    """Drives in the Parquet layout of the Waymo Open Dataset.

    Args:
        frames: per scene, ten per second.
        scenes: how many drives.
        beams: of the top laser.
        azimuths: firings of each of its beams per turn.
        side_beams: of the four short-range lasers.
        side_azimuths: firings of each of their beams per turn.
    """
    sensor = WaymoLasers(rows=beams, columns=azimuths, side_rows=side_beams, side_columns=side_azimuths)
    return Simulation(scenes * frames, partial(simulate_waymo, scenes=scenes, frames=frames, sensor=sensor))
