"""Write the whole detector of a checkpoint as an ONNX model: points in; boxes, scores and labels out.

    pcdet export runs/pillars/best.ckpt pillars.onnx --check 000010.bin 000011.bin

The model has standard operators alone, voxelisation and suppression included, and takes clouds of any number of points.
--check runs it in onnxruntime beside PyTorch, prints the differences and both times, and fails where they do not agree.

    pcdet export runs/pillars/best.ckpt half.onnx --precision fp16
    pcdet export runs/pillars/best.ckpt small.onnx --precision int8 --calibrate 000000.bin 000001.bin --check 000010.bin

Inner layers then compute in fewer bits; what that changes is printed, and fails only beyond a --tolerance, or where
nothing at all is found any more. `pcdet test --onnx` measures what it costs.
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import add_imports, add_overrides, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path,
        help="a file that a training wrote, or a name as kitti/demo_sim",
    )
    parser.add_argument("out", type=path, metavar="OUT.onnx", help="the file to write")
    add_overrides(parser, "the checkpoint's configuration")
    parser.add_argument("--opset", type=int, default=18, help="version of the standard operators (default 18)")
    parser.add_argument(
        "--check", type=path, nargs="+", default=[], metavar="FRAME", help="files of points to compare results on"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the inner layers: 16-bit floats, or 8-bit integers in ranges that --calibrate tells (default fp32)",
    )
    parser.add_argument(
        "--calibrate", type=path, nargs="+", default=[], metavar="FRAME", help="files of points that int8 is fitted to"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        nargs=2,
        metavar=("BOX", "SCORE"),
        help="largest differences that --check accepts, in metres (radians, metres per second) and of scores (default "
        "0.001 0.0001 for fp32, none for fp16 and int8)",
    )
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.cli.errors import FailureError, UsageError
    from pcdet_ext.export.check import compare_frames, disagreement, read_clouds
    from pcdet_ext.export.onnx import export, save
    from pcdet_ext.export.quantization import check_calibration
    from pcdet_ext.export.writes import RecordingError
    from pcdet_ext.files import check_output_file
    from pcdet_ext.inference import load

    lists = [options.check, options.calibrate]
    changes = [str(p) for given in lists for p in given if "=" in str(p) and not p.exists()]  # a.b=c behind frames
    frames, calibrating = ([p for p in given if str(p) not in changes] for given in lists)
    if bool(calibrating) != (options.precision == "int8"):
        raise UsageError("--calibrate names the frames that --precision int8 is fitted to, and these go together")
    if options.tolerance and not frames:
        raise UsageError("--tolerance says what --check accepts, and needs its frames")
    check_output_file(options.out, [options.checkpoint, *frames, *calibrating])
    detector = load(options.checkpoint, "cpu", [*options.overrides, *changes], options.imports)
    read_clouds(detector, frames)  # what cannot be read is said before the export takes its time
    clouds = read_clouds(detector, calibrating)
    check_calibration(detector, clouds)
    try:
        model = export(detector, options.opset, options.precision, list(clouds.values()))
    except RecordingError as error:
        raise FailureError(f"{options.checkpoint}: {error}") from error
    save(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    compared = compare_frames(detector, options.out, frames) if frames else []
    print(*compared, sep="\n", end="\n" if compared else "")
    lowest = float(getattr(detector.model.head, "score_threshold", None) or 0.0)  # None: all scores are told
    if fault := disagreement(compared, options.precision, options.tolerance, lowest):
        raise FailureError(f"{options.out}: {fault}")
    return 0
