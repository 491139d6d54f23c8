"""Show what is in a frame and what a detector finds in it.

frames of a prepared data set, by id (its start is enough) or position:

pcdet visualize kitti/demo data.root=/data/kitti --split val --frame 000008 --out map.png      labels
pcdet visualize best.ckpt --frame 8,12 --out pictures                                          and detections
pcdet visualize kitti/demo data.root=/data/kitti --frame 8 --results RESULTS --out map.png     results of any code base
pcdet visualize best.ckpt --frames 0:40 --out tour.html                                        a page that plays them
pcdet visualize best.ckpt --sequence scene-0061 --out tour.html                                one sequence of them
pcdet visualize best.ckpt --frames 0:40 --rrd drive.rrd                                        for the viewer of Rerun
pcdet visualize nuscenes/demo … --sequence scene-0061 --tracks tracks.json --out drive.gif     what `pcdet track` wrote

files, prepared or not:

pcdet visualize best.ckpt FRAME.bin --out scene.html            detections, and the ground truth that lies beside
pcdet visualize velodyne/000008.bin --results DIR --out a.png   result files in KITTI's layout
pcdet visualize label_2/000008.txt --out a.png                  labels alone
pcdet visualize … --out view.png --style view                   an Open3D picture without a screen
pcdet visualize …                                               an Open3D window
"""

from __future__ import annotations

import argparse
from typing import Any

from pcdet_ext.cli.arguments import add_device, add_imports, path
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use

FILES = """[CHECKPOINT.ckpt, or a name as kitti/demo_sim] and point files, or label files (.txt); with --frame,
--frames or --sequence: a configuration or CHECKPOINT.ckpt, and changes a.b=c of its configuration"""
FRAME = "frames of the data set, by id, the start of an id, or position; several with commas"
ONLY_FILES = ("labels", "calib", "features")  # what a data set itself knows of its frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help=FILES)
    parser.add_argument("--frame", metavar="ID|POSITION[,…]", help=FRAME)
    parser.add_argument("--frames", metavar="A:B[:STEP]", help="frames of the data set from position A to before B")
    parser.add_argument(
        "--sequence", metavar="ID", help="a sequence of the data set; --frames are then positions in it"
    )
    parser.add_argument("--split", help="of the data set (default: the configuration's test.split, else val)")
    parser.add_argument(
        "--out", type=path, help=".html, .png, .gif, .rrd, or a folder for several frames; a window without it"
    )
    parser.add_argument("--rrd", type=path, metavar="OUT", help="a recording for the viewer of Rerun, instead of --out")
    parser.add_argument(
        "--style", choices=["map", "view", "page"], help="from above, Open3D, or HTML (default: by suffix)"
    )
    parser.add_argument("--results", type=path, help="results in the benchmark's own format, a file or a folder")
    parser.add_argument("--tracks", type=path, help="results with track ids, whose paths are drawn")
    parser.add_argument("--labels", type=path, help="a KITTI label file, or a folder of them")
    parser.add_argument("--calib", type=path, help="a KITTI calibration file, or a folder of them")
    parser.add_argument(
        "--features", metavar="x,y,z,…", help="columns of the point files (default: the detector's, or the usual ones)"
    )
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown (default 0.3)")
    add_device(parser)
    add_imports(parser)


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.files import DataError

    given: dict[str, Any] = dict(vars(options))
    _take_recording(given)
    try:
        with wrong_use():
            if options.frame is None and options.frames is None and options.sequence is None:
                _draw_files(given)
            else:
                _draw_frames(given)
    except DataError:
        raise
    except RuntimeError as error:  # Open3D without a screen
        raise FailureError(str(error)) from error
    return 0


def _take_recording(given: dict[str, Any]) -> None:
    """Let --rrd be another name of --out."""
    recording = given.pop("rrd")
    if recording is None:
        return
    if given["out"] is not None or given["style"] is not None:
        raise UsageError("--rrd: takes the place of --out and --style")
    if recording.suffix != ".rrd":
        raise UsageError(f"--rrd: a recording is an .rrd file, got {recording}")
    given["out"] = recording


def _draw_files(given: dict[str, Any]) -> None:
    from pcdet_ext.visualization.command import visualize

    if given.pop("split") is not None:
        raise UsageError("--split: name frames of it with --frame, --frames or --sequence")
    if given.pop("tracks") is not None:
        raise UsageError("--tracks: is for frames of a data set, named with --frame, --frames or --sequence")
    del given["frame"], given["frames"], given["sequence"]
    features = given.pop("features")
    columns = None if features is None else [name.strip() for name in features.split(",")]
    if columns is not None and (columns[:3] != ["x", "y", "z"] or len(set(columns)) < len(columns)):
        raise UsageError(f"--features must be x,y,z and then different other columns, got {features}")
    files = [path(text) for text in given.pop("files")]
    visualize(files, features=columns, **given)


def _draw_frames(given: dict[str, Any]) -> None:
    from pcdet_ext.visualization.command import visualize_frames

    for name in ONLY_FILES:
        if given.pop(name) is not None:
            raise UsageError(f"--{name} is for single files; frames of a data set bring theirs")
    source, *overrides = given.pop("files")
    wrong = [text for text in overrides if "=" not in text]
    if wrong or "=" in source:
        raise UsageError("name one configuration or checkpoint first, then changes a.b=c of its configuration")
    visualize_frames(path(source) if source.endswith(".ckpt") else source, overrides, **given)
