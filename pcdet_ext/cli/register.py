"""Lay one point cloud over another one of the same place, and print the pose.

    pcdet register a.bin b.bin runs/registration.ckpt --json pose.json --out pose.png

The checkpoint is of a network that `pcdet benchmark registration` trained; without one the points are described by fast
point feature histograms (FPFH), which are not learned and computed on the CPU. The exit code is 1 where no pose was
found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use

if TYPE_CHECKING:
    from pcdet_ext.registration import Registration
    from pcdet_ext.registration.pose import Describer
    from pcdet_ext.structures import Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pcdet_ext.registration.ground import GROUND
    from pcdet_ext.registration.pose import FEWEST_INLIERS

    parser.add_argument("source", type=path, metavar="A", help="the cloud that is moved (.bin, .npy, .pcd, .ply, .las)")
    parser.add_argument("target", type=path, metavar="B", help="the cloud that stays")
    parser.add_argument("checkpoint", type=path, nargs="?", help="of the network (default: FPFH, without a network)")
    parser.add_argument(
        "--min-inliers",
        type=int,
        default=FEWEST_INLIERS,
        metavar="N",
        help="correspondences that have to agree for a pose to count as found (default %(default)s)",
    )
    parser.add_argument(
        "--ground",
        type=float,
        default=GROUND,
        metavar="METRES",
        help="above the lowest points around, up to which points are on the ground and left out; 0 keeps the ground "
        "(default %(default)s)",
    )
    parser.add_argument("--device", help="where the network runs: auto, cpu, cuda, … (default cpu)")
    parser.add_argument("--json", type=path, help="write the pose and all numbers here")
    parser.add_argument("--out", type=path, metavar="PICTURE.png", help="draw both clouds, laid over each other")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.files import check_output_file
    from pcdet_ext.registration import register
    from pcdet_ext.registration.pose import MATCH_DISTANCE, open3d

    if options.out and options.out.suffix.lower() != ".png":
        raise UsageError(f"--out: {options.out}: the picture is a .png file")
    read = [options.source, options.target, options.checkpoint]
    for output, other in ((options.out, options.json), (options.json, options.out)):
        if output:
            check_output_file(output, filter(None, [*read, other]))
    open3d()  # what is missing is said before anything is computed
    describe, voxel_size = _describer(options.checkpoint, options.device)
    ground = options.ground if options.ground != 0 else None
    source, target = _read(options.source), _read(options.target)
    with wrong_use():
        distance = MATCH_DISTANCE * voxel_size
        found = register(source, target, describe, distance, ground, options.min_inliers)
    if options.json:
        _write(options.json, options, found, distance)
    if found.pose is None:
        raise FailureError(
            f"no pose was found: at most {found.inliers} of {found.matches} correspondences agree on one, and "
            f"{options.min_inliers} have to (--min-inliers); are {options.source} and {options.target} of one place?"
        )
    print("\n".join(_lines(found, distance)))
    if options.out:
        from pcdet_ext.visualization.overlay import draw_overlay

        draw_overlay(options.out, source, target, found.pose, (options.source.name, options.target.name))
    return 0


def _describer(checkpoint: Path | None, device: str | None) -> tuple[Describer, float]:
    """What describes points, and the edge of its voxels in metres. Raises UsageError for a device without a network."""
    from pcdet_ext.inference import resolve_device
    from pcdet_ext.registration import FPFH, NetworkDescriber, load_network

    if checkpoint is None:
        if device is not None:
            raise UsageError("--device: is that of a network; without a checkpoint FPFH is computed, on the CPU")
        without = FPFH()
        return without, without.voxel_size
    place = resolve_device(device or "cpu")
    network = load_network(checkpoint).to(place)
    return NetworkDescriber(network), network.voxel_size


def _read(file: Path) -> Array:
    """The finite points of a cloud. Raises DataError for a file without any, and for points farther than a map."""
    import numpy as np

    from pcdet_ext.data.points import read_cloud
    from pcdet_ext.files import DataError
    from pcdet_ext.registration.checks import check_cloud

    points, _ = read_cloud(file)
    points = points[np.isfinite(points[:, :3]).all(1)]
    if not len(points):
        raise DataError(f"{file}: has no points with finite coordinates")
    try:
        check_cloud(points, str(file))
    except ValueError as error:
        raise DataError(str(error)) from error
    return points


def _lines(found: Registration, distance: float) -> list[str]:
    assert found.pose is not None
    rows = ["  ".join(f"{value:11.5f}" for value in row) for row in found.pose]
    share = 100 * found.inliers / found.matches
    return [
        "pose of A in the frame of B:",
        *rows,
        f"{found.inliers} of {found.matches} correspondences ({share:.0f} %) are within {distance:g} m of each other",
    ]


def _write(file: Path, options: argparse.Namespace, found: Registration, distance: float) -> None:
    from pcdet_ext.files import atomic_write

    content = {
        "source": str(options.source),
        "target": str(options.target),
        "checkpoint": str(options.checkpoint) if options.checkpoint else None,
        "pose": None if found.pose is None else found.pose.tolist(),
        "inliers": found.inliers,
        "matches": found.matches,
        "distance_metres": distance,
        "ground_metres": options.ground,
    }
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
