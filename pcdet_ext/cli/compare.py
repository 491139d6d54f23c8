"""Compare simulated frames with real ones, or any two sets of frames in KITTI's layout.

pcdet compare data/sim /data/kitti --split all --real-split train --out comparison.png --json comparison.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import UsageError

if TYPE_CHECKING:
    from pcdet_ext.data.kitti.statistics import Statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("simulated", type=path, help="the one data folder")
    parser.add_argument("real", type=path, help="the other data folder")
    parser.add_argument("--split", default="train", help="frames of the first folder (default: train)")
    parser.add_argument("--real-split", default="train", help="frames of the second folder (default: train)")
    parser.add_argument("--names", nargs=2, default=("simulated", "real"), help="how the plots call the two")
    parser.add_argument("--out", type=path, help="picture to write (.png)")
    parser.add_argument("--json", type=path, help="write all numbers here")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.data.kitti.statistics import differences, measure
    from pcdet_ext.files import atomic_write, check_output_file
    from pcdet_ext.visualization.comparison import draw_comparison

    names = tuple(options.names)
    if names[0] == names[1]:
        raise UsageError(f"--names: the two sets need different names, both are {names[0]!r}")
    if options.out and options.out.suffix.lower() != ".png":
        raise UsageError(f"--out: {options.out}: the picture is a .png file")
    if "differences" in names:
        raise UsageError("--names: 'differences' is what the table of the file is called; take another name")
    for target, other in ((options.out, options.json), (options.json, options.out)):
        if target:
            check_output_file(target, filter(None, [options.simulated, options.real, other]))
    sets = {
        names[0]: measure(options.simulated, options.split),
        names[1]: measure(options.real, options.real_split),
    }
    apart = differences(*sets.values())
    if options.out:
        draw_comparison(options.out, sets)
    if options.json:
        content = {"differences": apart} | {name: found.to_json() for name, found in sets.items()}
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _print(sets, apart)
    return 0


def _print(sets: Mapping[str, Statistics], apart: dict[str, float]) -> None:
    for name, found in sets.items():
        counts = ", ".join("-" if n is None else f"{n:.0f}" for n in found.points_by_distance())
        print(f"{name}: {found.frames} frames of {found.points.mean():.0f} points")
        print(f"  points per unhidden car, by distance: {counts}")
    print("share of the values that would have to change (0: the same distribution):")
    for name, value in sorted(apart.items(), key=lambda pair: -pair[1]):
        print(f"  {name:40s} {value:.2f}")
