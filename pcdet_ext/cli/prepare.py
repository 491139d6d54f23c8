"""Prepare a data set for training: index its frames and cut out its objects for ground-truth sampling.

pcdet prepare kitti --root data/kitti
pcdet prepare nuscenes --root data/nuscenes version=v1.0-mini max_sweeps=10
pcdet prepare semantickitti --root data/semantickitti --splits train val test
pcdet prepare custom --root my_data       checks every file, reports, and writes my_data/pcdet_ext/config.yaml
"""

from __future__ import annotations

import argparse

from pcdet_ext.cli.arguments import path
from pcdet_ext.cli.errors import wrong_use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pcdet_ext.data.formats import FRAME_SOURCES

    parser.add_argument("dataset", choices=FRAME_SOURCES.names(), help="layout of the data on disk")
    parser.add_argument("--root", type=path, required=True, help="the data folder")
    parser.add_argument("--out", type=path, help="folder to write to (default: ROOT/pcdet_ext)")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to index (default: train val)")
    parser.add_argument("--database", nargs="*", help="splits to cut objects from (default: train)")
    parser.add_argument("--workers", type=int, default=0, help="processes beside this one")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="what to do with damaged frames")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "options", nargs="*", metavar="key=value", help="options of the layout, as version=v1.0-mini of nuScenes"
    )


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.config import from_plain
    from pcdet_ext.data.formats import FRAME_SOURCES
    from pcdet_ext.data.index import FOLDER
    from pcdet_ext.data.prepare import ConcludingSource, prepare

    given = {"name": options.dataset, "root": str(options.root)}
    source = FRAME_SOURCES.build(from_plain(given, "command line", options.options))
    with wrong_use():
        summaries = prepare(
            source,
            splits=options.splits,
            database=options.database,
            out=options.out,
            workers=options.workers,
            on_error=options.on_error,
            progress=not options.quiet,
        )
    for summary in summaries:
        print(summary)
    if isinstance(source, ConcludingSource):
        print(source.finish(options.out or options.root / FOLDER, options.splits))
    return 0
