"""Simulate LiDAR data of streets.

pcdet simulate --format kitti --frames 200 --seed 0 --out data/sim
pcdet simulate --format nuscenes --scenes 10 --frames 20 --out data/sim_nuscenes
pcdet simulate --format waymo --scenes 10 --frames 50 --out data/sim_waymo
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use

if TYPE_CHECKING:
    from pcdet_ext.data.simulation import Made

FORMATS = ("kitti", "nuscenes", "waymo")
SCANS_PER_KEY = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="kitti", help="layout of the files (default: kitti)")
    parser.add_argument("--out", type=path, required=True, help="folder to write to")
    parser.add_argument(
        "--frames",
        type=int,
        required=True,
        help="labelled frames: kitti: of the whole data set, each a street of its own; nuscenes: key frames per scene, "
        "two per second with nine sweeps between them; waymo: frames per scene, ten per second",
    )
    parser.add_argument("--scenes", type=int, help="drives through a street each (nuscenes, waymo; default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data (default: 0)")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.2,
        help="share of the frames (kitti) or scenes that are held out for validation (default: 0.2)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--beams",
        type=int,
        help="beams of the sensor, for waymo of the top laser (default: kitti 64, nuscenes 32, waymo 64)",
    )
    parser.add_argument(
        "--azimuths",
        type=int,
        help="firings of each beam per turn (default: kitti 2080, nuscenes 1085, waymo 1325; the real one has 2650)",
    )
    parser.add_argument(
        "--side-beams",
        type=int,
        help="waymo: beams of the four short-range lasers (default: 50; the real ones have 200)",
    )
    parser.add_argument(
        "--side-azimuths",
        type=int,
        help="waymo: firings per turn of the four short-range lasers (default: 150; the real ones have 600)",
    )
    parser.add_argument("--version", help="nuscenes: name of the tables, v1.0-mini (default) or v1.0-trainval")


class _Watch:
    """Shows how far a simulation is, and what it took."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.name = total, name
        self.begun = False
        self.scans = 0
        self.casting = 0.0
        self.seconds = 0.0

    def __call__(self, made: Iterator[Made]) -> Iterator[Made]:
        from tqdm import tqdm

        self.begun, begin = True, time.perf_counter()
        with tqdm(total=self.total, unit="frame", desc=self.name) as bar:
            for piece in made:
                self.scans += piece.scans
                self.casting += piece.casting
                bar.update(piece.scans)
                yield piece
        self.seconds = time.perf_counter() - begin

    def line(self, workers: int) -> str:
        """What was made, how fast, and how much of it was ray-casting."""
        if not self.scans:
            return "all frames were there already; what was missing beside them is written"
        each = 1000 * self.casting / self.scans
        return (
            f"{self.scans} frames in {self.seconds:.1f} s: {self.scans / self.seconds:.1f} frames/s with {workers} "
            f"processes; ray-casting took {each:.0f} ms of processor time per frame"
        )


def run(options: argparse.Namespace) -> int:
    watch = _Watch(_scans(options), str(options.out))
    with wrong_use():
        _simulate(options, watch)
    if not watch.begun:
        raise FailureError(f"{options.out}: holds these frames already, there is nothing to do")
    print(watch.line(options.workers))
    return 0


def _scans(options: argparse.Namespace) -> int:
    """Scans that will be made, for the progress bar."""
    scenes = _scenes(options)
    return {
        "kitti": options.frames,
        "nuscenes": scenes * ((options.frames - 1) * SCANS_PER_KEY + 1),
        "waymo": scenes * options.frames,
    }[options.format]


def _scenes(options: argparse.Namespace) -> int:
    return 10 if options.scenes is None else options.scenes


ONLY = {
    "scenes": ("nuscenes", "waymo"),
    "version": ("nuscenes",),
    "side_beams": ("waymo",),
    "side_azimuths": ("waymo",),
}


def _simulate(options: argparse.Namespace, watch: _Watch) -> None:
    from pcdet_ext.data.simulation import (
        EvenLidar,
        SpinningLidar,
        WaymoLasers,
        simulate_kitti,
        simulate_nuscenes,
        simulate_waymo,
    )

    for name, formats in ONLY.items():
        if getattr(options, name) is not None and options.format not in formats:
            raise UsageError(f"--{name.replace('_', '-')} is for {' and '.join(formats)}, not for {options.format}")
    common = {"seed": options.seed, "val_fraction": options.val_fraction, "workers": options.workers, "progress": watch}
    turn = _chosen(options, beams="beams", azimuths="azimuths")
    if options.format == "kitti":
        simulate_kitti(options.out, options.frames, sensor=SpinningLidar(**turn), **common)
    elif options.format == "nuscenes":
        version = options.version or "v1.0-mini"
        simulate_nuscenes(
            options.out, _scenes(options), options.frames, sensor=EvenLidar(**turn), version=version, **common
        )
    else:
        pixels = _chosen(
            options, beams="rows", azimuths="columns", side_beams="side_rows", side_azimuths="side_columns"
        )
        simulate_waymo(options.out, _scenes(options), options.frames, sensor=WaymoLasers(**pixels), **common)


def _chosen(options: argparse.Namespace, **names: str) -> dict[str, Any]:
    """The options that were given, under the names that a sensor has for them."""
    return {name: getattr(options, option) for option, name in names.items() if getattr(options, option) is not None}
