"""Turn an official checkpoint into one of this library: python tools/convert_checkpoint.py FILE.pth CONFIG OUT.ckpt

CONFIG is the YAML file of the same model, for example configs/waymo/dsvt_pillar.yaml. Every parameter must have its
place; a file that does not fit is refused with a list of what is missing, left over or of another shape.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.config import ConfigError
from pcdet_ext.files import DataError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, help="checkpoint of OpenPCDet, mmdetection3d or a code base on them")
    parser.add_argument("config", type=Path, help="configuration of the same model")
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes of the configuration")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from pcdet_ext.interop.checkpoints import convert

    try:
        count = convert(options.official, options.config, options.out, options.overrides)
    except (ConfigError, DataError, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {count} parameters and buffers of {options.official.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
