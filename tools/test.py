"""Test a checkpoint: python tools/test.py runs/lion/best.ckpt data.root=/data/kitti --out results --json ap.json

Writes KITTI result files (--out) and prints the AP table; where the split has no labels, it only writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.config import ConfigError
from pcdet_ext.engine.allocation import keep_freed_memory
from pcdet_ext.files import DataError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes of the checkpoint's configuration")
    parser.add_argument("--split", help="frames to test on (default: the configuration's test.split, else val)")
    parser.add_argument("--out", type=Path, help="folder for one result file a frame")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto)")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    from pcdet_ext.engine.testing import measure

    try:
        print(measure(**vars(options)))
    except (ConfigError, DataError, ImportError, OSError) as error:
        print(f"test: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("test: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
