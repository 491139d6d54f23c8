"""Train a detector.

    pcdet train kitti/pointpillars data.root=/data/kitti train.epochs=80
    pcdet train my_model.yaml --out runs/mine --resume

The configuration is a file, or the name of one that comes with the library. Ctrl-C saves and ends; --resume continues
exactly there. Several GPUs: --devices N, or torchrun -m pcdet_ext train ….
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pcdet_ext.cli.arguments import add_device, add_overrides, path
from pcdet_ext.cli.errors import FailureError, UsageError
from pcdet_ext.files import expand_path

LAST = "last"  # what `resume` of a training means by OUT/last.ckpt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="configuration file (.yaml), or name of one that comes with the library")
    add_overrides(parser)
    parser.add_argument("--out", type=path, help="folder of the run (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LAST,
        metavar="CKPT",
        help="continue a checkpoint; without a name OUT/last.ckpt, or from the start where there is none",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    add_device(parser)
    parser.add_argument("--devices", type=int, help="processes on this machine (default 1)")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--strategy", default="auto", help="of Lightning: ddp, ddp_find_unused_parameters_true, …")


def run(options: argparse.Namespace) -> int:
    from pcdet_ext import config
    from pcdet_ext.cli.command import INTERRUPTED
    from pcdet_ext.engine.allocation import keep_freed_memory

    keep_freed_memory()
    from pcdet_ext.engine.training import TrainingError, train

    out = options.out or Path("runs") / Path(options.config).stem
    if options.resume is not None and options.overwrite:
        raise UsageError("--resume continues a run and --overwrite replaces it: give one of them")
    resume, overrides = _resumed(options.resume, options.overrides)
    try:
        finished = train(
            config.load(options.config, overrides),
            out,
            resume=resume,
            overwrite=options.overwrite,
            device=options.device,
            devices=options.devices,
            strategy=options.strategy,
            nodes=options.nodes,
        )
    except TrainingError as error:
        raise FailureError(str(error)) from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"what is in {out} stays as it was written last") from stop
    return 0 if finished else INTERRUPTED


def _resumed(given: str | None, overrides: list[str]) -> tuple[str | Path | None, list[str]]:
    """What to continue, and the changes: after a bare --resume argparse takes the first change for the checkpoint."""
    if given is None or given == LAST:
        return given, overrides
    try:
        file = expand_path(given)
    except ValueError as error:
        raise UsageError(f"--resume: {error}") from error
    if re.match(r"[A-Za-z_][\w.]*=", given) and not file.exists():
        return LAST, [given, *overrides]
    return file, overrides
