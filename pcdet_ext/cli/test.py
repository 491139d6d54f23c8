"""Test a checkpoint on a data set.

    pcdet test runs/lion/best.ckpt data.root=/data/kitti --out results --json ap.json

Writes result files (--out) and prints the data set's own metric; where the split has no labels, it only writes.

    pcdet test runs/lion/best.ckpt --onnx lion.onnx lion_fp16.onnx lion_int8.onnx

Measures models that `pcdet export` wrote beside the checkpoint on the CPU, with their sizes and times.
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import add_device, add_imports, add_overrides, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path,
        help="a file that a training wrote, or a name as kitti/demo_sim",
    )
    add_overrides(parser, "the checkpoint's configuration")
    parser.add_argument("--split", help="frames to test on (default: the configuration's test.split, else val)")
    parser.add_argument("--out", type=path, help="folder for the result files")
    parser.add_argument("--json", type=path, help="file for all numbers")
    parser.add_argument("--plots", type=path, metavar="DIR", help="folder for diagrams, as precision over recall")
    parser.add_argument(
        "--no-optimize",
        dest="optimize",
        action="store_false",
        help="keep batch norms apart from the layers before them: slower, the same results up to rounding",
    )
    parser.add_argument(
        "--onnx", type=path, nargs="+", default=[], metavar="FILE", help="exported models to measure beside it"
    )
    add_device(parser)
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.cli.errors import UsageError
    from pcdet_ext.engine.allocation import keep_freed_memory

    keep_freed_memory()
    from pcdet_ext.engine.testing import measure

    given = vars(options)
    models = given.pop("onnx")
    if not models:
        print(measure(**given))
        return 0
    from pcdet_ext.engine.export_testing import measure_exports

    if options.out or options.plots or options.device not in ("auto", "cpu") or not options.optimize:
        raise UsageError(
            "--onnx compares on the CPU with the optimized detector, without --out, --plots, --no-optimize"
        )
    changes = [str(p) for p in models if "=" in str(p) and not p.exists()]  # a.b=c behind files
    files = [p for p in models if str(p) not in changes]
    taken = {name: given[name] for name in ("checkpoint", "split", "json", "imports")}
    print(measure_exports(models=files, overrides=[*options.overrides, *changes], **taken))
    return 0
