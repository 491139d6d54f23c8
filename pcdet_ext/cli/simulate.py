"""Simulate LiDAR data of streets.

pcdet simulate --format kitti --frames 200 --seed 0 --out data/sim
pcdet simulate --format nuscenes --scenes 10 --frames 20 --out data/sim_nuscenes
pcdet simulate --format waymo --scenes 10 --frames 50 --out data/sim_waymo
pcdet simulate --format semantickitti --scenes 10 --frames 20 --out data/sim_semantickitti     labels of points
pcdet simulate --format places --scenes 5 --frames 60 --runs 5 --out data/sim_places
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use

if TYPE_CHECKING:
    from pcdet_ext.data.simulation import Made
    from pcdet_ext.data.simulation.layouts import Option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pcdet_ext.data.simulation.layouts import SIMULATIONS, USUAL, options

    names = SIMULATIONS.names()
    parser.add_argument("--format", choices=names, default=USUAL, help=f"layout of the files (default: {USUAL})")
    parser.add_argument("--out", type=path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data (default: 0)")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.2,
        help="share of the frames or scenes that are held out for validation (default: 0.2)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    for option in options():
        needed = all(default is ... for default in option.defaults.values())
        parser.add_argument(_flag(option.name), type=option.type, required=needed, help=_help(option, len(names)))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listed(names: Iterable[str]) -> str:
    """Names in words."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _help(option: Option, layouts: int) -> str:
    """What an option means, for which layouts it is where not for all, and its defaults."""
    having = option.defaults
    only = f"{_listed(having)}: " if len(having) < layouts else ""
    different = {default for default in having.values() if default is not ...}
    if not different:
        return f"{only}{option.meaning}"
    each = ", ".join(f"{layout} {default}" for layout, default in having.items())
    return f"{only}{option.meaning} (default: {each if len(different) > 1 else different.pop()})"


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
    from pcdet_ext.data.simulation.layouts import SIMULATIONS

    given = _given(options)
    with wrong_use():
        simulation = SIMULATIONS.get(options.format)(**given)
        watch = _Watch(simulation.scans, str(options.out))
        simulation.write(
            options.out,
            seed=options.seed,
            val_fraction=options.val_fraction,
            workers=options.workers,
            progress=watch,
        )
    if not watch.begun:
        raise FailureError(f"{options.out}: holds these frames already, there is nothing to do")
    print(watch.line(options.workers))
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the simulation that were given. Raises UsageError for one that the layout does not have."""
    from pcdet_ext.data.simulation.layouts import options as known

    given = {}
    for option in known():
        if (value := getattr(options, option.name)) is None:
            continue
        if options.format not in option.defaults:
            raise UsageError(f"{_flag(option.name)} is for {_listed(option.defaults)}, not for {options.format}")
        given[option.name] = value
    return given
