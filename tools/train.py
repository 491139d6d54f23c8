"""Train a detector: python tools/train.py configs/kitti/pointpillars.yaml data.root=/data/kitti train.epochs=80

Ctrl-C saves and ends; --resume continues exactly there. Several GPUs: --devices N, or torchrun tools/train.py ….
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.engine.allocation import keep_freed_memory
from pcdet_ext.engine.interrupts import end_process
from pcdet_ext.files import DataError

INTERRUPTED = 130  # as shells count a program that ended by Ctrl-C


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration file (.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes of the configuration")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="CKPT",
        help="continue a checkpoint; without a name OUT/last.ckpt, or from the start where there is none",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--devices", type=int, help="processes on this machine (default 1)")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--strategy", default="auto", help="of Lightning: ddp, ddp_find_unused_parameters_true, …")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    from pcdet_ext.engine.training import TrainingError, train

    out = options.out or Path("runs") / options.config.stem
    try:
        finished = train(
            config.load(options.config, options.overrides),
            out,
            resume="last" if options.resume == Path() else options.resume,
            overwrite=options.overwrite,
            device=options.device,
            devices=options.devices,
            strategy=options.strategy,
            nodes=options.nodes,
        )
    except (ConfigError, DataError, TrainingError, ImportError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"train: interrupted; what is in {out} stays as it was written last", file=sys.stderr)
        return INTERRUPTED
    return 0 if finished else INTERRUPTED


if __name__ == "__main__":
    end_process(main())
