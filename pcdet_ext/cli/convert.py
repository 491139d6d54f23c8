"""Turn an official checkpoint into one of this library.

    pcdet convert FILE.pth waymo/dsvt_pillar OUT.ckpt

The configuration is that of the same model. Every parameter must have its place; a file that does not fit is refused
with a list of what is missing, left over or of another shape. For a published network that is no detector, such as
OctFormer or HOTFormerLoc, the configuration is a file with `system` (octformer, hotformerloc) and `config`, its
published settings; `pcdet_ext.interop.checkpoints.load_network` reads the result.
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import add_overrides, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "official",
        type=path,
        help="checkpoint of a published code base (OpenPCDet, OctFormer, …)",
    )
    parser.add_argument("config", help="configuration of the same model: a file, or a name that comes with the library")
    parser.add_argument("out", type=path, help="checkpoint to write")
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.interop.checkpoints import convert

    count = convert(options.official, options.config, options.out, options.overrides)
    print(f"{options.out}: {count} parameters and buffers of {options.official.name}")
    return 0
