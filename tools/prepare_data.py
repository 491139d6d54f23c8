"""Prepare a data set for training: index its frames and cut out its objects for ground-truth sampling.

python tools/prepare_data.py kitti --root data/kitti
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data.formats import FRAME_SOURCES
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 when the data cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=FRAME_SOURCES.names(), help="layout of the data on disk")
    parser.add_argument("--root", required=True, help="the data folder")
    parser.add_argument("--out", help="folder to write to (default: ROOT/pcdet_ext)")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to index (default: train val)")
    parser.add_argument("--database", nargs="*", help="splits to cut objects from (default: train)")
    parser.add_argument("--workers", type=int, default=0, help="processes beside this one")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="what to do with damaged frames")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        summaries = prepare(
            FRAME_SOURCES.build(Node({"name": options.dataset, "root": options.root})),
            splits=options.splits,
            database=options.database,
            out=options.out,
            workers=options.workers,
            on_error=options.on_error,
            progress=not options.quiet,
        )
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for summary in summaries:
        print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
