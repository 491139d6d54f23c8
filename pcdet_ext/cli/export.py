"""Write the whole detector of a checkpoint as an ONNX model: points in; boxes, scores and labels out.

    pcdet export runs/pillars/best.ckpt pillars.onnx --check 000010.bin 000011.bin

The model has standard operators alone, voxelisation and suppression included, and takes clouds of any number of points.
--check runs it in onnxruntime beside PyTorch, prints the differences and both times, and fails where they do not agree.
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
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.cli.errors import FailureError
    from pcdet_ext.data.points import read_columns
    from pcdet_ext.export.check import compare_frames
    from pcdet_ext.export.onnx import export, save
    from pcdet_ext.export.recording import RecordingError
    from pcdet_ext.files import check_output_file
    from pcdet_ext.inference import load

    changes = [str(frame) for frame in options.check if "=" in str(frame) and not frame.exists()]  # a.b=c behind frames
    frames = [frame for frame in options.check if str(frame) not in changes]
    check_output_file(options.out, [options.checkpoint, *frames])
    detector = load(options.checkpoint, "cpu", [*options.overrides, *changes], options.imports)
    for frame in frames:  # what cannot be read is said before the export takes its time
        read_columns(frame, detector.point_features)
    try:
        model = export(detector, options.opset)
    except RecordingError as error:
        raise FailureError(f"{options.checkpoint}: {error}") from error
    save(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    compared = compare_frames(detector, options.out, frames) if frames else []
    print(*compared, sep="\n", end="\n" if compared else "")
    if different := [one.frame for one in compared if not one.agrees]:
        raise FailureError(f"{options.out}: onnxruntime finds something else than PyTorch in {', '.join(different)}")
    return 0
