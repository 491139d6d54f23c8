"""Measure this library.

    pcdet benchmark ops [--device cuda] [--only voxelize] [--json FILE]
    pcdet benchmark models [CONFIG …] [data.root=DIR] [--device cuda] [--json FILE]
    pcdet benchmark steps CONFIG … data.root=DIR [--device cuda]
    pcdet benchmark data [CONFIG … data.root=DIR] [--workers 2] [--json FILE]
    pcdet benchmark metrics CASE … [--official eval_argoverse2=13.4] [--json FILE]
    pcdet benchmark kernels [--only wkv] [--architectures 80 90] [--json FILE]
    pcdet benchmark trackers [--detections 100] [--frames 200] [--json FILE]
    pcdet benchmark places CHECKPOINT [data.root=DIR] [--split val] [--json FILE]
    pcdet benchmark registration DIR CHECKPOINT [--steps 800] [--pairs 200] [--apart 5 15]
                                 [--ground 0.4] [--json FILE]

Ratios are how many times longer the named peer took, both measured in one run; exits 1 when results differ, and when a
CUDA kernel spills registers or moves over twice the bytes that it must without a reason that is written down.
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import wrong_use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True)
    _add_ops(kinds.add_parser("ops", help="operations against their references and other libraries"))
    _add_models(kinds.add_parser("models", help="detectors at their published size, stage by stage"))
    _add_steps(kinds.add_parser("steps", help="training steps on the frames of a data set"))
    _add_data(kinds.add_parser("data", help="samples from the files of a data set, and an index of many frames"))
    _add_places(kinds.add_parser("places", help="place recognition by a checkpoint, beside scan context"))
    _add_registration(kinds.add_parser("registration", help="poses between clouds by a trained network, beside FPFH"))
    _add_kernels(
        kinds.add_parser("kernels", help="registers, spills, shared memory and bytes moved of the CUDA kernels")
    )
    _add_trackers(kinds.add_parser("trackers", help="frames per second of the trackers, on one core"))
    _add_metrics(kinds.add_parser("metrics", help="official metrics, beside the seconds of the official tools"))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where it is measured (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")


def _add_ops(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--frames", nargs="+", type=path, default=[], metavar="PATH", help="point files or folders of them"
    )
    parser.add_argument(
        "--voxels",
        nargs="+",
        type=int,
        default=[20_000, 100_000],
        metavar="N",
        help="sizes of the synthetic scans (default: 20000 100000)",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="benchmarks to run (default: all)")
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_models(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "given",
        nargs="*",
        metavar="CONFIG|a.b=c",
        help="configurations (default: published models), and changes of all of them",
    )
    parser.add_argument(
        "--frames",
        nargs="+",
        choices=["usual", "dense"],
        default=["usual", "dense"],
        help="usual: as the sensors of the data set give it, simulated where data.root is not prepared; dense: joined "
        "scans with --voxels (default: both)",
    )
    parser.add_argument(
        "--voxels",
        type=int,
        help="voxels of the dense frame (default: 60000, or what the detector's range holds of 64 scans)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="passes that count (default 3)")
    parser.add_argument("--reference-scan", action="store_true", help="also time Mamba on the PyTorch scan")
    parser.add_argument(
        "--operations", type=int, default=0, metavar="N", help="list the N operations that take the most time"
    )
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_steps(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("given", nargs="+", metavar="CONFIG|a.b=c", help="configurations, and changes of all of them")
    parser.add_argument("--steps", type=int, default=6, help="steps that count (default 6)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("given", nargs="*", metavar="CONFIG|a.b=c", help="configurations, and changes of all of them")
    parser.add_argument("--samples", type=int, default=100, help="samples that count (default 100)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes that are measured too (default 1)")
    parser.add_argument("--frames", type=int, default=160_000, help="frames of the made-up index (default 160000)")
    parser.add_argument("--boxes", type=int, default=60, help="boxes of each of its frames (default 60)")
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path, help="a file that a training wrote")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes of its configuration")
    parser.add_argument("--split", help="frames to test on (default: the configuration's test.split, else val)")
    parser.add_argument("--device", default="auto", help="where the model runs (default: CUDA where there is one)")
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_registration(parser: argparse.ArgumentParser) -> None:
    from pcdet_ext.registration.ground import GROUND
    from pcdet_ext.registration.pairs import APART

    parser.add_argument("root", type=path, help="prepared folder for place recognition (pcdet prepare places)")
    parser.add_argument(
        "checkpoint", type=path, help="of the network: trained and written, or loaded and trained on if it was stopped"
    )
    parser.add_argument("--steps", type=int, default=800, help="steps of training on the split train (default 800)")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of the split val to register (default 200)")
    parser.add_argument(
        "--apart",
        type=float,
        nargs=2,
        default=APART,
        metavar=("FROM", "TO"),
        help=f"metres between the clouds of these pairs (default {APART[0]:g} to {APART[1]:g})",
    )
    parser.add_argument(
        "--ground",
        type=float,
        default=GROUND,
        metavar="METRES",
        help="above the lowest points around, up to which points are on the ground and left out of the tested pairs; "
        "0 keeps the ground (default %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where the network runs (default: cpu)"
    )
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="folders of ops/ (default: all)")
    parser.add_argument(
        "--architectures", nargs="+", default=["80", "90"], help="compute capabilities (default: 80 90)"
    )
    parser.add_argument("--json", type=path, help="write everything to this file")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "cases", nargs="+", type=path, metavar="CASE", help="folders of cases, as tools/reproduce.py takes"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument(
        "--official",
        nargs="+",
        default=[],
        metavar="METRIC=SECONDS",
        help="seconds of an official tool that the cases do not record",
    )
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def _add_trackers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detections", type=int, default=100, help="objects in a frame (default 100)")
    parser.add_argument("--frames", type=int, default=200, help="frames of the sequence (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--json", type=path, help="write everything measured to this file")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.engine.allocation import keep_freed_memory

    keep_freed_memory()
    with wrong_use():
        runs = {
            "ops": _run_ops,
            "models": _run_models,
            "steps": _run_steps,
            "data": _run_data,
            "kernels": _run_kernels,
            "metrics": _run_metrics,
            "places": _run_places,
            "registration": _run_registration,
            "trackers": _run_trackers,
        }
        return runs[options.kind](options)


def _run_ops(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import report

    places = (options.device, options.frames, options.only, options.json, options.threads)
    return 0 if report.run_ops(*places, options.voxels) else 1


def _run_models(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import models

    overrides = [given for given in options.given if "=" in given]
    configs = [given for given in options.given if "=" not in given]
    sizes = (options.voxels, options.rounds, options.threads)
    rest = options.reference_scan, options.json, options.frames, options.operations
    models.run_models(configs, options.device, *sizes, *rest, overrides)
    return 0


def _run_steps(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import steps

    overrides = [given for given in options.given if "=" in given]
    configs = [given for given in options.given if "=" not in given]
    steps.run_steps(configs, overrides, options.device, options.steps, options.threads)
    return 0


def _run_data(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import data

    overrides = [given for given in options.given if "=" in given]
    configs = [given for given in options.given if "=" not in given]
    sizes = (options.samples, options.workers, options.frames, options.boxes)
    data.run_data(configs, overrides, *sizes, options.json)
    return 0


def _run_places(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark.places import run_places

    run_places(options.checkpoint, options.overrides, options.split, options.json, options.device)
    return 0


def _run_registration(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark.registration import run_registration

    sizes = (options.steps, options.pairs, tuple(options.apart))
    ground = options.ground if options.ground != 0 else None
    run_registration(options.root, options.checkpoint, *sizes, options.json, options.device, ground=ground)
    return 0


def _run_kernels(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import kernels

    found = kernels.run_kernels(options.only, options.architectures, options.json)
    return int(any(resources.fault for resources in found))


def _run_metrics(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark import metrics

    metrics.run_metrics(options.cases, dict(map(_seconds, options.official)), options.rounds, options.json)
    return 0


def _seconds(given: str) -> tuple[str, float]:
    """Raises ValueError for anything but METRIC=SECONDS."""
    name, _, value = given.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--official takes METRIC=SECONDS with a positive number, got {given!r}")
    return name, seconds


def _run_trackers(options: argparse.Namespace) -> int:
    from pcdet_ext.benchmark.trackers import run_trackers

    run_trackers(options.detections, options.frames, options.rounds, options.json)
    return 0
